"""Writes a corpus of words for other programs.

    python -m pipelines.tools.export_words runs/words --format coco --out runs/coco
    python -m pipelines.tools.export_words runs/words --format huggingface --out runs/dataset

    coco          OUT/results.json: COCO results, a mask decoded from each word; the score is its IoU, 1 where
                  it is not known
                  OUT/instances.json: the ground truth, the masks that the rows have kept
    huggingface   OUT/data/train-*.parquet: rows with their images, words, masks and texts, for
                  datasets.load_dataset(OUT); `--corpus.reader parquet` reads them too

An image that is gone by now is left out and counted.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines import job as runs
from pipelines import rejects, schema, shards, storage
from pipelines.ingestion.image_source import read_image, read_image_bytes
from pipelines.reports import words
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger("pipelines.tools.export_words")  # also when it runs as __main__

Row = dict[str, Any]

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES = {"image": {"_type": "Image"}}
"""What Hugging Face's datasets are told of columns whose type Arrow does not say."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tools.export_words",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("uri", metavar="URI", help="folder of a finished corpus of words: a local path or s3://bucket/prefix")
    add("--format", required=True, choices=("coco", "huggingface"))
    add("--out", required=True, metavar="FOLDER", help="where the files go; local or s3://")
    add("--tokenizer", metavar="URI", help="coco: decodes the words; by default the one that made them")
    flags = parser.parse_args(argv)
    return runs.guard(lambda: export(flags))


def export(flags: argparse.Namespace) -> int:
    """Writes the files; returns an exit code."""
    uri = flags.uri.rstrip("/")
    manifest = shards.require_manifest(uri, flag="URI", job="tokenize_corpus")
    if (kind := shards.kind_of(manifest["fingerprint"])) != "words":
        raise ConfigError(f"{uri} is a corpus of {kind}, expected one of words.")
    lost: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
        if flags.format == "coco":
            tokenizer = _tokenizer(flags.tokenizer or manifest["fingerprint"]["tokenizer"], manifest)
            written = write_coco(rows_of(uri, manifest), tokenizer, Path(folder), lost)
        else:
            written = write_dataset(uri, manifest, Path(folder), lost)
        if not written:
            raise DataError(f"no image of {uri} can be read: {dict(lost)}", reason="no_rows")
        storage.put_folder(Path(folder), flags.out)
    said = f"images    {written} written to {flags.out}"
    said += "".join(f", {count} left out as {reason}" for reason, count in lost.most_common())
    sys.stdout.write(rejects.printable(said) + "\n")
    return 0


def _tokenizer(uri: str, manifest: Mapping[str, Any]) -> MaskTokenizer:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = MaskTokenizer.from_pretrained(uri, device=device, read=storage.read_bytes)
    made_by = manifest["fingerprint"]["weights_sha256"]
    if tokenizer.weights_sha256 != made_by:
        raise ConfigError(f"--tokenizer {uri} has not made these words: its weights are not {made_by[:12]}.")
    return tokenizer


def rows_of(uri: str, manifest: Mapping[str, Any]) -> Iterator[Row]:
    """Yields all rows of a corpus of words, a row group in memory; tells how far it is."""
    for record in manifest["shards"]:
        yield from _shard(uri, record)
        log.info("shard %d/%d", record["shard"] + 1, len(manifest["shards"]))


def _shard(uri: str, record: Mapping[str, Any]) -> Iterator[Row]:
    with storage.open_input(storage.join(uri, record["data"]["file"])) as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


# ---------------------------------------------------------------- COCO


