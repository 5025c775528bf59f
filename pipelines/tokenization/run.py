"""The Ray wiring of corpus tokenization.

Ray Data moves chunks: CPU tasks read and decode, tokenizer actors make words. The driver collects finished
chunks (small: no pixels), commits whole shards, and starts only what has no commit record yet, so running the
job again resumes it. Without workers the same stages run in this process.
"""

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import Any, cast

import pyarrow as pa

from pipelines import provenance, shards, storage
from pipelines.cluster import ClusterInfo, session
from pipelines.config import WorkerConfig
from pipelines.job import CONFIG_FILE
from pipelines.planning.listing import Workers
from pipelines.shard_job import Work, do_shards
from pipelines.shard_pool import careful, through_tasks
from pipelines.shards import Plan
from pipelines.storage.threads import map_ahead
from pipelines.tokenization.assemble import Assembler, Shard, commit_shard
from pipelines.tokenization.box_masks import MasksOfBoxes
from pipelines.tokenization.config import TokenizationConfig, TokenizeCorpusConfig
from pipelines.tokenization.gpus import Gpus
from pipelines.tokenization.job import IMAGES, MASKS
from pipelines.tokenization.prepare import Tokenization
from pipelines.tokenization.read import ReadImages
from pipelines.tokenization.stage import TokenizeMasks
from pipelines.tokenization.stage_times import StageTimes
from pipelines.tracking import Tracker
from samtok.errors import ClusterError
from samtok.images import DECODE_BYTES_PER_PIXEL
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)

DECODER_BYTES = 256 * 2**20
"""Memory of a decoding task besides its image and chunk."""

MAX_RETRIES = 8
"""Times a chunk is repeated after its worker died; without a bound, one that kills workers never ends."""

MAX_BLOCKS = 2000
"""Blocks that Ray Data is given at once: each takes the driver 6 ms before the first is done, and 60 KB.
Actors start anew with the next ones."""

LISTING_CPUS = 0.5
"""Of a task that lists a part of the corpus."""

FIRST_CHUNKS = 8
"""Per tokenizer, that are measured before ``--decoders auto`` settles; a tenth of what is to do at most."""

COMMIT_THREADS = 4
"""Shards that are committed at a time; twice as many may wait before the driver stops taking chunks."""


def make_words(
    job: Tokenization, plan: Plan, tracker: Tracker | None = None
) -> tuple[dict[str, Any], Work, StageTimes]:
    """Does what is left of a corpus; returns its manifest, what this call did, and how busy it was.

    Ray is started for it, unless this process is connected already (``ray_for``) or there are no workers.

    Raises:
        DataError: If more images are rejected than ``max_reject_rate`` allows.
        ClusterError: If the cluster is too small, or a chunk kills its workers.
        ConfigError: If it goes on on another kind of GPU, and that is not allowed.
    """
    config = job.config
    text = provenance.config_json(config)
    storage.write_bytes(storage.join(plan.out, CONFIG_FILE), text.encode())
    processes = {"decode": 1, "tokenize": max(1, config.workers), "commit": COMMIT_THREADS}
    times, gpus = StageTimes(processes), Gpus(plan.out, allow_other=config.allow_other_gpus)

    def stream(todo: Sequence[int]) -> Iterator[dict[str, Any]]:
        MaskTokenizer.from_pretrained(config.tokenizer, read=storage.read_bytes)  # a broken one fails here
        read = ReadImages(plan, job.reader, job.architecture, config)
        if not config.workers:
            yield from _commit_all(plan, _here(job, plan, read, _blocks(plan, todo)), gpus, times)
            return
        with ray_for(config) as cluster:
            cluster.require(
                cpus=_cpus(config),
                gpus=(config.least_workers + _predictors(config)) * (config.worker.gpus or 0),
                memory_bytes=_least_decoders(config) * _decoder_memory(job),
            )
            most = _most_decoders(job, cluster)
            measured = config.decoders == "auto" and most > 1
            parts = _blocks(plan, todo, first=FIRST_CHUNKS * config.workers if measured else 0)
            yield from _commit_all(plan, _through_ray(job, plan, read, parts, most, times), gpus, times)

    manifest, work = do_shards(
        plan, stream, units=(MASKS, IMAGES), max_reject_rate=config.max_reject_rate, tracker=tracker
    )
    return manifest, work, times


