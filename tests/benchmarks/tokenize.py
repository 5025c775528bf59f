"""How fast masks become words, as ratios measured in one run.

    python -m tests.benchmarks.tokenize                              # all parts with the shipped tokenizer
    python -m tests.benchmarks.tokenize --parts encode --preset sam2.1-large --masks 1 8
    python -m tests.benchmarks.tokenize --parts encode --preset sam2.1-large --device cuda --dtype bfloat16

``encode`` compares encoding an image once for all its masks with encoding it again for every mask, as the
authors' code does. ``job`` compares the Ray job at steady state with a bare loop over the same files.
``host`` times what the host does per image, with the device stubbed (``tokenize_host``).
``memory`` compares the peak memory of the job on a corpus and on one ten times as large.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from pipelines.ingestion.synthetic.config import HELD_OUT_INDEX, ShapesConfig
from pipelines.ingestion.synthetic.corpus import make_shapes
from samtok import images, masks
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import WorldConfig
from tests.benchmarks.measuring import ellipses, machine, seconds
from tests.benchmarks.tokenize_host import host_part
from tests.jobs import job

PARTS = ("encode", "job", "host", "memory")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def main() -> int:
    """Runs the parts that are asked for, prints a table each and saves all figures as JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    found: dict = {"machine": machine(options.device), "options": vars(options)}
    if "encode" in options.parts:
        found["encode"] = encode_part(options)
    if "job" in options.parts:
        found["job"] = job_part(options)
    if "host" in options.parts:
        found["host"] = host_part(options)
    if "memory" in options.parts:
        found["memory"] = memory_part(options)
    options.output.write_text(json.dumps(found, indent=2, default=str) + "\n")
    print(f"saved {options.output}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--preset", default="tiny", help="tiny (shipped weights) or any preset, with random weights"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--masks", nargs="+", type=int, default=[1, 8, 32], help="masks per image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000, help="images of the job part; a tenth for memory")
    parser.add_argument("--output", type=Path, default=Path("benchmark_tokenize.json"))
    return parser.parse_args()


def _tokenizer(options: argparse.Namespace) -> MaskTokenizer:
    if options.preset == "tiny":
        return MaskTokenizer.from_pretrained("tiny", device=options.device, dtype=DTYPES[options.dtype])
    torch.manual_seed(0)
    model = MaskTokenizer.from_preset(options.preset).to(options.device).eval().requires_grad_(False)
    model.autocast_dtype = DTYPES[options.dtype]
    return model


