"""The Ray wiring of corpus tokenization.

Ray Data moves chunks: CPU tasks read and decode, tokenizer actors make words. The driver collects finished
chunks (small: no pixels), commits whole shards, and starts only what has no commit record yet, so running the
job again resumes it.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pyarrow as pa

from pipelines import run as runs
from pipelines import schema, shards, storage
from pipelines.cluster import session
from pipelines.ingestion.reader import Input, Reader
from pipelines.ingestion.registry import build_reader
from pipelines.shards import Chunk, Plan
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tracking import Tracker
from samtok import checkpoint
from samtok.config import MaskTokenizerConfig
from samtok.errors import DataError

log = logging.getLogger(__name__)

LAST_RUN = "last_run.json"
"""How fast the last call of the job that had work to do was."""

COMMIT_THREADS = 4
MAX_UNCOMMITTED = 16
"""Whole shards that may wait for storage before the driver stops taking chunks."""


def tokenize_corpus(config: TokenizeCorpusConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _tokenize(_with_absolute_paths(config)))


def _with_absolute_paths(config: TokenizeCorpusConfig) -> TokenizeCorpusConfig:
    """Makes local paths mean the same in workers, whose working directory is another."""
    corpus, tokenizer = config.corpus, config.tokenizer
    images = corpus.images and storage.absolute(corpus.images)
    return dataclasses.replace(
        config,
        out=storage.absolute(config.out),
        corpus=dataclasses.replace(corpus, source=storage.absolute(corpus.source), images=images),
        tokenizer=dataclasses.replace(tokenizer, uri=_absolute_tokenizer(tokenizer.uri)),
    )


def _absolute_tokenizer(uri: str) -> str:
    return uri if checkpoint.resolve(uri) != uri.rstrip("/") else storage.absolute(uri)


def _tokenize(config: TokenizeCorpusConfig) -> int:
    started = time.monotonic()
    architecture = checkpoint.read_config(config.tokenizer.uri)
    reader = reader_of(config)
    fingerprint = fingerprint_of(config, reader, architecture)
    plan = shards.load_plan(config.out)
    if plan is not None:
        shards.check_fingerprint(plan, fingerprint)
    if config.dry_run:
        return _dry_run(config, reader, plan, fingerprint)
    storage.write_bytes(storage.join(config.out, "config.json"), runs.config_json(config).encode())
    if plan is None:
        log.info("planning %s from %s", config.out, config.corpus.source)
        inputs = _limited(reader.inputs(), config.limit)
        plan = shards.make_plan(
            config.out, fingerprint, inputs, shard_rows=config.shard_rows, chunk_rows=config.chunk_rows
        )
    records = shards.committed(plan)
    log.info("%d images in %d shards, %d committed", plan.num_inputs, len(plan.shard_rows), len(records))
    tracker = Tracker(config.tracking, experiment="tokenize_corpus", home=config.out)
    tracker.params(json.loads(runs.config_json(config)))
    tracker.tags({"fingerprint": shards.digest(fingerprint), **runs.versions()})
    try:
        work = _work(config, plan, reader, architecture, records, tracker)
        manifest = shards.finish(plan, records)
        if work.masks:
            record = json.dumps(work.record(), indent=1).encode()
            storage.write_bytes(storage.join(config.out, LAST_RUN), record)
        _report(config, manifest, work, tracker)
        code = _verdict(config, manifest["totals"])
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end("FINISHED" if code == 0 else "FAILED")
    _print_table(config, manifest, work, time.monotonic() - started, tracker)
    return code


def reader_of(config: TokenizeCorpusConfig) -> Reader:
    """Builds the reader that the config asks for."""
    corpus = config.corpus
    options = (
        {"mask_key": corpus.mask_key, "image_path": corpus.image_path} if corpus.reader == "coco" else {}
    )
    return build_reader(
        corpus.reader,
        source=corpus.source,
        images=corpus.images,
        split=corpus.split,
        dataset=corpus.dataset or corpus.reader,
        options=options,
    )


def fingerprint_of(
    config: TokenizeCorpusConfig, reader: Reader, architecture: MaskTokenizerConfig
) -> dict[str, Any]:
    """Returns all that decides the bytes of the shards; a run with another one is refused.

    How many actors there are, where they run and where the dataset lies are not in it.
    """
    corpus, tokenizer = config.corpus, config.tokenizer
    return {
        "reader": corpus.reader,
        "dataset": reader.name,
        "split": reader.split,
        "sources": shards.digest(reader.sources()),
        "mask_key": corpus.mask_key,
        "image_path": corpus.image_path,
        "tokenizer": tokenizer.uri,
        "weights_sha256": hashlib.sha256(checkpoint.read_weights(tokenizer.uri)).hexdigest(),
        "architecture": hashlib.sha256(architecture.to_json().encode()).hexdigest(),
        "num_codes": architecture.quantizer.num_codes,
        "num_levels": architecture.quantizer.num_levels,
        "dtype": tokenizer.dtype,
        "threshold": tokenizer.threshold,
        "images_per_batch": tokenizer.images_per_batch,
        "masks_per_batch": tokenizer.masks_per_batch,
        "threads_per_actor": config.pool.threads_per_actor,
        "shard_rows": config.shard_rows,
        "chunk_rows": config.chunk_rows,
        "reconstruct": config.reconstruct,
        "keep_rle": config.keep_rle,
        "skip": sorted(config.skip),
        "min_area_px": config.min_area_px,
        "limit": config.limit,
        "seed": config.seed,
        "schema_version": schema.SCHEMA_VERSION,
        "samtok": runs.versions()["samtok"],
    }


def _limited(inputs: Iterator[Any], limit: int | None) -> Iterator[Any]:
    """Takes the first ``limit`` images, and the rejects that come before them."""
    taken = 0
    for item in inputs:
        if isinstance(item, Input):
            if limit is not None and taken == limit:
                return
            taken += 1
        yield item


@dataclasses.dataclass
class Work:
    """What this call of the job did, as opposed to earlier ones."""

    images: int = 0
    masks: int = 0
    seconds: float = 0.0
    first: tuple[int, float] | None = None
    """Masks and seconds at the first commit, before which workers start and models load."""

    def add(self, counts: Mapping[str, int], seconds: float) -> None:
        """Takes the counts of a shard that was committed ``seconds`` after the work began."""
        self.images += counts["rows_out"]
        self.masks += counts["masks_out"]
        self.seconds = seconds
        self.first = self.first or (self.masks, seconds)

    @property
    def masks_per_s(self) -> float:
        """Masks that got words per second, start-up included."""
        return self.masks / self.seconds if self.seconds else 0.0

    @property
    def steady_masks_per_s(self) -> float:
        """The same from the first commit on; 0 where there was only one."""
        masks, seconds = self.first or (0, 0.0)
        return (self.masks - masks) / (self.seconds - seconds) if self.seconds > seconds else 0.0

    def record(self) -> dict[str, float]:
        """Returns the figures of ``last_run.json``."""
        return {
            "images": self.images,
            "masks": self.masks,
            "seconds": self.seconds,
            "masks_per_s": self.masks_per_s,
            "steady_masks_per_s": self.steady_masks_per_s,
        }


def _work(
    config: TokenizeCorpusConfig,
    plan: Plan,
    reader: Reader,
    architecture: MaskTokenizerConfig,
    records: dict[int, dict[str, Any]],
    tracker: Tracker,
) -> Work:
    """Does the shards that have no commit record and adds their records; returns what was done."""
    todo = [shard for shard in range(len(plan.shard_rows)) if shard not in records]
    work = Work()
    if not todo:
        return work
    pool = config.pool
    cpus = pool.actors * pool.cpus_per_actor + pool.decoders
    with session(num_cpus=pool.num_cpus, at_least_cpus=cpus) as cluster:
        cluster.require(cpus=cpus, gpus=pool.actors * pool.gpus_per_actor)
        started = time.monotonic()
        chunks = [chunk for shard in todo for chunk in plan.chunks(shard)]
        for record in _commit_all(
            config, plan, architecture, _stream(config, plan, reader, architecture, chunks)
        ):
            records[record["shard"]] = record
            work.add(record["counts"], time.monotonic() - started)
            _progress(plan, records, work, len(todo), tracker)
            _stop_early(config, plan, records)
    return work


def _stream(
    config: TokenizeCorpusConfig,
    plan: Plan,
    reader: Reader,
    architecture: MaskTokenizerConfig,
    chunks: list[Chunk],
) -> Iterator[dict[str, Any]]:
    """Sends chunks through decoding tasks and tokenizer actors; yields finished ones in any order."""
    import ray
    import ray.data

    from pipelines.tokenization.stage import Policy, ReadImages, TokenizeMasks

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    policy = Policy(
        skip=config.skip,
        min_area_px=config.min_area_px,
        reconstruct=config.reconstruct,
        keep_rle=config.keep_rle,
        threshold=config.tokenizer.threshold,
        seed=config.seed,
    )
    pool, tokenizer = config.pool, config.tokenizer
    read = ReadImages(plan.out, reader, architecture.image_size, policy)
    dataset = ray.data.from_items(
        [dataclasses.asdict(chunk) for chunk in chunks], override_num_blocks=len(chunks)
    )
    dataset = dataset.map_batches(
        read.__call__,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=pool.decoders),
        num_cpus=1,
    )
    dataset = dataset.map_batches(
        TokenizeMasks,
        fn_constructor_args=(tokenizer.uri,),
        fn_constructor_kwargs={
            "device": "cuda" if pool.gpus_per_actor else "cpu",
            "dtype": tokenizer.dtype,
            "images_per_batch": tokenizer.images_per_batch,
            "masks_per_batch": tokenizer.masks_per_batch,
            "policy": policy,
            "compile": tokenizer.compile,
            "threads": pool.threads_per_actor,
        },
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor or None,
    )  # Ray Data restarts a killed actor and repeats its chunks
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from cast(pa.Table, table).to_pylist()


def _commit_all(
    config: TokenizeCorpusConfig,
    plan: Plan,
    architecture: MaskTokenizerConfig,
    chunks: Iterator[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Assembles shards and commits them in threads; yields the records as they come to hold."""
    from pipelines.tokenization.assemble import Assembler, Shard, summarize

    quantizer = architecture.quantizer

    def commit(shard: Shard) -> dict[str, Any]:
        summary = summarize(
            shard.rows,
            shard.rejects,
            shard.counts,
            num_codes=quantizer.num_codes,
            num_levels=quantizer.num_levels,
        )
        return shards.commit(plan, shard.number, rows=shard.rows, rejects=shard.rejects, summary=summary)

    assembler = Assembler()
    waiting: list[Future[dict[str, Any]]] = []
    with ThreadPoolExecutor(COMMIT_THREADS) as threads:
        for chunk in chunks:
            shard = assembler.add(chunk)
            if shard is not None:
                waiting.append(threads.submit(commit, shard))
            while waiting and (waiting[0].done() or len(waiting) >= MAX_UNCOMMITTED):
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
    assert not assembler.in_flight, f"{assembler.in_flight} shards lack chunks although Ray Data ended"