def write_coco(rows: Iterable[Row], tokenizer: MaskTokenizer, folder: Path, lost: Counter[str]) -> int:
    """Writes ``results.json`` and ``instances.json``; returns how many images are in them.

    An image whose id is a number keeps it, another one has its place from 1; labels are categories by their
    order of appearance, from 1. Raises DataError ``ids`` if two images have one id.
    """
    images: list[Row] = []
    categories: dict[str, int] = {}
    with (folder / "results.json").open("w") as results, (folder / "annotations.part").open("w") as truth:
        found, kept = _Listed(results), _Listed(truth)
        for row in rows:
            size = {"height": row["height"], "width": row["width"]}
            try:
                pixels = read_image(row["image_uri"], expected_hw=(row["height"], row["width"]))
            except DataError as error:
                lost[error.reason] += 1
                continue
            image_id = int(row["image_id"]) if row["image_id"].isdecimal() else len(images) + 1
            images.append({"id": image_id, "file_name": row["image_uri"], **size})
            codes = np.array([mask["codes"] for mask in row["masks"]], np.int64).reshape(
                -1, tokenizer.num_levels
            )
            for mask, one in zip(row["masks"], tokenizer.decode(pixels, codes), strict=True):
                category = categories.setdefault(mask["label"] or "object", len(categories) + 1)
                about = {"image_id": image_id, "category_id": category}
                rle = {"size": [row["height"], row["width"]], "counts": masks.encode(one)}
                found.add(
                    {**about, "segmentation": rle, "score": 1.0 if mask["iou"] is None else mask["iou"]}
                )
                if mask["rle"] is not None:
                    kept.add(_truth(kept.count + 1, about, mask, rle["size"]))
        found.end()
        kept.end()
    ids = [image["id"] for image in images]
    if len(set(ids)) < len(ids):
        raise DataError("images of several datasets have the same ids; export them one by one", reason="ids")
    head = {"images": images, "categories": [{"id": n, "name": name} for name, n in categories.items()]}
    annotations = (folder / "annotations.part").read_text()
    (folder / "instances.json").write_text(json.dumps(head)[:-1] + f', "annotations": {annotations}}}')
    (folder / "annotations.part").unlink()
    return len(images)


def _truth(number: int, about: Row, mask: Row, size: list[int]) -> Row:
    x0, y0, x1, y1 = mask["box_xyxy"]
    rle = {"size": size, "counts": mask["rle"]}
    more = {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": mask["area_px"],
        "iscrowd": int("crowd" in mask["flags"]),
    }
    return {"id": number, **about, "segmentation": rle, **more}


class _Listed:
    """Writes a JSON list entry by entry."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.count = file, 0
        file.write("[")

    def add(self, entry: Row) -> None:
        self.file.write((",\n" if self.count else "") + json.dumps(entry))
        self.count += 1

    def end(self) -> None:
        self.file.write("]")


# ---------------------------------------------------------------- Hugging Face


def write_dataset(uri: str, manifest: Mapping[str, Any], folder: Path, lost: Counter[str]) -> int:
    """Writes ``data/train-*.parquet``, a file per shard; returns how many images are in them."""
    (folder / "data").mkdir()
    row_schema = dataset_schema(words.row_schema(words.load_corpus(uri)))
    written, records = 0, manifest["shards"]
    for number, record in enumerate(records):
        rows = []
        for row in _shard(uri, record):
            try:
                image = {"bytes": read_image_bytes(row["image_uri"]), "path": row["image_uri"]}
            except DataError as error:
                lost[error.reason] += 1
                continue
            rows.append({"image": image, **{name: row[name] for name in row_schema.names if name != "image"}})
        written += len(rows)
        path = folder / f"data/train-{number:05d}-of-{len(records):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, row_schema), path, row_group_size=shards.ROW_GROUP_ROWS)
        log.info("shard %d/%d", number + 1, len(records))
    return written


def dataset_schema(code_row: pa.Schema) -> pa.Schema:
    """Returns the columns of ``schema.CODE_ROW`` with the image in the place of its URI."""
    fields = [field for field in code_row if field.name != "image_uri"]
    features = {"info": {"features": _FEATURES}}
    metadata = {"huggingface": json.dumps(features), "samtok_schema_version": str(schema.SCHEMA_VERSION)}
    return pa.schema([pa.field("image", _IMAGE), *fields], metadata)


if __name__ == "__main__":
    sys.exit(main())
