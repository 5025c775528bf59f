"""Planning corpora of full size: time and memory of the driver.

    python -m tests.benchmarks.planning                      SA-1B's listing, a COCO file, commit records
    python -m tests.benchmarks.planning --parts coco

``listing`` lists 10 million pairs of a store that waits 20 ms with every request (``tests/slow_store.py``),
makes the plan of 43,000 shards or so, and then resumes it with half of them committed, up to the first blocks
that actors would get. ``commits`` reads 43,000 commit records: one by one, and in groups. ``coco`` plans COCO
files of 10^4 and 10^6 images on the local disk. Memory is the most that the driver's process had (resident);
the time for ``listing`` has Ray's start in it.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipelines import env, schema, shards, storage
from pipelines.ingestion.coco import CocoReader
from pipelines.ingestion.corpora import CorpusConfig
from pipelines.ingestion.sidecar import Sa1bReader
from pipelines.planning import listing, plans
from pipelines.reports import words
from pipelines.shards import Plan
from samtok import masks
from tests.benchmarks.measuring import machine

SETTINGS = {"kind": "words", "num_levels": 2, "num_codes": 256}
ROWS = {"shard_rows": 256, "chunk_rows": 16}
SOURCE, OUT = "s3://made/sa1b", "s3://own/out"
MAX_RSS_BYTES_PER_UNIT = 1024  # of ``ru_maxrss`` on Linux
"""Of a commit record: each code once in both levels, as 256 images of 20 masks have them."""


@contextlib.contextmanager
def slow_store(latency_ms: float, pairs: int) -> Iterator[None]:
    """A store that waits, for this process and those it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.slow_store", "--port", str(port)]
    server = subprocess.Popen([*command, "--latency-ms", str(latency_ms), "--pairs", str(pairs)])
    os.environ |= {
        env.AWS_ENDPOINT_URL: f"http://127.0.0.1:{port}",
        env.AWS_ACCESS_KEY_ID: "any",
        env.AWS_SECRET_ACCESS_KEY: "any",
        env.AWS_REGION: "us-east-1",
    }
    try:
        yield
    finally:
        server.kill()
        server.wait()


