"""The stage of tokenization that holds a network: a chunk in, a chunk out. It does not know about Ray.

What it does on the host is little: copies, which overlap with the work of a GPU, and columns of Arrow. A part
of a chunk is begun before the one ahead of it is waited for.
"""

import functools
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from pipelines import schema, storage
from pipelines.ingestion import apart
from pipelines.rejects import FILTER
from pipelines.tokenization import chunks, gpus
from pipelines.tokenization.chunks import Images
from pipelines.tokenization.config import TokenizeCorpusConfig
from samtok import masks
from samtok.errors import CheckpointError, DataError
from samtok.masks import RunMask
from samtok.metrics import regions
from samtok.model.backbone import ImageFeatures
from samtok.model.precision import set_tf32
from samtok.model.prompts import MaskPrompts
from samtok.model.tokenizer import MaskTokenizer

DTYPES = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16}

STAGE = "tokenize"
"""Stage of rejects of images that were read and cannot be made words of."""

_EXHAUSTED = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Faults of the machine, which no record is to blame for."""

Scores = dict[str, Float[np.ndarray, " mask"]]
"""``iou`` and ``boundary_iou`` of reconstructions with their masks, in [0, 1]; NaN where none was made."""


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
        set_tf32(config.precision == "tf32")
        self.config, self.options = config, config.tokenizer_options
        self.tokenizer = MaskTokenizer.from_pretrained(
            config.tokenizer,
            device=config.worker.device,
            dtype=DTYPES[config.precision],
            max_masks=self.options.masks_per_batch,
            compile=self.options.compile,
            channels_last=self.options.channels_last,
            read=storage.read_bytes,
        )
        self.gpu = gpus.kind_of(config.worker.device)
        if weights_sha256 not in (None, self.tokenizer.weights_sha256):
            raise CheckpointError(
                f"the weights of {config.tokenizer} are no longer those that the corpus was planned with. "
                "Put them back, or choose another --out."
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Replaces a chunk's images by code rows, and adds the kind of GPU and the time it took."""
        started = time.perf_counter()
        assert batch.num_rows == 1, f"a batch must be one chunk, got {batch.num_rows}; see run.py"
        architecture = self.tokenizer.config
        images = chunks.unpack(batch, side=architecture.image_size, size=architecture.mask_size)
        body = batch.drop_columns([*chunks.COLUMNS]).to_pylist()[0]
        rejects = chunks.read_ipc(body["rejects"]).to_pylist()
        done = pa.concat_tables([schema.CODE_ROW.empty_table(), *self._coded(images, rejects)])
        counts = json.loads(body["counts"])
        counts |= _outcome(done, rejects)
        rows_found = counts["rows_out"] + counts["rows_rejected"]
        masks_found = counts["masks_out"] + counts["masks_rejected"] + counts["masks_filtered"]
        if counts["rows_in"] != rows_found or counts["masks_in"] != masks_found:
            raise RuntimeError(
                f"shard {body['shard']}: {counts['rows_in']} rows and {counts['masks_in']} masks went in, "
                f"{rows_found} and {masks_found} are accounted for; this is a defect of samtok"
            )
        kept = {name: [body[name]] for name in ("shard", "index", "num_chunks", "num_inputs", "decode_s")}
        lost = schema.table(rejects, schema.REJECT_ROW)
        sent = {"rejects": [chunks.ipc(lost)], "rows": [chunks.ipc(done)], "counts": [json.dumps(counts)]}
        return pa.table({**kept, **sent, "gpu": [self.gpu], "tokenize_s": [time.perf_counter() - started]})

    def _coded(self, images: Images, rejects: list[dict[str, Any]]) -> Iterator[pa.Table]:
        """Yields code rows part by part, of which one is always ahead."""
        size = self.options.images_per_batch
        ahead: tuple[Images, Callable[[], pa.Table]] | None = None
        for start in range(0, len(images), size):
            part = images.part(start, start + size)
            begun = part, self._ahead(part)
            if ahead is not None:
                yield from self._usable(*ahead, rejects)
            ahead = begun
        if ahead is not None:
            yield from self._usable(*ahead, rejects)

    def _ahead(self, images: Images) -> Callable[[], pa.Table]:
        """Begins work on images; what is returned waits for it, and raises its errors."""
        if apart.is_careful():
            return partial(_in_child, type(self), self.config, images)
        try:
            return self.begin(images)
        except Exception as error:  # noqa: BLE001 it is raised where images are waited for
            return partial(_raise, error)

    def _usable(
        self, images: Images, work: Callable[[], pa.Table], rejects: list[dict[str, Any]]
    ) -> Iterator[pa.Table]:
        """Yields code rows. If the batch fails for no reason that is known, or kills its process, its images
        are tried one by one, and those that fail alone are rejected."""
        names, count = images.names, len(images)
        name = f"image {names[0][1]}" if count == 1 else f"a batch of {count} images"
        try:
            yield apart.isolated(work, name, mortal=_EXHAUSTED)
        except DataError as error:
            if count > 1:
                for part in (images.part(i, i + 1) for i in range(count)):
                    yield from self._usable(part, self._ahead(part), rejects)
                return
            lost = (*names[0], error.reason, str(error))
            rejects.append(schema.reject(STAGE, *lost, num_masks=int(images.num_masks.sum())))

    def begin(self, images: Images) -> Callable[[], pa.Table]:
        """Starts work on images, without waiting for a GPU; what is returned gives their code rows."""
        features = self.tokenizer.features_of(list(images.pixels))
        owners = np.repeat(np.arange(len(images)), images.num_masks)
        codes = self.tokenizer.begin_codes(
            features, images.prompts, owners.tolist(), box_prompt=self.options.box_prompt
        )
        # drawn by their ids, so the same images are drawn in every run
        keys = [f"{self.config.seed}/{image_id}".encode() for _, image_id in images.names]
        drawn = np.array([zlib.crc32(key) < self.config.reconstruct * 2**32 for key in keys], bool)
        compared = np.flatnonzero(drawn[owners])
        small = None
        if len(compared) and not self.config.full_size:
            logits = self._logits(features, codes.tensor, owners, compared)
            small = _small_ious(logits, images.prompts, compared.tolist(), self.options.threshold)

        def finish() -> pa.Table:
            found = codes.wait()
            scores = {name: np.full(len(found), np.nan, np.float32) for name in ("iou", "boundary_iou")}
            if small is not None:
                scores["iou"][compared] = small.cpu().numpy()
            elif len(compared):
                logits = self._logits(features, codes.tensor, owners, compared)
                self._score_full(images, owners, compared, chain.from_iterable(logits), scores)
            return images.coded(
                found, scores, num_codes=self.tokenizer.num_codes, keep_rle=self.config.keep_rle
            )

        return finish

    def _logits(
        self, features: ImageFeatures, codes: Tensor, owners: np.ndarray, compared: np.ndarray
    ) -> Iterator[Tensor]:
        chosen = torch.from_numpy(compared).to(codes.device)
        return self.tokenizer.logits_of(features, codes[chosen], owners[compared].tolist())

    def _score_full(
        self,
        images: Images,
        owners: np.ndarray,
        compared: np.ndarray,
        logits: Iterator[Tensor],
        scores: Scores,
    ) -> None:
        """Fills in scores of masks at the size of their images, one after the other."""
        rles = images.mask_column("rle")
        sizes = list(zip(*(images.rows[name].to_pylist() for name in ("height", "width")), strict=True))
        for k, one in zip(compared.tolist(), logits, strict=True):
            height, width = sizes[owners[k]]
            truth = RunMask.of_counts(rles[k], height=height, width=width).dense()
            (mask,) = self.tokenizer.masks_from_logits(one[None], truth.shape, self.options.threshold)
            scores["iou"][k] = masks.iou(truth, mask)
            if self.config.boundary_iou:
                scores["boundary_iou"][k] = regions.boundary_iou(truth, mask)


