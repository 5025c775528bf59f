"""Kills of a tokenization at random moments, while it lists and while it works, until it has had so many.

    python -m tests.benchmarks.kills                   20 kills, on Ray

A corpus in SA-1B's layout, small archives on an S3 server, is tokenized once in peace, and once with SIGKILL
of the driver and all of Ray's processes: half of the kills fall after a random number of archives was listed,
the others while shards are made. A killed run is started again as its user would. In the end data, rejects
and plan must be equal byte by byte.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from pipelines import storage
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import make_shapes
from samtok.shapes import WorldConfig
from tests.corpora import save_micro_tokenizer
from tests.jobs import Job, commits, data_digests, job, read_manifest, run_job
from tests.s3_server import S3Server

SHARD_ROWS = 4
PER_ARCHIVE = 2


def flags_of(home: Path, source: str, out: Path) -> list[str]:
    """Returns the flags of the tokenization."""
    return [
        *("--corpus.reader", "sa1b", "--corpus.source", source, "--corpus.dataset", "sa1b"),
        *("--out", str(out), "--tokenizer", str(home / "micro"), "--shard-rows", str(SHARD_ROWS)),
        *("--chunk-rows", "2", "--reconstruct", "0.5", "--tracking", "off", "--report-images", "0"),
    ]


def kill_while_listing(running: Job, out: Path, archives: int, rng: random.Random) -> str:
    """Kills the run after a random number of further archives was listed; returns what it had done."""
    aim = min(parts_in(out) + rng.randint(0, 8), archives - 1)
    running.until(lambda: parts_in(out) >= aim or (out / "plan.json").exists())
    time.sleep(rng.uniform(0, 0.1))
    running.kill()
    planned = "planned" if (out / "plan.json").exists() else "no plan yet"
    return f"{parts_in(out)} of {archives} archives listed, {planned}"


def parts_in(out: Path) -> int:
    """Returns how many parts of the corpus are listed, by their proofs."""
    return sum("part-" in file.uri for file in storage.list_files(str(out / "index"), suffix=".json"))


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
    with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
        server = S3Server(Path(folder) / "s3")
        server.start()
        os.environ.update(server.env)
        try:
            sys.exit(run(Path(folder), f"{server.make_bucket('kills')}/shapes", args))
        finally:
            server.stop()


def run(home: Path, source: str, args: argparse.Namespace) -> int:
    """Kills and compares; returns the exit code."""
    rng, world = random.Random(args.seed), WorldConfig.square(64)
    layout = {"format": "sa1b", "layout": "tar", "images_per_folder": PER_ARCHIVE}
    make_shapes(ShapesConfig(out=source, num_images=args.images, world=world, **layout))
    save_micro_tokenizer(home / "micro")
    shards, archives = -(-args.images // SHARD_ROWS), -(-args.images // PER_ARCHIVE)
    whole, out, log = home / "whole", home / "killed", home / "killed.log"
    code, output = run_job("tokenize_corpus", *flags_of(home, source, whole), log=home / "whole.log")
    assert code == 0, output[-3000:]
    for number in range(args.kills):
        with job("tokenize_corpus", *flags_of(home, source, out), log=log) as running:
            if number < args.kills // 2:
                when = kill_while_listing(running, out, archives, rng)
            else:
                when = kill_while_working(running, out, shards, rng)
        print(f"kill {number + 1} | {when}", flush=True)
    code, output = run_job("tokenize_corpus", *flags_of(home, source, out), log=home / "last.log")
    assert code == 0, output[-3000:]
    same = data_digests(read_manifest(out)) == data_digests(read_manifest(whole))
    plans = [
        {file.name: file.read_bytes() for file in (one / "plan").rglob("*.parquet")} for one in (whole, out)
    ]
    heads = [(one / "plan.json").read_bytes() for one in (whole, out)]
    same_plan = plans[0] == plans[1] and heads[0] == heads[1]
    print(f"equal data and rejects: {same}; equal plan: {same_plan}")
    return 0 if same and same_plan else 1


if __name__ == "__main__":
    main()
