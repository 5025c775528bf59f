"""Boxes and points without masks become masks: the stage before that which reads images.

It holds SAM2 and gives a chunk what SAM2 predicts for its entries (``boxes``). It does not know about Ray.
"""

import dataclasses
import hashlib
import json

import pyarrow as pa
import torch

from pipelines import shards, storage
from pipelines.ingestion.image_source import read_image
from pipelines.ingestion.reader import Reader, read_record
from pipelines.tokenization.boxes import COLUMN, Predicted, prompt_of
from pipelines.tokenization.config import TokenizeCorpusConfig
from samtok import masks
from samtok.errors import CheckpointError, DataError
from samtok.model.precision import set_tf32
from samtok.model.prompted import PromptedSegmenter


class MasksOfBoxes:
    """Predicts a mask for each box and each point without one.

    Args:
        plan: Says what a chunk is.
        reader: The dataset.
        config: Names SAM2.
        sha256: Of its file, as the plan has it; None takes any.
    """

    def __init__(
        self, plan: shards.Plan, reader: Reader, config: TokenizeCorpusConfig, sha256: str | None = None
    ) -> None:
        torch.set_num_threads(config.worker.threads)
        set_tf32(False)
        self.plan = dataclasses.replace(plan, shard_rows=plan.shard_rows[:1])
        self.reader, self.config = reader, config
        options = config.boxes
        assert options.sam2 is not None
        digests: dict[str, str] = {}

        def read(uri: str) -> bytes:
            data = storage.read_bytes(uri)
            digests[uri] = hashlib.sha256(data).hexdigest()
            return data

        self.segmenter = PromptedSegmenter.from_pretrained(
            options.sam2, options.preset, device=config.worker.device, read=read
        )
        if sha256 not in (None, digests[options.weights]):
            raise CheckpointError(
                f"{options.sam2} is no longer the SAM2 that the corpus was planned with. Put it back, or "
                "choose another --out."
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Adds to a chunk what is predicted for its images; an image that cannot be read is left to the next
        stage, which rejects it."""
        chunk = shards.Chunk(**batch.to_pylist()[0])
        found: dict[str, Predicted] = {}
        for item in shards.read_inputs(self.plan, chunk):
            row = read_record(self.reader, item).row
            prompts = [] if row is None else [mask for mask in row["masks"] if prompt_of(mask)]
            if row is None or not prompts:
                continue
            try:
                size_hw, most = (row["height"], row["width"]), self.config.max_image_pixels
                image = read_image(row["image_uri"], expected_hw=size_hw, max_pixels=most)
            except DataError:
                continue
            usable = [mask for mask in prompts if mask["box_xyxy"] is not None]
            boxed = [mask for mask in usable if prompt_of(mask) == "box_only"]
            pointed = [mask for mask in usable if prompt_of(mask) == "point_only"]
            made, scores = self.segmenter.segment(
                image, [mask["box_xyxy"] for mask in boxed], [mask["box_xyxy"][:2] for mask in pointed]
            )
            found[item.key] = {
                mask["mask_id"]: (masks.encode(one) if one.any() else None, float(score))
                for mask, one, score in zip([*boxed, *pointed], made, scores, strict=True)
            }
        return batch.append_column(COLUMN, pa.array([json.dumps(found)], pa.large_string()))
