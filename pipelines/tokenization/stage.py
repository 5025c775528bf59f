"""The two stages of tokenization: plain classes, a chunk in, a chunk out. They do not know about Ray.

A chunk is one row of Arrow that carries up to ``chunk_rows`` images as a unit, so the batches a network sees
are the same in every run and the codes do not depend on scheduling.
"""

import dataclasses
import functools
import json
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pipelines import schema, shards, storage
from pipelines.ingestion import apart, orientation
from pipelines.ingestion.image_source import read_picture
from pipelines.ingestion.reader import Reader, read_record
from pipelines.rejects import FILTER
from pipelines.tokenization.config import TokenizeCorpusConfig
from samtok import images, masks, words
from samtok.errors import CheckpointError, DataError
from samtok.metrics import regions
from samtok.model.tokenizer import MaskTokenizer

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}

STAGE = "tokenize"
"""Stage of rejects of images that were read and cannot be made words of."""

_EXHAUSTED = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Faults of the machine, which no record is to blame for."""

MAX_DENSE_PIXELS = 2**28
"""Pixels, and bytes, of the masks that are held at full size at once."""

WHY_FILTERED = {
    "crowd": "is marked iscrowd 1, as CVAT marks brush masks; tokenize_corpus gives it words without crowd in"
    " --skip",
    "void": "is marked as ignored; tokenize_corpus gives it words without void in --skip",
    "empty": "has no pixels",
    "box_only": "is a box without a mask",
    "min_area": "has fewer pixels than --min-area-px of tokenize_corpus",
}

COUNTS = shards.COUNTS["words"]
"""What is counted per chunk, shard and corpus; in = out + rejected (+ filtered), always."""


class Score(NamedTuple):
    """How well a reconstruction matches its mask, each in [0, 1]; None where nothing was compared."""

    iou: float | None = None
    boundary_iou: float | None = None


class ReadImages:
    """Reads the records of a chunk, fetches, decodes and shrinks their images on the CPU.

    Args:
        plan: Says what a chunk is.
        reader: The dataset.
        image_size: Side of the tokenizer's input, in pixels.
        config: Says which masks go on.
    """

    def __init__(
        self, plan: shards.Plan, reader: Reader, image_size: int, config: TokenizeCorpusConfig
    ) -> None:
        self.plan = dataclasses.replace(plan, shard_rows=())  # travels with every task; chunks say the rest
        self.reader, self.image_size, self.config = reader, image_size, config

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Adds to a chunk its image rows, pixels (uint8, side x side x 3 each) and rejects."""
        chunk = shards.Chunk(**batch.to_pylist()[0])
        rows, pixels, rejects, counts = [], [], [], dict.fromkeys(COUNTS, 0)
        for item in shards.read_inputs(self.plan, chunk):
            result = read_record(self.reader, item)
            rejects += result.rejects
            counts["rows_in"] += 1
            counts["masks_in"] += result.num_masks_in
            row = result.row
            picture = None if row is None else self._picture(row, rejects)
            if row is not None and picture is not None:
                rows.append(self._filter(row, rejects))
                pixels.append(picture)
        body = {
            **{name: [number] for name, number in dataclasses.asdict(chunk).items()},
            "rows": [_ipc(schema.table(rows, schema.IMAGE_ROW))],
            "rejects": [_ipc(schema.table(rejects, schema.REJECT_ROW))],
            "pixels": [b"".join(picture.tobytes() for picture in pixels)],
            "counts": [json.dumps(counts)],
        }
        return pa.table(body)

    def _picture(self, row: dict[str, Any], rejects: list[dict[str, Any]]) -> np.ndarray | None:
        """Returns the image at the tokenizer's size; None, and a reject, if it cannot be used."""
        try:
            size_hw, most = (row["height"], row["width"]), self.config.max_image_pixels
            picture = read_picture(row["image_uri"], expected_hw=size_hw, max_pixels=most)
            rejects += orientation.note("decode", row, picture)
            return images.resize_square(picture.pixels, self.image_size)
        except DataError as error:
            name = ("decode", row["dataset"], row["image_id"], error.reason, str(error))
            rejects.append(schema.reject(*name, num_masks=len(row["masks"])))
            return None

    def _filter(self, row: dict[str, Any], rejects: list[dict[str, Any]]) -> dict[str, Any]:
        kept = []
        for mask in row["masks"]:
            reason = self._filtered(mask, height=row["height"], width=row["width"])
            if reason is None:
                kept.append(mask)
            else:
                message = f"mask {mask['mask_id']} of image {row['image_id']} {WHY_FILTERED[reason]}"
                name = (FILTER, row["dataset"], row["image_id"], reason, message)
                rejects.append(schema.reject(*name, mask_id=mask["mask_id"], num_masks=1))
        return {**row, "masks": kept}

    def _filtered(self, mask: dict[str, Any], *, height: int, width: int) -> str | None:
        for flag in (*self.config.skip, "empty", "box_only"):
            if flag in mask["flags"]:
                return flag
        small = masks.area(mask["rle"], height=height, width=width) < self.config.min_area_px
        return "min_area" if small else None


