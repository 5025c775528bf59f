"""Pre-training of a tiny Qwen2.5-VL's vision encoder, which released models have behind them.

From random weights a vision transformer learns colours from a few thousand questions, but not shapes: a
question is one label for an image. Dense labels are dozens: for every image token, which share of it
belongs to each kind and colour, and where the object that covers most of it is and how large. The labels come
with synthetic scenes; a linear head reads them and is thrown away. What comes out knows no words.

The weights in ``samtok/weights/tiny-vision`` were made by ``python -m pipelines.extension.pretrain_vision``.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from samtok.errors import CheckpointError
from samtok.mllm.tiny.config import TinyConfig
from samtok.shapes import Scene, WorldConfig, make_scene

SHIPPED = Path(__file__).parents[2] / "weights" / "tiny-vision"
WEIGHTS_FILE, RECORD_FILE = "model.safetensors", "record.json"

SIZES = (
    *("image_size", "patch_size", "vision_dim", "vision_layers", "vision_rope_theta"),
    *("vision_heads", "hidden_dim", "dim"),
)
"""Fields of ``TinyConfig`` that an encoder with its projector is made of."""

_HELD_OUT_SEED = 1 << 20
_HELD_OUT = 400  # scenes of an eval
_CLEAR = 0.2
"""Share of a token from which on the object in it has a place to be learnt, and its kind is evaluated."""
_BATCH = 200


@dataclass(frozen=True, kw_only=True)
class VisionTraining:
    """How an encoder is pre-trained; numbers were found on one CPU thread."""

    steps: int = 6000
    images_per_step: int = 32
    lr: float = 2e-3
    warmup_steps: int = 50
    final_lr_share: float = 0.03
    clip_norm: float = 1.0
    scenes: int = 40_000
    """Different scenes; each is seen several times."""
    seed: int = 1
    evals: int = 8
    """Evals on held-out scenes."""


@dataclass(frozen=True)
class Labels:
    """What is true of the image tokens of scenes, token rows first; float32.

    Attributes:
        kinds: Share of background and of each kind; they add up to 1.
        colours: Share of each colour.
        boxes: Centre (x, y), width and height of the object that covers most of a token, as shares of the
            image's side.
        shares: How much of the token that object covers.
    """

    kinds: Float[Tensor, "image token kind"]
    colours: Float[Tensor, "image token colour"]
    boxes: Float[Tensor, "image token 4"]
    shares: Float[Tensor, "image token"]

    def take(self, rows: Sequence[int] | np.ndarray) -> "Labels":
        """Returns the labels of some images."""
        return Labels(self.kinds[rows], self.colours[rows], self.boxes[rows], self.shares[rows])


def labels_of(scenes: Sequence[Scene], *, tokens_per_side: int) -> Labels:
    """Reads the labels off square scenes whose side is a multiple of ``tokens_per_side``."""
    columns = zip(*(_grids(scene, tokens_per_side) for scene in scenes), strict=True)
    return Labels(*(torch.from_numpy(np.stack(grids).astype(np.float32)).flatten(1, 2) for grids in columns))


def _grids(scene: Scene, side: int) -> tuple[np.ndarray, ...]:
    config, (height, width) = scene.config, scene.size_hw
    if height != width or height % side:
        raise ValueError(f"expected a square scene of a multiple of {side} pixels, got {scene.size_hw}.")
    cell = height // side
    kinds = np.zeros((side, side, 1 + len(config.kinds)))
    colours = np.zeros((side, side, len(config.colours)))
    boxes, most = np.zeros((side, side, 4)), np.zeros((side, side))
    for shape in scene.objects:
        share = shape.mask.reshape(side, cell, side, cell).mean(axis=(1, 3))
        kinds[..., 1 + config.kinds.index(shape.kind)] += share
        colours[..., config.colours.index(shape.colour)] += share
        x0, y0, x1, y1 = (value / width for value in shape.box_xyxy)
        boxes[share > most] = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        most = np.maximum(most, share)
    kinds[..., 0] = 1 - kinds[..., 1:].sum(axis=-1)
    return kinds, colours, boxes, most


class DenseHead(nn.Module):
    """Reads labels from token features; background is one more kind than the world's."""

    def __init__(self, dim: int, num_kinds: int, num_colours: int) -> None:
        super().__init__()
        self.sizes = (1 + num_kinds, num_colours, 4)
        self.read = nn.Linear(dim, sum(self.sizes))

    def forward(self, features: Float[Tensor, "image token dim"]) -> tuple[Tensor, ...]:
        """Returns logits of kinds and of colours, and boxes."""
        return self.read(features).split(self.sizes, dim=-1)

    def losses(self, features: Float[Tensor, "image token dim"], labels: Labels) -> Float[Tensor, ""]:
        """Returns cross-entropies with the shares as soft targets, and the L1 distance of boxes, summed."""
        kinds, colours, boxes = self(features)
        kind = -(labels.kinds.clamp(0, 1) * kinds.log_softmax(dim=-1)).sum(dim=-1).mean()
        colour = -(labels.colours * colours.log_softmax(dim=-1)).sum() / labels.colours.sum().clamp_min(1)
        clear = (labels.shares > _CLEAR).float()
        box = ((boxes - labels.boxes).abs().sum(dim=-1) * clear).sum() / clear.sum().clamp_min(1)
        return kind + colour + 2 * box