def _small_ious(
    logits: Iterator[Tensor], prompts: MaskPrompts, compared: list[int], threshold: float
) -> Float[Tensor, " mask"]:
    """Returns IoUs at the size of logits, on their device, of the masks that were compared."""
    found, start = [], 0
    for chunk in logits:
        soft, _ = prompts.take(compared[start : start + len(chunk)]).on(chunk.device)
        found.append(regions.small_iou(chunk > threshold, soft[:, 0] >= 0.5))
        start += len(chunk)
    return torch.cat(found)


def _raise(error: Exception) -> NoReturn:
    raise error


@functools.cache
def _stage_of_child(kind: type[TokenizeMasks], config: TokenizeCorpusConfig) -> TokenizeMasks:
    return kind(config)


def _in_child(kind: type[TokenizeMasks], config: TokenizeCorpusConfig, images: Images) -> pa.Table:
    """Does a batch in a process apart, which has a tokenizer of its own."""
    return _stage_of_child(kind, config).begin(images)()


def _outcome(rows: pa.Table, rejects: Sequence[dict[str, Any]]) -> dict[str, int]:
    faults = [entry for entry in rejects if entry["stage"] != FILTER]
    return {
        "rows_out": len(rows),
        "rows_rejected": sum(entry["mask_id"] is None for entry in faults),
        "masks_out": sum(map(len, rows["masks"])),
        "masks_rejected": sum(entry["num_masks"] for entry in faults),
        "masks_filtered": len(rejects) - len(faults),
    }