class TokenizeMasks:
    """Turns the masks of a chunk into words. Each image is encoded once, for all its masks.

    Args:
        config: The tokenizer, and which images are reconstructed.
        weights_sha256: What the plan says of the weights; None takes any.

    Raises:
        CheckpointError: If the weights are not those of the plan, as after a replacement in mid-run.
    """

    def __init__(self, config: TokenizeCorpusConfig, weights_sha256: str | None = None) -> None:
        torch.set_num_threads(config.worker.threads)
        self.config, self.options = config, config.tokenizer_options
        self.tokenizer = MaskTokenizer.from_pretrained(
            config.tokenizer,
            device=config.worker.device,
            dtype=DTYPES[config.precision],
            max_masks=self.options.masks_per_batch,
            compile=self.options.compile,
            read=storage.read_bytes,
        )
        if weights_sha256 not in (None, self.tokenizer.weights_sha256):
            raise CheckpointError(
                f"the weights of {config.tokenizer} are no longer those that the corpus was planned with. "
                "Put them back, or choose another --out."
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Replaces a chunk's image rows and pixels by code rows."""
        assert batch.num_rows == 1, f"a batch must be one chunk, got {batch.num_rows}; see run.py"
        side = self.tokenizer.config.image_size
        flat = np.frombuffer(batch["pixels"][0].as_buffer() or b"", np.uint8)  # a view: the bulk of a chunk
        pixels = flat.reshape(-1, side, side, 3)
        body = batch.drop_columns("pixels").to_pylist()[0]
        rows = read_ipc(body["rows"]).to_pylist()
        done: list[dict[str, Any]] = []
        rejects = read_ipc(body["rejects"]).to_pylist()
        size = self.options.images_per_batch
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            done += self._usable(rows[part], pixels[part], rejects)
        counts = json.loads(body["counts"])
        counts |= _outcome(done, rejects)
        rows_found = counts["rows_out"] + counts["rows_rejected"]
        masks_found = counts["masks_out"] + counts["masks_rejected"] + counts["masks_filtered"]
        if counts["rows_in"] != rows_found or counts["masks_in"] != masks_found:
            raise RuntimeError(
                f"shard {body['shard']}: {counts['rows_in']} rows and {counts['masks_in']} masks went in, "
                f"{rows_found} and {masks_found} are accounted for; this is a defect of samtok"
            )
        kept = {name: [body[name]] for name in ("shard", "index", "num_chunks", "num_inputs")}
        codes, lost = schema.table(done, schema.CODE_ROW), schema.table(rejects, schema.REJECT_ROW)
        return pa.table(
            {**kept, "rejects": [_ipc(lost)], "rows": [_ipc(codes)], "counts": [json.dumps(counts)]}
        )

    def _usable(
        self, rows: list[dict[str, Any]], pixels: np.ndarray, rejects: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Returns code rows. If the batch fails for no reason that is known, or kills its process, its images
        are tried one by one, and those that fail alone are rejected."""
        name = f"image {rows[0]['image_id']}" if len(rows) == 1 else f"a batch of {len(rows)} images"
        work = partial(_in_child, type(self), self.config, rows, pixels) if apart.is_careful() else None
        try:
            return apart.isolated(work or partial(self._code_rows, rows, pixels), name, mortal=_EXHAUSTED)
        except DataError as error:
            if len(rows) > 1:
                return [
                    done
                    for i, row in enumerate(rows)
                    for done in self._usable([row], pixels[i : i + 1], rejects)
                ]
            lost = (rows[0]["dataset"], rows[0]["image_id"], error.reason, str(error))
            rejects.append(schema.reject(STAGE, *lost, num_masks=len(rows[0]["masks"])))
            return []

    def _code_rows(self, rows: list[dict[str, Any]], pixels: np.ndarray) -> list[dict[str, Any]]:
        features = self.tokenizer.features_of(list(pixels))
        todo = [(i, mask) for i, row in enumerate(rows) for mask in row["masks"]]
        coded: list[list[dict[str, Any]]] = [[] for _ in rows]
        areas = [row["height"] * row["width"] for row in rows]
        for group in _groups(todo, areas, self.tokenizer.max_masks):
            owners = [i for i, _ in group]
            dense = [
                masks.decode(mask["rle"], height=rows[i]["height"], width=rows[i]["width"])
                for i, mask in group
            ]
            codes = self.tokenizer.codes_of(features, dense, owners, box_prompt=self.options.box_prompt)
            scores = [Score()] * len(owners)
            # drawn by their ids, so the same images are drawn in every run
            keys = [f"{self.config.seed}/{rows[i]['image_id']}".encode() for i in owners]
            drawn = [k for k, key in enumerate(keys) if zlib.crc32(key) < self.config.reconstruct * 2**32]
            batches = self.tokenizer.logits_of(features, codes[drawn], [owners[k] for k in drawn])
            for k, one in zip(drawn, chain.from_iterable(batches), strict=True):
                (mask,) = self.tokenizer.masks_from_logits(one[None], dense[k].shape, self.options.threshold)
                boundary = regions.boundary_iou(dense[k], mask) if self.config.boundary_iou else None
                scores[k] = Score(masks.iou(dense[k], mask), boundary)
            for (i, mask), code, score in zip(group, codes.tolist(), scores, strict=True):
                coded[i].append(self._code_mask(rows[i], mask, code, score))
        return [{**row, "masks": found} for row, found in zip(rows, coded, strict=True)]

    def _code_mask(
        self, row: dict[str, Any], mask: dict[str, Any], code: list[int], score: Score
    ) -> dict[str, Any]:
        size = {"height": row["height"], "width": row["width"]}
        x0, y0, x1, y1 = masks.box_xyxy(mask["rle"], **size) or (0, 0, 0, 0)
        return {
            **mask,
            "rle": mask["rle"] if self.config.keep_rle else None,
            "box_xyxy": [x0, y0, x1 + 1, y1 + 1],
            "codes": code,
            "words": words.format_words(code, num_codes=self.tokenizer.num_codes),
            "area_px": masks.area(mask["rle"], **size),
            "iou": score.iou,
            "boundary_iou": score.boundary_iou,
        }


@functools.cache
def _stage_of_child(kind: type[TokenizeMasks], config: TokenizeCorpusConfig) -> TokenizeMasks:
    return kind(config)


def _in_child(
    kind: type[TokenizeMasks], config: TokenizeCorpusConfig, rows: list[dict[str, Any]], pixels: np.ndarray
) -> list[dict[str, Any]]:
    """Does a batch in a process apart, which has a tokenizer of its own."""
    return _stage_of_child(kind, config)._code_rows(rows, pixels)


def read_ipc(data: bytes) -> pa.Table:
    """Reads a table that travels inside a chunk."""
    return pa.ipc.open_stream(data).read_all()


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _groups(
    todo: list[tuple[int, dict[str, Any]]], areas: list[int], size: int
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Cuts masks into groups of at most ``size``, and of few enough pixels to hold them dense at once."""
    group: list[tuple[int, dict[str, Any]]] = []
    pixels = 0
    for i, mask in todo:
        if group and (len(group) == size or pixels + areas[i] > MAX_DENSE_PIXELS):
            yield group
            group, pixels = [], 0
        group.append((i, mask))
        pixels += areas[i]
    if group:
        yield group


def _outcome(rows: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> dict[str, int]:
    faults = [entry for entry in rejects if entry["stage"] != FILTER]
    return {
        "rows_out": len(rows),
        "rows_rejected": sum(entry["mask_id"] is None for entry in faults),
        "masks_out": sum(len(row["masks"]) for row in rows),
        "masks_rejected": sum(entry["num_masks"] for entry in faults),
        "masks_filtered": len(rejects) - len(faults),
    }