def pretrain(
    visual: Any,
    processor: Any,
    world: WorldConfig,
    training: VisionTraining,
    callback: Callable[[int, Mapping[str, float]], None],
) -> dict[str, float]:
    """Trains a vision encoder with its projector, ``model.visual`` of a Qwen2.5-VL, in place.

    Args:
        processor: Its image processor; images become squares.
        callback: Called with the step and the metrics of each eval.

    Returns:
        The metrics of the last eval: ``kind`` and ``colour`` (shares of tokens on an object whose kind or
        colour is read right) and ``centre`` (mean distance to the object's centre, as a share of the side).
    """
    torch.manual_seed(training.seed)
    pixels, labels = _prepared(processor, world, training.seed, training.scenes)
    held_out = _prepared(processor, world, training.seed + _HELD_OUT_SEED, _HELD_OUT)
    head = DenseHead(visual.config.out_hidden_size, len(world.kinds), len(world.colours))
    weights = [*visual.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=training.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    found: dict[str, float] = {}
    low = training.final_lr_share
    for step, rows in enumerate(_draws(training)):
        for group in optimizer.param_groups:
            cosine = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (step / training.steps)))
            group["lr"] = training.lr * min(1.0, (step + 1) / training.warmup_steps) * cosine
        loss = head.losses(_features(visual, pixels[rows].float()), labels.take(rows))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(1, training.steps // training.evals) == 0 or step + 1 == training.steps:
            found = _evaluate(visual, head, *held_out)
            callback(step + 1, {"loss": float(loss.detach()), **found})
    return found


def _draws(training: VisionTraining) -> Iterator[np.ndarray]:
    """Yields the images of each step: all of them once, in another order every time."""
    rng, waiting = np.random.default_rng(training.seed), np.zeros(0, np.int64)
    for _ in range(training.steps):
        while len(waiting) < training.images_per_step:
            waiting = np.concatenate([waiting, rng.permutation(training.scenes)])
        yield waiting[: training.images_per_step]
        waiting = waiting[training.images_per_step :]


def _prepared(processor: Any, world: WorldConfig, seed: int, count: int) -> tuple[Tensor, Labels]:
    parts = []
    for first in range(0, count, _BATCH):
        scenes = [make_scene(seed, index, world) for index in range(first, min(first + _BATCH, count))]
        seen = processor(images=[scene.image for scene in scenes], return_tensors="pt")
        grid = seen["image_grid_thw"][0].tolist()
        side = grid[1] // processor.merge_size
        pixels = seen["pixel_values"].reshape(len(scenes), grid[1] * grid[2], -1)
        parts.append((pixels.half(), labels_of(scenes, tokens_per_side=side)))
    labels = (torch.cat([getattr(part, name) for _, part in parts]) for name in Labels.__dataclass_fields__)
    return torch.cat([pixels for pixels, _ in parts]), Labels(*labels)


def _features(visual: nn.Module, pixels: Float[Tensor, "image patch value"]) -> Tensor:
    images, patches, _ = pixels.shape
    side = math.isqrt(patches)
    grid = torch.tensor([[1, side, side]]).expand(images, 3)
    out = visual(pixels.flatten(0, 1), grid_thw=grid).pooler_output
    return out.reshape(images, -1, out.shape[-1])


@torch.inference_mode()
def _evaluate(visual: nn.Module, head: DenseHead, pixels: Tensor, labels: Labels) -> dict[str, float]:
    kinds, colours, boxes = head(_features(visual, pixels.float()))
    clear = labels.shares > _CLEAR
    right_kind = kinds[..., 1:].argmax(dim=-1) == labels.kinds[..., 1:].argmax(dim=-1)
    right_colour = colours.argmax(dim=-1) == labels.colours.argmax(dim=-1)
    distance = (boxes - labels.boxes)[..., :2].norm(dim=-1)
    return {
        "kind": float(right_kind[clear].float().mean()),
        "colour": float(right_colour[clear].float().mean()),
        "centre": float(distance[clear].mean()),
    }


# ---------------------------------------------------------------- what ships


def sizes_of(config: TinyConfig) -> dict[str, int | float]:
    """Returns the numbers that an encoder is made of."""
    return {name: getattr(config, name) for name in SIZES}


def load_vision(visual: nn.Module, config: TinyConfig, folder: Path = SHIPPED) -> None:
    """Fills a vision encoder; CheckpointError if the weights are not there or of other sizes."""
    try:
        made = json.loads((folder / RECORD_FILE).read_text())["sizes"]
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"there is no pre-trained vision encoder in {folder} ({error!r}).") from error
    own = sizes_of(config)
    wrong = [
        f"{name} {value}, there {made.get(name)}" for name, value in own.items() if value != made.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"the pre-trained vision encoder in {folder} has other sizes: {'; '.join(wrong)}. Use its sizes, "
            "or begin with random weights (--vision random)."
        )
    visual.load_state_dict(weights)
