"""How fast each reader lists and reads, and what memory that takes: synthetic corpora in each layout.

    python -m tests.benchmarks.readers
    python -m tests.benchmarks.readers --formats coco --images 20000

A corpus is written to a temporary folder; a process of its own lists it, and then reads every record, so its
peak memory is that of the reader. MB are those of all files but the images. Of ``coco`` the time of
``json.load`` of the same file is beside it, and reading by several processes, as a job reads. Corpora
of 20,000 images take about an hour.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.ingestion.corpora import CorpusSpec
from pipelines.ingestion.reader import Input, read_record
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import make_shapes
from samtok.shapes import WorldConfig
from tests.benchmarks.measuring import machine
from tests.benchmarks.planning import measured

SIDE_PX = 64
PHOTOGRAPHS = (".jpg", ".jpeg")
CHUNK = 256

READERS: dict[str, str] = {
    "coco": "reader=coco,source=annotations/instances_train.json,images=train",
    "sa1b": "reader=sa1b,source=.",
    "refer": "reader=refer,source=grefs.json,images=train",
    "granf": "reader=granf,source=granf.json,images=train",
    "psg": "reader=psg,source=psg.json,images=.",
    "dam": "reader=dam,source=annotations.json,images=.",
    "panoptic": "reader=panoptic,source=annotations/panoptic_train.json,images=train",
    "ade20k": "reader=labelmap,encoding=ade20k_instances,source=ADE/training,images=ADE/training",
    "cityscapes": "reader=labelmap,encoding=cityscapes,source=gtFine/train,images=leftImg8bit/train",
    "cityscapes_polygons": "reader=cityscapes_polygons,source=gtFine/train,images=leftImg8bit/train",
    "masks": "reader=masks,source=masks/train,images=train",
    "labelme": "reader=labelme,source=train,images=train",
    "yolo": "reader=yolo,source=labels/train,images=images/train",
    "reasonseg": "reader=reasonseg,source=train,images=train",
    "lisa": "reader=lisa,source=data.json,images=train",
    "pixelweb": "reader=pixelweb,source=train,images=train",
    "gar": "reader=gar,source=.",
    "segllm": "reader=segllm,source=mr_refcoco_train.json,images=.,mask_files=refcoco=instances.json",
    "mevis": "reader=video,video_layout=mevis,source=train/meta_expressions.json,images=train/JPEGImages",
}
"""What each format of make_shapes is read by, with places below its folder."""


VIDEOS = ("mevis",)


def listed(root: str, text: str) -> dict[str, Any]:
    """Lists a corpus."""
    started = time.perf_counter()
    images = sum(isinstance(item, Input) for item in _spec(root, text).reader().inputs())
    return {"images": images, "list_s": time.perf_counter() - started}


def read(root: str, text: str) -> dict[str, Any]:
    """Lists a corpus, and reads each record as it comes."""
    reader = _spec(root, text).reader()
    masks = rejects = 0
    for item in reader.inputs():
        if isinstance(item, Input):
            result = read_record(reader, item)
            masks += 0 if result.row is None else len(result.row["masks"])
            rejects += len(result.rejects)
    return {"masks": masks, "rejects": rejects}


def read_by(root: str, text: str, workers: int) -> dict[str, Any]:
    """Lists a corpus here, and reads its records in so many processes."""
    reader = _spec(root, text).reader()
    items: list[Input] = [item for item in reader.inputs() if isinstance(item, Input)]
    parts = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ProcessPoolExecutor(workers) as pool:
        masks = sum(pool.map(_read_some, [(root, text, part) for part in parts]))
    return {"masks": masks}


def _read_some(task: tuple[str, str, Sequence[Input]]) -> int:
    root, text, items = task
    reader = _spec(root, text).reader()
    rows = [read_record(reader, item).row for item in items]
    return sum(len(row["masks"]) for row in rows if row is not None)


def json_load(root: str, text: str) -> dict[str, Any]:
    """Loads the JSON of a corpus whole."""
    with Path(_spec(root, text).corpus.source).open("rb") as file:
        return {"entries": len(json.load(file)["annotations"])}


def _spec(root: str, text: str) -> CorpusSpec:
    return CorpusSpec.parse(text, flag="corpora").absolute(root)


def annotations_mb(root: Path) -> float:
    """Returns the size of all files of a corpus but its photographs."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix not in PHOTOGRAPHS)
    return sum(path.stat().st_size for path in files) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--formats", nargs="+", default=list(READERS), choices=list(READERS))
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/readers.json"))
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    print("| format | images | masks | MB | listed, s | listed and read, s | images/s | MB/s | peak MB |")
    for name in args.formats:
        with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
            root = Path(folder) / name
            world = WorldConfig.square(SIDE_PX)
            shapes = ShapesConfig(out=str(root), format=name, num_images=args.images, world=world)
            if name in VIDEOS:  # each with several frames
                shapes = replace(shapes, num_images=args.images // shapes.frames)
            assert make_shapes(shapes) == 0
            size, text = annotations_mb(root), READERS[name]
            first, whole = measured(listed, str(root), text), measured(read, str(root), text)
            images, took = first["images"], whole["seconds"]
            rows[name] = {"listed": first, "read": whole, "mb": size}
            numbers = (images, whole["masks"], f"{size:.1f}", f"{first['list_s']:.1f}", f"{took:.1f}")
            rates = (f"{images / took:.0f}", f"{size / took:.2f}", f"{whole['driver_mb']:.0f}")
            print(f"| {' | '.join(map(str, (name, *numbers, *rates)))} |", flush=True)
            if name == "coco":
                loaded = measured(json_load, str(root), text)
                shared = measured(read_by, str(root), text, args.workers)
                rows[name] |= {"json_load": loaded, "shared": shared}
                ratio = first["list_s"] / loaded["seconds"]
                print(
                    f"coco: listing takes {ratio:.2f} times as long as json.load, {loaded['seconds']:.1f} s; "
                    f"listed and read by {args.workers} processes in {shared['seconds']:.1f} s",
                    flush=True,
                )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
