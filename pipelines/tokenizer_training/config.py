"""What can be told to ``jobs/train_tokenizer.py``; the presets are in ``presets``.

Numbers without a source were found on the embedded corpus with one CPU thread.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.cli import FORBID_UNKNOWN, refuse_password
from pipelines.training.config import (
    CheckpointsConfig,
    OptimizerConfig,
    WorkersConfig,
    check_at_least,
    check_share,
)
from samtok.config import PRESETS as ARCHITECTURES
from samtok.config import QuantizerConfig
from samtok.errors import ConfigError
from samtok.shapes import WorldConfig

HELD_OUT_START = 1 << 30
"""Index of the first held-out scene; training uses indices below, so the two never meet."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses, and the points that the mask losses look at."""

    __pydantic_config__ = FORBID_UNKNOWN

    bce: float = 2.0
    """Weight of the cross-entropy; the authors' config has 2, the paper 1."""
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
            check_at_least(f"loss.{name}", getattr(self, name), 0)
        check_at_least("loss.num-points", self.num_points, 1)
        check_at_least("loss.oversample", self.oversample, 1)
        check_share("loss.importance", self.importance)


@dataclass(frozen=True, kw_only=True)
class QuantizerFlags:
    """What differs from the architecture's own quantizer; unset fields keep it."""

    __pydantic_config__ = FORBID_UNKNOWN

    kind: Literal["rq", "vq", "fsq"] | None = None
    """``rq`` residual, ``vq`` one codebook and one word, ``fsq`` a grid of scalars."""
    num_codes: int | None = None
    """Entries of each codebook; for fsq the product of the grid."""
    num_levels: int | None = None
    """Words of a mask."""
    shared: bool | None = None
    """rq: one codebook for all levels."""
    grid: tuple[int, ...] = ()
    """fsq: steps of each scalar of a word, such as 8 8 4."""

    def over(self, base: QuantizerConfig) -> QuantizerConfig:
        """Returns the quantizer with these fields replaced.

        Raises:
            ConfigError: If the fields do not go together.
        """
        told: dict[str, Any] = {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, ())}
        if told.get("kind", base.kind) == "vq":
            told.setdefault("num_levels", 1)
        try:
            return dataclasses.replace(base, **told)
        except ValueError as error:
            raise ConfigError(f"--quantizer.*: {error}") from error


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Which weights training starts from; without any they are random."""

    __pydantic_config__ = FORBID_UNKNOWN

    sam2: str | None = None
    """SAM2.1 file (sam2.1_hiera_*.pt, local or s3://) of the size that --model names."""
    tokenizer: str | None = None
    """A tokenizer: a shipped name or a folder. Another quantizer than its own is set up anew."""

    def __post_init__(self) -> None:
        if self.sam2 and self.tokenizer:
            raise ConfigError("--start.sam2 and --start.tokenizer exclude each other; give one")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which images make a step, and which of their masks."""

    __pydantic_config__ = FORBID_UNKNOWN

    images_per_step: int = 8
    """Images of a step over all workers, each encoded once."""
    masks_per_image: int = 8
    """Most masks of an image that a step trains; of more, so many are drawn."""
    pick: Literal["uniform", "area"] = "uniform"
    """How they are drawn, without replacement: all alike, or in proportion to the root of their area."""
    drop_nested: bool = False
    """First leave out masks that lie (nine tenths of their area) in a larger mask of the image: parts."""
    skip: tuple[Literal["crowd", "void"], ...] = ("crowd", "void")
    """Masks with these flags are not trained on."""
    min_area_px: int = 16
    """Masks with fewer pixels are not trained on."""

    def __post_init__(self) -> None:
        for name in ("images_per_step", "masks_per_image", "min_area_px"):
            check_at_least(f"sampling.{name.replace('_', '-')}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How gradients become steps. None of it changes what is learnt, but for rounding."""

    __pydantic_config__ = FORBID_UNKNOWN

    deepspeed: str | None = None
    """DeepSpeed JSON with ZeRO stage 1 or 2 (infra/deepspeed); by default plain AdamW on every worker."""
    images_per_micro_batch: int | None = None
    """Images per forward and backward pass of a worker; by default all of its share of a step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the networks' arithmetic (autocast); weights, losses and codebooks stay in float32."""

    def __post_init__(self) -> None:
        if self.images_per_micro_batch is not None:
            check_at_least("engine.images-per-micro-batch", self.images_per_micro_batch, 1)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The look at held-out masks while training and at its end."""

    __pydantic_config__ = FORBID_UNKNOWN

    every: int = 500
    """Steps between looks; the best one is exported."""
    images: int = 100
    """Held-out images of a look, the first of the validation corpora."""
    final_images: int = 400
    """Held-out images of the last look, which measures more."""
    masks_per_image: int = 64
    """Most masks of an image that are looked at."""
    seed: int = 7
    """Seed of held-out scenes, and of all draws here."""

    def __post_init__(self) -> None:
        for name in ("every", "images", "final_images", "masks_per_image"):
            check_at_least(f"validation.{name.replace('_', '-')}", getattr(self, name), 1)
        check_at_least("validation.seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """One training run. The same --out resumes it."""

    __pydantic_config__ = FORBID_UNKNOWN

    out: str
    """URI of the run's folder, a local path or s3://: checkpoints, best/ and final/ tokenizer, report."""
    model: str
    """Architecture: a preset of samtok.config."""
    quantizer: QuantizerFlags = QuantizerFlags()
    """What differs from the architecture's quantizer."""
    start: StartConfig = StartConfig()
    """Weights to start from."""
    freeze: bool | None = None
    """Train encoder and decoder only, not image encoder, prompt encoder and the decoder's IoU and object
    heads (paper, appendix B). By default if training starts from SAM2's weights."""
    corpora: tuple[str, ...] = ()
    """Corpora to train on, each as reader=coco,source=FILE,images=FOLDER,dataset=NAME,weight=2,... Without
    any, synthetic scenes are made on the fly."""
    validation_corpora: tuple[str, ...] = ()
    """Held-out corpora, written likewise; needed if there are --corpora."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """What synthetic scenes look like."""
    num_scenes: int | None = None
    """Different synthetic scenes; by default none is seen twice."""
    sampling: SamplingConfig = SamplingConfig()
    """Images and masks of a step."""
    steps: int = 1000
    """Optimizer steps."""
    quantize_from: float = 0.6
    """Share of the steps before quantization begins with k-means; until then the decoder reads z itself.
    0 quantizes at once, with the codebooks of --start.tokenizer; 1 never does."""
    kmeans_samples: int = 6000
    """Latest embeddings that k-means sees."""
    loss: LossConfig = LossConfig()
    """Losses."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    engine: EngineConfig = EngineConfig()
    """Plain or DeepSpeed, micro-batches, precision."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """Workers and their resources."""
    validation: ValidationConfig = ValidationConfig()
    """Looks at held-out masks."""
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    """Checkpoints."""
    max_bad_steps: int = 5
    """Steps in a row with a loss or gradient that is no number before the run fails; each is skipped."""
    log_every_s: float = 5.0
    """Seconds between progress lines, each with means over the steps since the last one."""
    tracking: str = "sqlite:///mlflow.db"
    """MLflow tracking URI, or off."""
    seed: int = 101
    """Seed of weights, order and draws; the embedded corpora use other, small seeds for their scenes."""
    dry_run: bool = False
    """Print the resolved config, the checks and the size of the run, and write nothing."""

    def __post_init__(self) -> None:
        if self.model not in ARCHITECTURES:
            raise ConfigError(f"--model must be one of {sorted(ARCHITECTURES)}, got {self.model!r}")
        for name in ("steps", "kmeans_samples", "max_bad_steps"):
            check_at_least(name.replace("_", "-"), getattr(self, name), 1)
        check_at_least("log-every-s", self.log_every_s, 0)
        check_at_least("seed", self.seed, 0)
        refuse_password(self.tracking)
        check_share("quantize-from", self.quantize_from)
        if self.quantize_from == 0 and self.start.tokenizer is None:
            raise ConfigError(
                "--quantize-from 0 needs codebooks to begin with: give --start.tokenizer, or a share above 0"
            )
        if self.num_scenes is not None:
            check_at_least("num-scenes", self.num_scenes, 1)
        if bool(self.corpora) != bool(self.validation_corpora):
            raise ConfigError(
                "--corpora and --validation-corpora go together: give both, or neither for synthetic scenes"
            )
        self._check_shares()

    def _check_shares(self) -> None:
        images, workers = self.sampling.images_per_step, self.workers.count
        if images % workers:
            raise ConfigError(
                f"--sampling.images-per-step {images} does not divide among --workers.count {workers}; "
                f"take {images // workers * workers or workers} or {-(-images // workers) * workers}"
            )
        micro, share = self.engine.images_per_micro_batch or images // workers, images // workers
        if share % micro:
            sizes = [size for size in range(1, share + 1) if share % size == 0]
            raise ConfigError(
                f"a worker has {share} images of each step ({images} over {workers} workers), which "
                f"--engine.images-per-micro-batch {micro} does not divide; take one of {sizes}"
            )
        if self.scenes_needed > HELD_OUT_START:
            raise ConfigError(
                f"--steps x --sampling.images-per-step must stay below {HELD_OUT_START}, where held-out "
                f"scenes begin, got {self.scenes_needed}; or set --num-scenes"
            )

    @property
    def scenes_needed(self) -> int:
        """Different synthetic scenes that training draws from."""
        return self.num_scenes or self.steps * self.sampling.images_per_step

    @property
    def images_per_worker(self) -> int:
        """Images of a step that each worker has."""
        return self.sampling.images_per_step // self.workers.count

    @property
    def micro_images(self) -> int:
        """Images of a forward and backward pass."""
        return self.engine.images_per_micro_batch or self.images_per_worker

    @property
    def quantization_step(self) -> int:
        """The first step whose masks go through the codebooks."""
        return 0 if self.quantize_from == 0 else max(1, round(self.steps * self.quantize_from))
