"""Whether two checkouts write the same bytes: small deterministic jobs, and a digest of every shard.

    python -m tests.benchmarks.shard_bytes --out before.json                 of this checkout
    python -m tests.benchmarks.shard_bytes --out after.json --root OTHER     of another one
    python -m tests.benchmarks.shard_bytes --compare before.json after.json

Both runs must be in the same folder (--work), since rows and fingerprints hold the places of their images. A
shard that differs is exit code 1; entries of fingerprints that differ are named. Takes four minutes.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

SMALL = "--preset tour-val --num-images 24"
QUIET = "--report-images 0 --tracking off"
TABLE: tuple[tuple[str, str, str], ...] = (
    ("shapes-coco", "make_shapes", f"{SMALL} --format coco --crowd-share 0.1"),
    ("shapes-refer", "make_shapes", f"{SMALL} --format refer"),
    ("shapes-granf", "make_shapes", f"{SMALL} --format granf"),
    ("shapes-sa1b", "make_shapes", f"{SMALL} --format sa1b --layout tar --images-per-folder 16"),
    (
        "words-coco",
        "tokenize_corpus",
        "--corpus.reader coco --corpus.source shapes-coco/annotations/instances_val.json --tokenizer tiny "
        f"--corpus.images shapes-coco/val --shard-rows 10 --chunk-rows 4 --reconstruct 1 "
        f"--boundary-iou {QUIET}",
    ),
    (
        "words-refer",
        "tokenize_corpus",
        "--corpus.reader refer --corpus.source shapes-refer/grefs.json --corpus.images shapes-refer/val "
        f"--corpus.dataset refer --corpus.split val --tokenizer tour --reconstruct 1 {QUIET}",
    ),
    (
        "words-granf",
        "tokenize_corpus",
        "--corpus.reader granf --corpus.source shapes-granf/granf.json --corpus.images shapes-granf/val "
        f"--corpus.dataset granf --tokenizer tour --reconstruct 1 {QUIET}",
    ),
    (
        "words-sa1b",
        "tokenize_corpus",
        f"--corpus.reader sa1b --corpus.source shapes-sa1b --tokenizer tiny {QUIET}",
    ),
    (
        "chats",
        "compose_dialogues",
        "--words words-refer words-granf --tasks res=1,gres=0.8,grounding=0.5,instances=0.5,gcg=1 --styles "
        "words json sentence --turns-per-sample 2 --export ms-swift --report-samples 0 --tracking off",
    ),
    (
        "imported",
        "compose_dialogues",
        "--chats.source chats/export/ms-swift/shard-00000.jsonl --chats.num-codes 8 --report-samples 0 "
        "--tracking off",
    ),
    (
        "questions",
        "compose_dialogues",
        "--words words-refer --tasks gres --wordings 1 --report-samples 0 --tracking off",
    ),
    (
        "answers",
        "evaluate_mllm",
        "--benchmark gres --model tour-mllm --chats questions --tokenizer tour --limit 4 --shard-rows 2 "
        "--generation.max-new-tokens 40 --report-pictures 0 --tracking off",
    ),
)
"""Name, which is the folder, job and flags of each run."""


def main() -> int:
    """Runs the table, or compares two results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file of digests")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout; this one by default")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "samtok-bytes")
    parser.add_argument("--only", nargs="*", help="some of the table, with what they read")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        before, after = (json.loads(path.read_text()) for path in options.compare)
        found = differences(before, after)
        print("\n".join(found))
        return int(any(line.startswith("bytes") for line in found))
    if options.out is None:
        parser.error("give --out, or --compare")
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    for name, job, flags in TABLE:
        if options.only is None or name in options.only:
            run(options.root.resolve(), options.work, name, job, flags)
    options.out.write_text(json.dumps(collect(options.work), indent=1, sort_keys=True) + "\n")
    return 0


def run(root: Path, work: Path, name: str, job: str, flags: str) -> None:
    """Runs a job of a checkout; ends the program if it fails."""
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if "jsonl: " in (root / "pipelines/dialogues/config.py").read_text():  # as the flags were called before
        flags = flags.replace("--chats.source", "--jsonl.source").replace("--chats.num", "--jsonl.num")
    command = [sys.executable, str(root / "jobs" / f"{job}.py"), *shlex.split(flags), "--out", name]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    print(f"{name}: exit {done.returncode}", flush=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def collect(work: Path) -> dict[str, Any]:
    """Returns digests of all files that a folder's jobs made, and the fingerprints of plans."""
    found: dict[str, Any] = {}
    for folder in sorted(path for path in work.iterdir() if path.is_dir()):
        plan = folder / "plan.json"
        kinds = ("data/*.parquet", "rejects/*.parquet", "plan/*/*.parquet", "export/*/*")
        paths = [path for kind in kinds for path in folder.glob(kind)] if plan.exists() else folder.rglob("*")
        digests = {
            _name(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(paths)
            if path.is_file()
        }
        prints = json.loads(plan.read_text())["fingerprint"] if plan.exists() else {}
        found[folder.name] = {"files": digests, "fingerprint": prints}
    return found


def _name(path: Path) -> str:
    """Returns a file's name without the parts that hold a digest."""
    name = re.sub(r"-[0-9a-f]{8}(?=\.parquet$)", "", path.as_posix())
    return re.sub(r"^plan/[0-9a-f]{8}/", "plan/", name)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names every file whose bytes differ and every entry of a fingerprint that does."""
    found = []
    for name in sorted({*before, *after}):
        for what, word in (("files", "bytes"), ("fingerprint", "fingerprint")):
            old, new = before.get(name, {}).get(what, {}), after.get(name, {}).get(what, {})
            changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            found += [f"{word} {name} {key}: {old.get(key)} -> {new.get(key)}" for key in changed]
    total = sum(len(one["files"]) for one in before.values())
    return [*found, f"{sum(line.startswith('bytes') for line in found)} of {total} files differ"]


if __name__ == "__main__":
    raise SystemExit(main())
