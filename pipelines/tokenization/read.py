"""The CPU stage of tokenization: a plain class, a chunk in, a chunk out. It does not know about Ray.

A chunk is one row of Arrow that carries up to ``chunk_rows`` images as a unit, so the batches a network sees
are the same in every run and the codes do not depend on scheduling.
"""

import dataclasses
import json
import time
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import schema, shards
from pipelines.ingestion import orientation
from pipelines.ingestion.image_source import read_picture
from pipelines.ingestion.reader import WITHOUT_PIXELS, Reader, read_record
from pipelines.rejects import FILTER
from pipelines.tokenization import boxes, chunks
from pipelines.tokenization.config import TokenizeCorpusConfig
from samtok import images
from samtok.config import MaskTokenizerConfig
from samtok.errors import DataError
from samtok.masks import RunMask
from samtok.model.prompts import MaskPrompts

WHY_FILTERED = {
    "crowd": "is marked iscrowd 1, as CVAT marks brush masks; tokenize_corpus gives it words without crowd in"
    " --skip",
    "void": "is marked as ignored; tokenize_corpus gives it words without void in --skip",
    "empty": "has no pixels",
    "box_only": "is a box without a mask; tokenize_corpus makes one with --boxes.sam2",
    "point_only": "is a point without a mask; tokenize_corpus makes one with --boxes.sam2",
    "min_area": "has fewer pixels than --min-area-px of tokenize_corpus",
}

COUNTS = shards.COUNTS["words"]
"""What is counted per chunk, shard and corpus; in = out + rejected (+ filtered), always."""


class ReadImages:
    """Reads the records of a chunk, fetches, decodes and shrinks their images on the CPU.

    Args:
        plan: Says what a chunk is.
        reader: The dataset.
        architecture: Of the tokenizer: the sides of its images and soft masks.
        config: Says which masks go on.
    """

    def __init__(
        self,
        plan: shards.Plan,
        reader: Reader,
        architecture: MaskTokenizerConfig,
        config: TokenizeCorpusConfig,
    ) -> None:
        self.plan = dataclasses.replace(plan, shard_rows=plan.shard_rows[:1])  # travels with every task
        self.reader, self.config = reader, config
        self.image_size, self.mask_size = architecture.image_size, architecture.mask_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Adds to a chunk its images as ``chunks.unpack`` reads them, its rejects, and the time it took."""
        started = time.perf_counter()
        chunk = shards.Chunk(**batch.select(shards.Chunk._fields).to_pylist()[0])
        rows, pixels, prompts, rejects, counts = [], [], [], [], dict.fromkeys(COUNTS, 0)
        made = boxes.masks_in(batch)
        for item in shards.read_inputs(self.plan, chunk):
            result = read_record(self.reader, item)
            rejects += result.rejects
            counts["rows_in"] += 1
            counts["masks_in"] += result.num_masks_in
            row = result.row
            if row is not None and item.key in made:
                row = boxes.with_masks(row, made[item.key], rejects, self.config.boxes.min_score)
            picture = None if row is None else self._picture(row, rejects)
            if row is not None and picture is not None:
                masks = self._usable(row, rejects)
                rows.append({**row, "masks": [entry for entry, _ in masks]})
                pixels.append(picture)
                prompts.append(MaskPrompts.of([mask for _, mask in masks], self.mask_size))
        body = {
            **{name: [number] for name, number in chunk._asdict().items()},
            **chunks.pack(rows, pixels, prompts, self.mask_size),
            "rejects": [chunks.ipc(schema.table(rejects, schema.REJECT_ROW))],
            "counts": [json.dumps(counts)],
            "decode_s": [time.perf_counter() - started],
        }
        return pa.table(body)

    def _picture(self, row: dict[str, Any], rejects: list[dict[str, Any]]) -> np.ndarray | None:
        """Returns the image at the tokenizer's size; None, and a reject, if it cannot be used."""
        try:
            picture = read_picture(
                row["image_uri"],
                expected_hw=(row["height"], row["width"]),
                max_pixels=self.config.max_image_pixels,
                least_side=self.image_size if self.config.reduced_jpeg else None,
            )
            rejects += orientation.note("decode", row, picture)
            return images.resize_square(picture.pixels, self.image_size)
        except DataError as error:
            name = ("decode", row["dataset"], row["image_id"], error.reason, str(error))
            rejects.append(schema.reject(*name, num_masks=len(row["masks"])))
            return None

    def _usable(
        self, row: dict[str, Any], rejects: list[dict[str, Any]]
    ) -> list[tuple[dict[str, Any], RunMask]]:
        """Returns the masks that get words, as entries of ``schema.CODE_ROW`` without codes."""
        kept = []
        for mask in row["masks"]:
            reason = next(
                (flag for flag in (*self.config.skip, *WITHOUT_PIXELS) if flag in mask["flags"]), None
            )
            if reason is None:
                runs = RunMask.of_counts(mask["rle"], height=row["height"], width=row["width"])
                if runs.area >= self.config.min_area_px:
                    kept.append((to_code(mask, runs), runs))
                    continue
                reason = "min_area"
            message = f"mask {mask['mask_id']} of image {row['image_id']} {WHY_FILTERED[reason]}"
            name = (FILTER, row["dataset"], row["image_id"], reason, message)
            rejects.append(schema.reject(*name, mask_id=mask["mask_id"], num_masks=1))
        return kept


def to_code(mask: dict[str, Any], runs: RunMask) -> dict[str, Any]:
    """Returns the entry of a mask of an image row as one of a code row, whose codes are to come."""
    box = runs.box_xyxy
    assert box is not None  # or it had been left out
    x0, y0, x1, y1 = box
    none = {"codes": [], "words": "", "iou": None, "boundary_iou": None}
    return {**mask, "box_xyxy": [x0, y0, x1 + 1, y1 + 1], "area_px": runs.area, **none}
