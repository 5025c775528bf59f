"""What the host does per image, with the device stubbed: the part ``host`` of ``tests.benchmarks.tokenize``.

Images are JPEG files of 1500 x 2250 pixels, as those of SA-1B, with wavy ellipses from 1 % to 40 % of a side,
evenly spread over the logarithm. ``before`` is the way by pixels: RLE to a dense mask through a copy from
columns to rows, boxes by ``any()``, PyTorch's resize one mask at a time.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from pipelines import schema
from pipelines.tokenization import chunks
from pipelines.tokenization.read import to_code
from pipelines.tokenization.stage import TokenizeMasks
from pipelines.tokenizer_training.batch import build_batch
from samtok import images, masks
from samtok.config import PRESETS
from samtok.masks import RunMask
from samtok.model import tokenizer as tokenizer_module
from samtok.model.backbone import ImageFeatures
from samtok.model.prompts import MaskPrompts
from samtok.model.tokenizer import MaskTokenizer
from tests.corpora import tokenization

HEIGHT, WIDTH = 1500, 2250
MODEL = PRESETS["sam2.1-large"]
GPU_IMAGES_PER_S = 30
"""What a GPU is taken to encode, of which the cores that feed it follow."""


def host_part(options: argparse.Namespace) -> dict[str, float]:
    """Prints and returns milliseconds per image by step, and the cores that one GPU needs."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    picture = _jpeg(rng)
    rles = [masks.encode(_mask(rng, share)) for share in np.geomspace(0.01, 0.4, 100)]
    size = {"height": HEIGHT, "width": WIDTH}
    given = [{"size": [HEIGHT, WIDTH], "counts": rle} for rle in rles]
    decoded = images.decode_image(picture, where="x")
    runs = [RunMask.of_counts(rle, **size) for rle in rles]

    def median_ms(work: Callable[[], object]) -> float:
        work()  # warms up
        took = []
        for _ in range(options.repeats):
            started = time.perf_counter()
            work()
            took.append(time.perf_counter() - started)
        return 1000 * statistics.median(took)

    found = {
        "JPEG to pixels": median_ms(lambda: images.decode_image(picture, where="x")),
        "pixels to the network's size": median_ms(lambda: images.resize_square(decoded, MODEL.image_size)),
        "reader: RLE checked": median_ms(lambda: [masks.to_counts(one, **size) for one in given]),
        "RLE to runs, area and box": median_ms(lambda: [_runs(rle) for rle in rles]),
        "runs to prompts": median_ms(lambda: MaskPrompts.of(runs, MODEL.mask_size)),
    }
    found["CPU stage"] = sum(found.values())
    found["actor"] = median_ms(_actor(decoded, runs, rles))
    found["actor before"] = median_ms(lambda: _before(rles, targets=False))
    found["loader, 32 masks"] = median_ms(lambda: _loaded(picture, rles[::3][:32]))
    found["loader, 32 masks, before"] = median_ms(lambda: _loaded_before(picture, rles[::3][:32]))
    found["cores for a GPU"] = GPU_IMAGES_PER_S * (found["CPU stage"] + found["actor"]) / 1000
    print(f"\nhost, {HEIGHT} x {WIDTH} pixels, 100 masks, one thread: ms per image")
    for name, value in found.items():
        print(f"{name:>30} {value:>8.1f}")
    return found


def _runs(rle: str) -> tuple[int, object]:
    mask = RunMask.of_counts(rle, height=HEIGHT, width=WIDTH)
    return mask.area, mask.box_xyxy


def _jpeg(rng: np.random.Generator) -> bytes:
    small = Image.fromarray(rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _mask(rng: np.random.Generator, share: float) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x0, y0 = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
    rx, ry = WIDTH * share / 2 * rng.uniform(0.5, 1.5), HEIGHT * share / 2 * rng.uniform(0.5, 1.5)
    return ((x - x0) / rx) ** 2 + ((y - y0) / ry) ** 2 + 0.1 * np.sin(x / 7) * np.cos(y / 5) < 1


class _Stub(TokenizeMasks):
    """The stage with networks that cost nothing: what would run on a GPU is left out."""

    def __init__(self) -> None:
        self.config = tokenization("stub")
        self.options = self.config.tokenizer_options
        self.tokenizer = MaskTokenizer.from_preset("micro").eval().requires_grad_(False)
        object.__setattr__(self.tokenizer, "config", MODEL)
        embedding = torch.zeros(1, self.tokenizer.no_mem_embed.shape[-1])
        features = ImageFeatures(*(torch.zeros(1, 1, 1, 1) for _ in range(3)))
        tokenizer_module.normalize = lambda pixels: pixels
        self.tokenizer.embed_images = lambda pixels: features
        self.tokenizer.embed_masks = lambda coarse, soft, boxes: embedding.expand(len(soft), -1)


def _actor(decoded: np.ndarray, runs: Sequence[RunMask], rles: Sequence[str]) -> Callable[[], object]:
    stage = _Stub()
    place = {"dataset": "sa1b", "split": "train", "image_id": "1", "image_uri": "1.jpg"}
    entry = {"mask_id": "0", "label": None, "flags": []}
    listed = [to_code({**entry, "rle": rle}, mask) for rle, mask in zip(rles, runs, strict=True)]
    row = {**place, "height": HEIGHT, "width": WIDTH, "masks": listed, "annotations": []}
    square = images.resize_square(decoded, MODEL.image_size)
    packed = chunks.pack([row], [square], [MaskPrompts.of(runs, MODEL.mask_size)], MODEL.mask_size)
    counts = f'{{"rows_in": 1, "masks_in": {len(runs)}}}'
    where = {"shard": [0], "index": [0], "num_chunks": [1], "num_inputs": [1], "counts": [counts]}
    none = chunks.ipc(schema.table([], schema.REJECT_ROW))
    table = pa.table({**where, **packed, "rejects": [none]})
    return lambda: stage(table)


def _loaded(picture: bytes, rles: Sequence[str]) -> object:
    decoded = images.decode_image(picture, where="x")
    runs = [RunMask.of_counts(rle, height=HEIGHT, width=WIDTH) for rle in rles]
    return build_batch([decoded], runs, [0] * len(runs), MODEL, keys=np.arange(len(runs)))


# ---------------------------------------------------------------- before


def _before(rles: Sequence[str], *, targets: bool) -> None:
    size, full_hw = MODEL.mask_size, (HEIGHT, WIDTH)
    for rle in rles:
        counts = masks.parse_counts(rle, height=HEIGHT, width=WIDTH)
        columns = np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(full_hw[::-1])
        dense = np.ascontiguousarray(columns.T)
        masks.box_of(dense)
        full = torch.from_numpy(dense).float()[None, None]
        torch.nn.functional.interpolate(
            full, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        if targets:
            full = torch.from_numpy(dense).float()[None, None]
            torch.nn.functional.adaptive_avg_pool2d(full, size)
        else:
            masks.box_xyxy(rle, height=HEIGHT, width=WIDTH)
            masks.area(rle, height=HEIGHT, width=WIDTH)


def _loaded_before(picture: bytes, rles: Sequence[str]) -> None:
    images.resize_square(images.decode_image(picture, where="x"), MODEL.image_size)
    _before(rles, targets=True)