def _progress(plan: Plan, records: Mapping[int, Any], work: Work, planned: int, tracker: Tracker) -> None:
    done = len(records) - (len(plan.shard_rows) - planned)
    eta = work.seconds / done * (planned - done)
    log.info(
        "shard %d/%d  %d images  %d masks  %.1f masks/s  ETA %.0f s",
        len(records),
        len(plan.shard_rows),
        work.images,
        work.masks,
        work.masks_per_s,
        eta,
    )
    tracker.metrics({"throughput/masks_per_s": work.masks_per_s}, step=len(records))


def _rates(totals: Mapping[str, int]) -> tuple[float, float]:
    rows, masks = max(totals["rows_in"], 1), max(totals["masks_in"], 1)
    return totals["rows_rejected"] / rows, totals["masks_rejected"] / masks


def _stop_early(config: TokenizeCorpusConfig, plan: Plan, records: Mapping[int, Any]) -> None:
    """Ends a run whose rejected images already exceed the allowed share of all planned images."""
    totals = shards.totals(plan, records.values())
    planned = plan.num_inputs + (plan.rejects or {}).get("rows", 0)
    if totals["rows_rejected"] > config.max_reject_rate * planned:
        raise DataError(_too_many(config, totals["rows_rejected"] / planned, "images"))