def measured(work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Returns what a call returns, in a process of its own, with its seconds and most memory in MB."""
    context = get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_measure, args=(queue, work, args))
    process.start()
    result = queue.get()
    process.join()
    return result


def _measure(queue: Any, work: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    started = time.monotonic()
    found = work(*args)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAX_RSS_BYTES_PER_UNIT / 2**20
    queue.put({"seconds": time.monotonic() - started, "driver_mb": most, **found})


def reader() -> Sa1bReader:
    """Reads what the store makes up."""
    return Sa1bReader(name="sa1b", split="train", source=SOURCE)


def plan_listing(cpus: int) -> dict[str, Any]:
    """Lists and plans the corpus as tokenization does, but opens no images, of which there are none."""
    from pipelines.tokenization.config import TokenizeCorpusConfig
    from pipelines.tokenization.run import listing_workers

    corpus = CorpusConfig(reader="sa1b", source=SOURCE)
    config = TokenizeCorpusConfig(corpus=corpus, out=OUT, tokenizer="tiny", num_cpus=cpus)
    with listing_workers(config) as workers:
        plan = open_plan(lambda: listing.inputs_of(reader(), f"{OUT}/index", workers))
    return {"images": plan.num_inputs, "shards": len(plan.shard_rows)}


def open_plan(inputs: Callable[[], Any]) -> Plan:
    """Opens or makes the plan."""
    return plans.open_plan(OUT, SETTINGS, inputs, **ROWS, witness=reader().witness)


def resume() -> dict[str, Any]:
    """Opens the plan again, and takes what Ray Data would be given first."""
    from pipelines.tokenization.run import _blocks

    plan = open_plan(lambda: ())
    done = shards.committed(plan)
    groups = shards.Groups(plan)
    for shard in done:
        groups.add(shard)
    todo = [shard for shard in range(len(plan.shard_rows)) if shard not in done]
    blocks = next(_blocks(plan, todo))
    return {"committed": len(done), "first_block": blocks[0].to_pylist()[0]["shard"]}


def read_commits() -> dict[str, Any]:
    """Reads all commit records of the plan."""
    plan = shards.load_plan(OUT)
    assert plan is not None
    return {"records": sum(1 for _ in shards.records_of(plan))}


def finish() -> dict[str, Any]:
    """Finishes the corpus, and reads what its report says of it."""
    plan = shards.load_plan(OUT)
    assert plan is not None
    shards.finish(plan)
    metrics = words.summary(words.load_corpus(OUT).manifest)
    return {"shards": metrics["corpus/shards"], "size_mb": storage_mb(f"{OUT}/{shards.MANIFEST}")}


def storage_mb(uri: str) -> float:
    """Returns the size of an object."""
    return len(storage.read_bytes(uri)) / 2**20


def write_groups() -> dict[str, Any]:
    """Writes the groups that a run would have written as it went."""
    plan = shards.load_plan(OUT)
    assert plan is not None
    groups = shards.Groups(plan)
    for shard in range(len(plan.shard_rows)):
        groups.add(shard)
    return {}


def write_plan(count: int) -> None:
    """Writes a plan of so many shards, without plan files."""
    plan = Plan(OUT, SETTINGS, ROWS["chunk_rows"], (ROWS["shard_rows"],) * count, None)
    body = {"schema_version": schema.SCHEMA_VERSION, **dataclasses.asdict(plan)}
    storage.write_bytes(f"{OUT}/{shards.PLAN}", json.dumps(body).encode())


def commit_records(count: int) -> None:
    """Lets the store have so many commit records of the plan."""
    plan = shards.load_plan(OUT)
    assert plan is not None
    codes = [[code, 1 + code % 90] for code in range(256)]
    file = {"file": "data/shard-00000-01234567.parquet", "bytes": 10**6, "sha256": "0" * 64}
    record = {
        "fingerprint": shards.digest(plan.fingerprint),
        "data": file,
        "rejects": file,
        "counts": dict.fromkeys(shards.COUNTS["words"], 5000) | {"rows_in": ROWS["shard_rows"]},
        "code_histogram": [codes, codes],
        "iou_histogram": list(range(100)),
        "iou_sum": 4000.0,
        "iou_count": 5000,
        "reject_reasons": {},
    }
    storage.write_bytes(f"{OUT}/made-commits", json.dumps({"count": count, "record": record}).encode())


def write_coco(path: Path, images: int) -> None:
    """Writes a COCO file with three masks an image, annotations in random order."""
    rng = random.Random(0)
    import numpy as np

    mask = np.zeros((480, 640), bool)
    mask[100:300, 200:400] = np.random.default_rng(0).random((200, 200)) > 0.02
    segmentation = json.dumps({"size": [480, 640], "counts": masks.encode(mask)[:400]})
    owners = [image for image in range(images) for _ in range(3)]
    rng.shuffle(owners)
    with path.open("w") as file:
        file.write('{"images": [')
        for image in range(images):
            name = f'"file_name": "{image:012d}.jpg"'
            file.write(f'{", " * (image > 0)}{{"id": {image}, {name}, "height": 480, "width": 640}}')
        file.write('], "annotations": [')
        for number, owner in enumerate(owners):
            of = f'"image_id": {owner}, "category_id": 1, "segmentation": {segmentation}'
            file.write(f'{", " * (number > 0)}{{"id": {number}, {of}}}')
        file.write('], "categories": [{"id": 1, "name": "thing"}]}')


def plan_coco(source: str, out: str) -> dict[str, Any]:
    """Plans a COCO file."""
    coco = CocoReader(name="coco", split="train", source=source, images="images")
    plan = plans.open_plan(out, SETTINGS, coco.inputs, **ROWS, witness=coco.witness)
    return {"images": plan.num_inputs, "file_mb": Path(source).stat().st_size / 2**20}


def row(name: str, found: dict[str, Any]) -> None:
    others = ", ".join(
        f"{key} {value}" for key, value in found.items() if key not in ("seconds", "driver_mb")
    )
    print(f"{name} | {found['seconds']:.1f} s | {found['driver_mb']:.0f} MB | {others}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=("listing", "commits", "coco"))
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--commits", type=int, default=43_000)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--coco-images", type=int, nargs="+", default=(10**4, 10**6))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/planning.json"))
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    if "listing" in args.parts:
        with slow_store(args.latency_ms, args.pairs):
            rows["plan"] = measured(plan_listing, args.cpus)
            row("listing and plan", rows["plan"])
            commit_records(rows["plan"]["shards"] // 2)
            rows["resume_before"] = measured(resume)
            row("resume, half committed, no groups yet", rows["resume_before"])
            rows["resume"] = measured(resume)
            row("resume, half committed", rows["resume"])
    if "commits" in args.parts:
        with slow_store(args.latency_ms, 1):
            write_plan(args.commits)
            commit_records(args.commits)
            rows["commits"] = measured(read_commits)
            row("commit records, one by one", rows["commits"])
            measured(write_groups)
            rows["groups"] = measured(read_commits)
            row("commit records in groups", rows["groups"])
            rows["finish"] = measured(finish)
            row("the manifest is written, and read for the report", rows["finish"])
    if "coco" in args.parts:
        for images in args.coco_images:
            with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
                source = Path(folder) / "instances.json"
                write_coco(source, images)
                rows[f"coco_{images}"] = measured(plan_coco, str(source), f"{folder}/out")
                row(f"COCO, {images} images", rows[f"coco_{images}"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