def encode_part(options: argparse.Namespace) -> list[dict]:
    """Times encode-once against re-encoding the image for every mask, in turn."""
    tokenizer = _tokenizer(options)
    side = tokenizer.config.image_size
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    rows = []
    print(f"\nencode, {options.preset} at {side} px on {options.device} ({options.dtype})")
    print(f"{'masks':>6} {'once masks/s':>13} {'per mask masks/s':>17} {'ratio':>7}")
    for count in options.masks:
        some = ellipses(count, side)
        ratios, once, again = [], [], []
        tokenizer.encode(image, some)  # warm-up
        for _ in range(options.repeats):
            once.append(seconds(lambda some=some: tokenizer.encode(image, some)))
            again.append(seconds(lambda some=some: [tokenizer.encode(image, [mask]) for mask in some]))
            ratios.append(again[-1] / once[-1])
        row = {
            "masks_per_image": count,
            "encode_once_masks_per_s": count / statistics.median(once),
            "encode_per_mask_masks_per_s": count / statistics.median(again),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
        rows.append(row)
        print(
            f"{count:>6} {row['encode_once_masks_per_s']:>13.2f} "
            f"{row['encode_per_mask_masks_per_s']:>17.2f} {row['ratio']:>7.2f}"
        )
    return rows


def _corpus(home: Path, count: int) -> list[str]:
    config = ShapesConfig(
        out=str(home / f"shapes{count}"),
        first_index=HELD_OUT_INDEX,
        num_images=count,
        split="val",
        world=WorldConfig(),
    )
    assert make_shapes(config) == 0
    root = Path(config.out)
    return [
        *("--corpus.reader", "coco", "--corpus.source", str(root / "annotations/instances_val.json")),
        *("--corpus.images", str(root / "val"), "--corpus.dataset", "shapes"),
    ]


def job_part(options: argparse.Namespace) -> dict:
    """Compares the job's masks per second after its start-up with a bare loop over the same files."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        corpus = _corpus(home, options.images)
        bare_before = bare_loop(home / f"shapes{options.images}", options)
        run = _run_job(home, corpus, options, "words")
        bare_after = bare_loop(home / f"shapes{options.images}", options)
    bare = statistics.mean([bare_before, bare_after])
    found = {
        "images": options.images,
        "bare_loop_masks_per_s": bare,
        "job_steady_masks_per_s": run["steady_masks_per_s"],
        "job_whole_masks_per_s": run["masks_per_s"],
        "ratio": run["steady_masks_per_s"] / bare,
    }
    print(f"\njob, {options.images} images, one tokenizer actor with {options.threads} threads")
    for name, value in found.items():
        print(f"{name:>26} {value:>10.2f}")
    return found


def bare_loop(root: Path, options: argparse.Namespace) -> float:
    """Reads, decodes and tokenizes a corpus in this process, batch by batch; returns masks per second."""
    tokenizer = _tokenizer(options)
    body = json.loads((root / "annotations/instances_val.json").read_text())
    of_image: dict[int, list] = {}
    for annotation in body["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
    started, count = time.perf_counter(), 0
    for start in range(0, len(body["images"]), 4):
        batch, wanted = [], []
        for record in body["images"][start : start + 4]:
            path = root / "val" / record["file_name"]
            batch.append(images.decode_image(path.read_bytes(), where=str(path)))
            size = {"height": record["height"], "width": record["width"]}
            rles = [masks.to_counts(s, **size) for s in of_image.get(record["id"], [])]
            wanted.append([masks.decode(rle, **size) for rle in rles if rle])
        count += sum(len(codes) for codes in tokenizer.encode_batch(batch, wanted))
    return count / (time.perf_counter() - started)


def _run_job(
    home: Path, corpus: list[str], options: argparse.Namespace, name: str, *, watch: bool = False
) -> dict:
    out = home / name
    gpus = "1" if options.device == "cuda" else "0"
    flags = [
        *(*corpus, "--out", str(out), "--tracking", "off", "--report-images", "0", "--shard-rows", "128"),
        *("--tokenizer", "tiny", "--precision", options.dtype),
        *("--worker.gpus", gpus, "--worker.threads", str(options.threads)),
    ]
    with job("tokenize_corpus", *flags, log=home / f"{name}.log") as running:
        peaks = _watch(running.process.pid) if watch else {}
        assert running.wait(3600) == 0, running.output()[-3000:]
    return {**json.loads((out / "last_run.json").read_text()), "peaks_mb": peaks}


def memory_part(options: argparse.Namespace) -> dict:
    """Compares the peak memory (USS) of driver and workers on a corpus and on one ten times as large."""
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for count in (options.images // 10, options.images):
            corpus = _corpus(home, count)
            found[str(count)] = _run_job(home, corpus, options, f"words{count}", watch=True)["peaks_mb"]
    small, large = found.values()
    print(f"\nmemory, peak MB by role, {options.images // 10} against {options.images} images")
    for role in sorted(small):
        found.setdefault("ratio", {})[role] = large[role] / small[role]
        print(f"{role:>12} {small[role]:>9.0f} {large[role]:>9.0f} {large[role] / small[role]:>7.2f}")
    return found


ROLES = {"driver": "jobs/tokenize_corpus.py", "decoding": "ReadImages", "tokenizing": "TokenizeCarefully"}


def _watch(pid: int) -> dict[str, float]:
    """Samples the memory of a job's processes in a thread; the dictionary holds the peaks so far."""
    peaks = dict.fromkeys(ROLES, 0.0)

    def sample() -> None:
        while psutil.pid_exists(pid):
            try:
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            now = dict.fromkeys(ROLES, 0.0)
            for process in family:
                try:
                    command = " ".join(process.cmdline())
                    role = next((r for r, part in ROLES.items() if part in command), None)
                    if role is not None:
                        now[role] += process.memory_full_info().uss / 2**20
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue
            for role, value in now.items():
                peaks[role] = max(peaks[role], value)
            time.sleep(0.5)

    threading.Thread(target=sample, daemon=True).start()
    return peaks


if __name__ == "__main__":
    raise SystemExit(main())