def _verdict(config: TokenizeCorpusConfig, totals: Mapping[str, int]) -> int:
    for rate, what in zip(_rates(totals), ("images", "masks"), strict=True):
        if rate > config.max_reject_rate:
            log.error("DataError: %s", _too_many(config, rate, what))
            return DataError.exit_code
    return 0


def _too_many(config: TokenizeCorpusConfig, rate: float, what: str) -> str:
    return (
        f"{rate:.1%} of the {what} are unusable; --max-reject-rate allows {config.max_reject_rate:.1%}. "
        f"See `python -m pipelines.browse {config.out}` for the reasons."
    )


def _dry_run(
    config: TokenizeCorpusConfig, reader: Reader, plan: Plan | None, fingerprint: Mapping[str, Any]
) -> int:
    """Prints what would be done: the config, the fingerprint, and how much is left to do."""
    out = sys.stdout
    out.write(runs.config_json(config))
    out.write(json.dumps(dict(fingerprint), indent=2) + "\n")
    if plan is not None:
        left = len(plan.shard_rows) - len(shards.committed(plan))
        out.write(f"plan: {plan.num_inputs} images in {len(plan.shard_rows)} shards, {left} shards left\n")
        return 0
    items = list(itertools.chain(_limited(reader.inputs(), config.limit)))
    inputs = [item for item in items if isinstance(item, Input)]
    known = [item.num_masks for item in inputs if item.num_masks is not None]
    count = -(-len(inputs) // config.shard_rows)
    masks = f"{sum(known)} masks" if len(known) == len(inputs) else "masks known after reading"
    rejects = len(items) - len(inputs)
    out.write(f"plan: {len(inputs)} images, {masks}, {count} shards, {rejects} rejects when listing\n")
    return 0


def _report(config: TokenizeCorpusConfig, manifest: dict[str, Any], work: Work, tracker: Tracker) -> None:
    import tempfile
    from pathlib import Path

    from pipelines import report
    from samtok.model.tokenizer import MaskTokenizer

    metrics = report.summary(manifest)
    if work.masks:
        metrics |= {f"throughput/{name}": value for name, value in work.record().items()}
    tracker.metrics(metrics)
    tracker.text(json.dumps(manifest["fingerprint"], indent=2), "lineage/fingerprint.json")
    tracker.text(json.dumps(manifest["totals"], indent=2), "lineage/totals.json")
    if not config.report:
        return
    tokenizer = MaskTokenizer.from_pretrained(config.tokenizer.uri)
    report.write_report(config.out, tokenizer=tokenizer, seed=config.seed)
    with tempfile.TemporaryDirectory() as folder:
        for info in storage.list_files(storage.join(config.out, "report")):
            path = Path(folder) / info.uri.rpartition("/")[2]
            path.write_bytes(storage.read_bytes(info.uri))
            tracker.artifact(path, "report")


def _print_table(
    config: TokenizeCorpusConfig, manifest: dict[str, Any], work: Work, seconds: float, tracker: Tracker
) -> None:
    totals = manifest["totals"]
    lines = [
        f"images   in {totals['rows_in']}  out {totals['rows_out']}  rejected {totals['rows_rejected']}",
        f"masks    in {totals['masks_in']}  words {totals['masks_out']}  rejected {totals['masks_rejected']}"
        f"  filtered {totals['masks_filtered']}",
        f"time     {seconds:.0f} s in all, {work.seconds:.0f} s of it at {work.masks_per_s:.1f} masks/s",
        f"words    {storage.join(config.out, shards.MANIFEST)}",
    ]
    if config.report:
        lines.append(f"report   {storage.join(config.out, 'report/index.html')}")
    lines.append(f"mlflow   {tracker.link}")
    sys.stdout.write("\n".join(lines) + "\n")