def _least_decoders(config: TokenizationConfig) -> int:
    return 1 if config.decoders == "auto" else config.decoders


def _most_decoders(job: Tokenization, cluster: ClusterInfo) -> int:
    """Returns how many decoding tasks there are at most: with auto, what tokenizers leave of the cluster."""
    config = job.config
    if config.decoders != "auto":
        return config.decoders
    cpus = cluster.num_cpus - config.workers * config.worker.cpus
    return max(1, int(min(cpus, cluster.memory_bytes / _decoder_memory(job))))


def _decoders(config: TokenizationConfig, most: int, times: StageTimes) -> int:
    """Returns how many decoding tasks the next chunks get."""
    if config.decoders != "auto":
        return config.decoders
    wanted = times.decoders_for(config.workers)
    if wanted is None:
        return most
    found = min(most, wanted)
    log.info(
        "decoders: %d of at most %d, since per image decoding takes %.3g s and a tokenizer %.3g s",
        *(found, most),
        *times.seconds_per_image().values(),
    )
    return found


def _decoder_memory(job: Tokenization) -> int:
    """Returns the bytes that a decoding task needs: for one full-size image, and for a chunk of shrunken ones
    thrice, as arrays, joined and in Arrow."""
    chunk = job.settings["chunk_rows"] * 3 * job.architecture.image_size**2
    return DECODER_BYTES + 3 * chunk + job.config.max_image_pixels * DECODE_BYTES_PER_PIXEL


def ray_for(config: TokenizationConfig) -> AbstractContextManager[Any]:
    """Returns a Ray session that has the CPUs of the pool, if it is started here; nothing for no workers."""
    if not config.workers:
        return contextlib.nullcontext()
    return session(num_cpus=config.num_cpus, at_least_cpus=_cpus(config))


@contextlib.contextmanager
def listing_workers(config: TokenizationConfig) -> Iterator[Workers]:
    """Gives what lists the parts of a corpus: Ray tasks, for which Ray starts with the first call and then
    runs on; or this process, without workers. A task that waits for the store takes half a CPU."""
    with contextlib.ExitStack() as stack:

        def workers(work: Callable[[int], Any], todo: Sequence[int]) -> Iterator[Any]:
            if not config.workers:
                return map(work, todo)
            cluster = stack.enter_context(ray_for(config))
            at_once = max(1, int(cluster.num_cpus / LISTING_CPUS))
            worker = WorkerConfig(cpus=LISTING_CPUS, gpus=0)
            return through_tasks(work, todo, at_once=at_once, worker=worker, remedy="--num-cpus")

        yield workers


def _cpus(config: TokenizationConfig) -> float:
    actors = config.least_workers + _predictors(config)
    return actors * config.worker.cpus + _least_decoders(config)


def _predictors(config: TokenizationConfig) -> int:
    """Returns how many actors predict masks of boxes."""
    if not isinstance(config, TokenizeCorpusConfig) or config.boxes.sam2 is None:
        return 0
    return config.boxes.workers


def _here(
    job: Tokenization, plan: Plan, read: ReadImages, parts: Iterable[list[pa.Table]]
) -> Iterator[dict[str, Any]]:
    tokenize = TokenizeMasks(job.config, job.settings["weights_sha256"])
    predict = MasksOfBoxes(*_predicting(job, plan)) if job.config.boxes.sam2 is not None else None
    for block in chain.from_iterable(parts):
        for row in range(block.num_rows):
            chunk = block.slice(row, 1)
            yield from tokenize(read(chunk if predict is None else predict(chunk))).to_pylist()


def _predicting(job: Tokenization, plan: Plan) -> tuple[Any, ...]:
    """Returns the arguments of ``MasksOfBoxes``."""
    return plan, job.reader, job.config, job.settings["sam2_sha256"]


