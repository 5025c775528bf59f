"""What can be told to tokenizer training, and the presets.

Presets train from random weights on synthetic scenes that are made on the fly. Numbers without a source were
found on the embedded corpus with one CPU thread.
"""

from dataclasses import dataclass, field

from pydantic import ConfigDict

from samtok.config import PRESETS as ARCHITECTURES
from samtok.shapes import WorldConfig

HELD_OUT_START = 1 << 30
"""Index of the first held-out scene; training uses indices below, so the two never meet."""


def _at_least(flag: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"--{flag} must be at least {least:g}, got {value:g}")


def _share(flag: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"--{flag} must be in [0, 1], got {value:g}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses, and the points that the mask losses look at."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    bce: float = 2.0
    """Weight of the cross-entropy."""
    dice: float = 1.0
    """Weight of the Dice loss; the authors' config has 0.5, the paper 1."""
    commitment: float = 0.25
    """Weight of the commitment of z to its codes, once quantization has begun."""
    box: float = 2.0
    """Weight of the training-only head that reads the mask's box from z; 0 leaves it out. Without it a small
    model trained from scratch stays on a plateau where z carries nothing."""
    num_points: int = 12544  # 112 x 112, as in Mask2Former and the authors' config
    """Points per mask; logits with fewer pixels are compared whole."""
    oversample: float = 3.0  # as above
    """Points looked at for each uncertain one that is kept."""
    importance: float = 0.75  # as above
    """Share of the points kept for being uncertain."""

    def __post_init__(self) -> None:
        for name in ("bce", "dice", "commitment", "box"):
            _at_least(f"loss.{name}", getattr(self, name), 0)
        _at_least("loss.num-points", self.num_points, 1)
        _at_least("loss.oversample", self.oversample, 1)
        _share("loss.importance", self.importance)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, then a cosine."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    lr: float = 2e-3
    """Highest learning rate."""
    warmup_steps: int = 100
    """Steps over which the rate rises from 0."""
    final_lr_share: float = 0.02
    """Share of the highest rate that is left at the last step."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it."""

    def __post_init__(self) -> None:
        _at_least("optimizer.lr", self.lr, 0)
        _at_least("optimizer.warmup-steps", self.warmup_steps, 0)
        _at_least("optimizer.weight-decay", self.weight_decay, 0)
        _share("optimizer.final-lr-share", self.final_lr_share)
        if self.clip_norm <= 0:
            raise ValueError(f"--optimizer.clip-norm must be above 0, got {self.clip_norm:g}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"--optimizer.betas must be in [0, 1), got {self.betas}")


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """One training run from random weights on synthetic scenes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    out: str
    """Local folder for the tokenizer (config.json, model.safetensors) and record.json."""
    model: str
    """Architecture: a preset of samtok.config."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """What the scenes look like."""
    seed: int = 101
    """Seed of weights, scenes and draws; the embedded corpora use other, small seeds for their scenes."""
    steps: int = 1000
    """Optimizer steps."""
    images_per_step: int = 8
    """Scenes per step."""
    max_masks_per_step: int = 24
    """Masks per step; of more, so many are drawn."""
    quantize_from: float = 0.6
    """Share of the steps before quantization begins with k-means; until then the decoder reads z itself."""
    kmeans_samples: int = 6000
    """Latest embeddings that k-means sees."""
    loss: LossConfig = LossConfig()
    """Losses."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and schedule."""
    evaluation_images: int = 400
    """Held-out scenes of the final evaluation."""
    evaluation_seed: int = 7
    """Seed of the held-out scenes and of the shuffling."""
    log_every: int = 50
    """Steps between progress lines, each with a small held-out evaluation."""
    threads: int = 1
    """CPU threads; with one, a run repeats bit for bit."""

    def __post_init__(self) -> None:
        if self.model not in ARCHITECTURES:
            raise ValueError(f"--model must be one of {sorted(ARCHITECTURES)}, got {self.model!r}")
        for name in (
            "steps",
            "images_per_step",
            "max_masks_per_step",
            "log_every",
            "threads",
            "evaluation_images",
        ):
            _at_least(name.replace("_", "-"), getattr(self, name), 1)
        if not 0 < self.quantize_from < 1:
            raise ValueError(f"--quantize-from must be between 0 and 1, got {self.quantize_from:g}")
        num_codes = ARCHITECTURES[self.model].quantizer.num_codes
        if self.kmeans_samples < num_codes:
            raise ValueError(
                f"--kmeans-samples must be at least the {num_codes} codes of {self.model}, "
                f"got {self.kmeans_samples}"
            )
        if self.steps * self.images_per_step > HELD_OUT_START:
            raise ValueError(
                f"--steps x --images-per-step must stay below {HELD_OUT_START}, where held-out scenes begin; "
                f"got {self.steps * self.images_per_step}"
            )

    @property
    def quantization_step(self) -> int:
        """The first step whose masks go through the codebooks."""
        return max(1, round(self.steps * self.quantize_from))


PRESETS: dict[str, TrainTokenizerConfig] = {
    "tiny": TrainTokenizerConfig(model="tiny", out="runs/tokenizer-tiny", steps=6000),
    "micro": TrainTokenizerConfig(
        model="micro",
        out="runs/tokenizer-micro",
        world=WorldConfig.square(64, small_radius=(0.12, 0.18), large_radius=(0.22, 0.32)),
        steps=600,
        kmeans_samples=2000,
        evaluation_images=100,
    ),
}
