"""Kills of a tokenization at random moments, while it lists and while it works, until it has had so many.

    python -m tests.benchmarks.kills                   20 kills, on Ray

A corpus in SA-1B's layout is tokenized once in peace, and once with SIGKILL of the driver and all of Ray's
processes: half of the kills fall up to 1.5 s after the listing began, the others while shards are made. A
killed run is started again as its user would. In the end data, rejects and plan must be equal byte by byte.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from pipelines import storage
from pipelines.ingestion.config import ShapesConfig
from pipelines.ingestion.shapes_corpus import make_shapes
from samtok.shapes import WorldConfig
from tests.corpora import save_micro_tokenizer
from tests.jobs import Job, commits, data_digests, job, read_manifest, run_job

SHARD_ROWS = 4


def flags_of(home: Path, out: Path) -> list[str]:
    """Returns the flags of the tokenization."""
    return [
        *("--corpus.reader", "sa1b", "--corpus.source", str(home / "shapes"), "--corpus.dataset", "sa1b"),
        *("--out", str(out), "--tokenizer", str(home / "micro"), "--shard-rows", str(SHARD_ROWS)),
        *("--chunk-rows", "2", "--reconstruct", "0.5", "--tracking", "off", "--report-images", "0"),
    ]


def kill_while_listing(running: Job, out: Path, rng: random.Random) -> str:
    """Kills the run at a random moment after the listing began; returns what it had done."""
    running.until(lambda: (out / "index").exists() or (out / "plan.json").exists())
    time.sleep(rng.uniform(0, 1.5))
    running.kill()
    parts = [file for file in storage.list_files(str(out / "index"), suffix=".json") if "part-" in file.uri]
    planned = (out / "plan.json").exists()
    storage.delete(str(out / "plan.json"))  # so that the next run lists and plans as well
    return f"{len(parts)} parts listed, {'planned' if planned else 'no plan yet'}"


def kill_while_working(running: Job, out: Path, shards: int, rng: random.Random) -> str:
    """Kills the run after a random number of further shards; returns what was committed."""
    aim = min(commits(out) + rng.randint(0, 3), shards - 1)
    running.until(lambda: (out / "plan.json").exists() and commits(out) >= aim)
    done = commits(out)
    running.kill()
    return f"{done} of {shards} shards"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
        home = Path(folder)
        world = WorldConfig.square(64)
        make_shapes(
            ShapesConfig(
                out=str(home / "shapes"),
                format="sa1b",
                num_images=args.images,
                images_per_folder=10,
                world=world,
            )
        )
        save_micro_tokenizer(home / "micro")
        shards = -(-args.images // SHARD_ROWS)
        whole, out, log = home / "whole", home / "killed", home / "killed.log"
        code, output = run_job("tokenize_corpus", *flags_of(home, whole), log=home / "whole.log")
        assert code == 0, output[-3000:]
        killed = 0
        while killed < args.kills:
            with job("tokenize_corpus", *flags_of(home, out), log=log) as running:
                listing = killed < args.kills // 2
                if listing:
                    when = kill_while_listing(running, out, rng)
                else:
                    when = kill_while_working(running, out, shards, rng)
            killed += 1
            print(f"kill {killed} | {when}", flush=True)
        code, output = run_job("tokenize_corpus", *flags_of(home, out), log=home / "last.log")
        assert code == 0, output[-3000:]
        same = data_digests(read_manifest(out)) == data_digests(read_manifest(whole))
        plans = [
            {file.name: file.read_bytes() for file in (one / "plan").rglob("*.parquet")}
            for one in (whole, out)
        ]
        same_plan = (
            plans[0] == plans[1] and (whole / "plan.json").read_bytes() == (out / "plan.json").read_bytes()
        )
        print(f"equal data and rejects: {same}; equal plan: {same_plan}")
        sys.exit(0 if same and same_plan else 1)


if __name__ == "__main__":
    main()