def _through_ray(
    job: Tokenization,
    plan: Plan,
    read: ReadImages,
    parts: Iterable[list[pa.Table]],
    most: int,
    times: StageTimes,
) -> Iterator[dict[str, Any]]:
    """Sends chunks through at most so many decoding tasks, and tokenizer actors; yields them in any order."""
    import ray.data
    from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else the exit code of a worker's error is lost
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach us, with their exit codes
    config = job.config
    # Ray 2.60 has no other way to bound retries, and will have one before it removes this (pyproject.toml).
    warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")

    def read_carefully(chunk: pa.Table) -> pa.Table:
        with careful():
            return read(chunk)

    def words_of(blocks: list[pa.Table]) -> ray.data.Dataset:
        given = ray.data.from_arrow(blocks)
        if config.boxes.sam2 is not None:
            given = given.map_batches(
                PredictCarefully,
                fn_constructor_args=_predicting(job, plan),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=config.boxes.workers),
                ray_remote_args_fn=lambda: {"max_task_retries": MAX_RETRIES},
                num_cpus=config.worker.cpus,
                num_gpus=config.worker.gpus or None,
            )
        chunks = given.map_batches(
            read_carefully,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=times.processes["decode"]),
            num_cpus=1,
            ray_remote_args_fn=lambda: {"max_retries": MAX_RETRIES},
            memory=_decoder_memory(
                job
            ),  # also keeps Ray Data from fusing this stage into the tokenizer actors
        )
        return chunks.map_batches(
            TokenizeCarefully,
            fn_constructor_args=(config, job.settings["weights_sha256"]),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(  # restarts killed actors
                min_size=config.least_workers, max_size=config.workers
            ),
            ray_remote_args_fn=lambda: {"max_task_retries": MAX_RETRIES},
            num_cpus=config.worker.cpus,
            num_gpus=config.worker.gpus or None,
        )

    try:
        for blocks in parts:
            times.processes["decode"] = _decoders(config, most, times)
            tables = words_of(blocks).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
            for table in tables:
                yield from cast(pa.Table, table).to_pylist()
    except (WorkerCrashedError, ActorDiedError, ActorUnavailableError, OutOfMemoryError) as error:
        raise ClusterError(
            f"Workers died {MAX_RETRIES + 1} times on the same chunk ({type(error).__name__}). Usually "
            "memory is short: lower --chunk-rows, --tokenizer-options.images-per-batch or --workers."
        ) from error


class TokenizeCarefully(TokenizeMasks):
    """As ``TokenizeMasks``, in a process apart if the chunk killed its actors before."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        with careful():
            return super().__call__(batch)


class PredictCarefully(MasksOfBoxes):
    """As ``MasksOfBoxes``, likewise."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        with careful():
            return super().__call__(batch)


def _blocks(plan: Plan, todo: Sequence[int], *, first: int = 0) -> Iterator[list[pa.Table]]:
    """Lists the chunks to do, one row each, as blocks that Ray Data is given at once. A small corpus has a
    block, so a decoding task, per chunk; a large one a block per shard, which is what is repeated if the task
    dies. ``first`` chunks are given before the others, if they are at most a tenth of them."""
    chunks = [list(plan.chunks(shard)) for shard in todo]
    total = sum(map(len, chunks))
    few = first if 10 * first <= total else 0
    ahead: list[list[shards.Chunk]] = []
    while few > len(ahead):
        ahead += [[chunk] for chunk in chunks.pop(0)]
    if total <= MAX_BLOCKS:
        chunks = [[chunk] for shard in chunks for chunk in shard]
    for part in (ahead, *(chunks[start : start + MAX_BLOCKS] for start in range(0, len(chunks), MAX_BLOCKS))):
        if part:
            yield [
                pa.table(
                    [pa.array(column, pa.int32()) for column in zip(*block, strict=True)],
                    names=shards.Chunk._fields,
                )
                for block in part
            ]


def _commit_all(
    plan: Plan, chunks: Iterator[dict[str, Any]], gpus: Gpus, times: StageTimes
) -> Iterator[dict[str, Any]]:
    """Assembles shards and commits them in threads; yields the records as they come to hold."""
    assembler = Assembler()

    def whole() -> Iterator[Shard]:
        for chunk in chunks:
            gpus.add(chunk["gpu"])
            times.add(chunk)
            if (shard := assembler.add(chunk)) is not None:
                yield shard

    for record, seconds in map_ahead(partial(_commit, plan), whole(), threads=COMMIT_THREADS):
        times.committed(seconds)
        yield record
    if assembler.in_flight:
        raise ClusterError(f"{assembler.in_flight} shards lack chunks although Ray Data ended. Run again.")


def _commit(plan: Plan, shard: Shard) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    return commit_shard(plan, shard), time.perf_counter() - started
