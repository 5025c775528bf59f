"""What the parts of the GPU check have in common: sizes, the device, time that is left, what was found."""

import copy
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from samtok.config import PRESETS, BackboneConfig, MaskTokenizerConfig, QuantizerConfig
from samtok.model.precision import tf32
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import WorldConfig, make_scene
from tests.benchmarks.measuring import ellipses, seconds


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is."""

    matmul: int
    """Side of the matrices."""
    tokenizer: MaskTokenizerConfig
    fit: tuple[int, int]
    """Images, and masks of each, whose embeddings the codebooks are set by."""
    parity: tuple[int, int]
    """Images, and masks of each, that the CPU encodes too, as many as it gets done."""
    agreement: tuple[int, int]
    """Images, and masks of each, that bfloat16 is compared on."""
    masks: tuple[int, ...] = (1, 32, 100)
    """Masks per image whose speed is measured."""
    training_images: tuple[int, ...]
    """Images of a step of the tokenizer's training."""
    training_masks: int
    """Masks of each of them."""
    mllm: bool
    """Whether the MLLM has the numbers of Qwen2.5-VL-3B, or those of the tiny one that tests use."""
    dialogues: int
    """Dialogues of a training step."""
    prompts: tuple[int, ...]
    """Prompts that are answered at once."""
    responses: int
    """Responses to each prompt of a step of GRPO, which has the fewest prompts."""
    new_tokens: int
    """Tokens of a response."""
    repeats: int = 5
    """Times that something is timed, whose median counts."""
    least_s: float = 0.1
    """Seconds that one timed piece takes at least; shorter work is repeated within it."""


FULL = Sizes(
    matmul=8192,
    tokenizer=PRESETS["sam2.1-large"],
    fit=(8, 128),
    parity=(4, 16),
    agreement=(4, 128),
    training_images=(1, 4),
    training_masks=32,
    mllm=True,
    dialogues=8,
    prompts=(4, 32),
    responses=8,
    new_tokens=64,
)
TINY = Sizes(
    matmul=64,
    tokenizer=MaskTokenizerConfig(
        image_size=64,
        dim=64,
        num_heads=4,
        mlp_dim=128,
        backbone=BackboneConfig(kind="hiera", embed_dim=16, stages=(1, 1, 2, 1), global_att_blocks=(3,)),
        quantizer=QuantizerConfig(num_codes=16),
    ),
    fit=(2, 32),
    parity=(2, 4),
    agreement=(2, 8),
    masks=(1, 4),
    training_images=(2,),
    training_masks=4,
    mllm=False,
    dialogues=2,
    prompts=(2,),
    responses=3,
    new_tokens=6,
    repeats=2,
    least_s=0.0,
)


@dataclass
class Found:
    """What a part has measured: rows with equal keys, what to know of them, and what is wrong with them."""

    rows: list[dict[str, Any]]
    note: str
    problems: list[str] = field(default_factory=list)


@dataclass
class Place:
    """Where the parts measure, and what they hand on."""

    sizes: Sizes
    device: str
    until: float = float("inf")
    """When the part that runs now should end, by ``time.monotonic``."""
    peaks: dict[str, float] = field(default_factory=dict)
    """FLOP/s of large matrix products by type, once they are measured."""

    @functools.cached_property
    def tokenizer(self) -> MaskTokenizer:
        """Random weights, and codebooks by k-means on the embeddings of a sample of masks, as training does.

        The box decides most of what an embedding of random weights is, and the spread of embeddings is of the
        size of their mean, so words are far from being all the same.
        """
        torch.manual_seed(0)
        model = MaskTokenizer(self.sizes.tokenizer).eval().requires_grad_(False).to(self.device)
        with tf32(False):
            z = torch.cat([embeddings(model, *scene) for scene in self.scenes(self.sizes.fit, first=1000)])
        model.quantizer.start(z, torch.Generator().manual_seed(0))
        return model

    @contextmanager
    def tokenizer_in(self, dtype: str) -> Iterator[MaskTokenizer]:
        """Lends the tokenizer with its networks in float32 or bfloat16, as production runs them."""
        self.tokenizer.autocast_dtype = None if dtype == "float32" else getattr(torch, dtype)
        try:
            yield self.tokenizer
        finally:
            self.tokenizer.autocast_dtype = None

    def on_cpu(self) -> MaskTokenizer:
        """Returns a copy of the tokenizer that runs on the CPU in float32."""
        return copy.deepcopy(self.tokenizer).to("cpu")

    def scenes(self, size: tuple[int, int], first: int = 0) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Yields pictures with masks, at the size that the tokenizer works on."""
        side = self.sizes.tokenizer.image_size
        for index in range(first, first + size[0]):
            image = make_scene(0, index, WorldConfig(sizes_hw=((side, side),))).image
            yield image, ellipses(size[1], side, seed=index)

    def median_s(self, work: Callable[[], object]) -> float:
        """Times work after a warm-up, as often as the part's time allows, once at least."""
        work()
        times = max(1, round(self.sizes.least_s / max(seconds(work), 1e-6)))
        took = []
        while not took or (len(took) < self.sizes.repeats and time.monotonic() < self.until):
            took.append(seconds(lambda: [work() for _ in range(times)]) / times)
        return statistics.median(took)

    def share_of_peak(self, flops: float, took_s: float, dtype: str) -> float | None:
        """Returns FLOP/s as a share of those of large matrix products; None if these were not measured."""
        return flops / took_s / self.peaks[dtype] if dtype in self.peaks else None

    def forget_memory(self) -> None:
        """Lets ``peak_gib`` begin anew."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Returns the most memory of the GPU that tensors had; None on the CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else None


def embeddings(model: MaskTokenizer, image: np.ndarray, masks: list[np.ndarray]) -> Tensor:
    """Returns z of the masks of an image, in float32."""
    return torch.cat(
        [z.float() for z in model.embeddings_of(model.features_of([image]), masks, [0] * len(masks))]
    )


def flops_of(work: Callable[[], object]) -> int:
    """Counts the floating point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
