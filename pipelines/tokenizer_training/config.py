"""Options of ``jobs/train_tokenizer.py``; the presets are in ``presets``.

Numbers without a source were found on the embedded corpus with one CPU thread.
"""

import dataclasses
from typing import Annotated, Any, Literal

from annotated_types import Ge

from pipelines.config import AtLeast0, AtLeast1, NotNegative, Share, ShippedPlace, config
from pipelines.ingestion.corpora import CorpusText
from pipelines.training.config import EngineConfig, TrainingConfig
from pipelines.training.config import ValidationConfig as BaseValidationConfig
from samtok.config import PRESETS as ARCHITECTURES
from samtok.config import QuantizerConfig
from samtok.errors import ConfigError
from samtok.shapes import WorldConfig

HELD_OUT_START = 1 << 30
"""Index of the first held-out scene; training uses indices below, so the two never meet."""


@config
class LossConfig:
    """Weights of the losses, and the points at which masks are compared."""

    bce: NotNegative = 2.0
    """Weight of the cross-entropy; the authors' config has 2, the paper 1."""
    dice: NotNegative = 1.0
    """Weight of the Dice loss; the authors' config has 0.5, the paper 1."""
    commitment: NotNegative = 0.25
    """Weight of the commitment of z to its codes, once quantization has begun."""
    box: NotNegative = 2.0
    """Weight of the training-only head that reads the mask's box from z; 0 leaves it out. Without it a small
    model trained from scratch stays on a plateau where z carries nothing."""
    num_points: AtLeast1 = 12544  # 112 x 112, as in Mask2Former and the authors' config
    """Points per mask; logits with fewer pixels are compared whole."""
    oversample: Annotated[float, Ge(1)] = 3.0  # as above
    """Points drawn for each uncertain one that is kept."""
    importance: Share = 0.75  # as above
    """Share of the points kept for being uncertain."""
    targets: Literal["area", "nearest"] = "area"
    """What logits are compared with: the share of each cell that is inside, or as the authors do the pixel at
    its corner, 0 or 1. Cross-entropy with shares stays above 0."""


@config
class QuantizerFlags:
    """What differs from the architecture's own quantizer; unset fields keep it."""

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
        """Returns the quantizer with these fields replaced; raises ValueError if the fields do not go
        together."""
        given: dict[str, Any] = {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, ())}
        if given.get("kind", base.kind) == "vq":
            given.setdefault("num_levels", 1)
        return dataclasses.replace(base, **given)


@config
class CodebooksConfig:
    """How codebooks begin and follow the embeddings; not for fsq, which has none."""

    start: Literal["kmeans", "random"] = "kmeans"
    """Where they begin: at the centres of the latest embeddings, or random from a normal distribution. With
    --start.tokenizer and --quantize-from 0 they are the tokenizer's."""
    decay: Share = 0.99
    """Weight of the past in the moving averages of embeddings."""
    dead_below: NotNegative = 0.1
    """A code begins anew at an embedding when its share of use falls below this part of an even share. A
    moving count of 1 is num_codes / masks per step; 0 restarts none."""


@config
class StartConfig:
    """Which weights training starts from; without any they are random."""

    sam2: ShippedPlace | None = None
    """SAM2.1 of the size that --model names: sam2.1_hiera_*.pt, or transformers' folder of it, local or s3://,
    or a hub id such as facebook/sam2.1-hiera-large."""
    tokenizer: ShippedPlace | None = None
    """A tokenizer: a shipped name, a folder or a hub id. Another quantizer than its own is set up anew."""

    def check(self) -> None:
        """Training starts from one of them at most."""
        if self.sam2 and self.tokenizer:
            raise ConfigError("--.sam2 and --.tokenizer exclude each other; give one.")


@config
class SamplingConfig:
    """Which images make a step, and which of their masks."""

    images_per_step: AtLeast1 = 8
    """Images of a step over all workers, each encoded once."""
    masks_per_image: AtLeast1 = 8
    """Most masks of an image that a step trains; of more, so many are drawn."""
    pick: Literal["uniform", "area"] = "uniform"
    """How they are drawn, without replacement: all alike, or in proportion to the root of their area."""
    drop_nested: bool = False
    """First leave out masks that lie (nine tenths of their area) in a larger mask of the image: parts."""
    skip: tuple[Literal["crowd", "void"], ...] = ("crowd", "void")
    """Masks with these flags are not trained on."""
    min_area_px: AtLeast1 = 16
    """Masks with fewer pixels are not trained on."""


@config
class ValidationConfig(BaseValidationConfig):
    """Validation on held-out masks during training and at its end; the best tokenizer is exported."""

    corpora: tuple[CorpusText, ...] = ()
    """Held-out corpora, written as --corpora; needed if there are --corpora."""
    images: AtLeast1 = 100
    """Held-out images of a validation, the first of the validation corpora."""
    final_images: AtLeast1 = 400
    """Held-out images of the last validation, which measures more."""
    masks_per_image: AtLeast1 = 64
    """Most masks of an image that are measured."""
    seed: AtLeast0 = 7
    """Seed of held-out scenes, and of all draws here."""


@config
class TrainTokenizerConfig(TrainingConfig):
    """A mask tokenizer is trained: reconstruction through codes."""

    model: str
    """Architecture: a preset of samtok.config."""
    quantizer: QuantizerFlags = QuantizerFlags()
    start: StartConfig = StartConfig()
    freeze: bool | None = None
    """Train encoder and decoder only, not image encoder, prompt encoder and the decoder's IoU and object
    heads (paper, appendix B). By default if training starts from SAM2's weights."""
    corpora: tuple[CorpusText, ...] = ()
    """Corpora to train on, each as reader=coco,source=FILE,images=FOLDER,dataset=NAME,weight=2,... Without
    any, synthetic scenes are made on the fly."""
    world: WorldConfig = WorldConfig()
    """What synthetic scenes look like."""
    num_scenes: AtLeast1 | None = None
    """Different synthetic scenes; by default none is seen twice."""
    sampling: SamplingConfig = SamplingConfig()
    quantize_from: Share = 0.6
    """Share of the steps before quantization begins; until then the decoder reads z itself. 0 quantizes at
    once, with the codebooks of --start.tokenizer or random ones; 1 never does."""
    kmeans_samples: AtLeast1 = 6000
    """Latest embeddings that k-means is fitted to."""
    codebooks: CodebooksConfig = CodebooksConfig()
    loss: LossConfig = LossConfig()
    compile: bool = False
    """Compile the image encoder: slow first step, faster later ones."""
    engine: EngineConfig = EngineConfig()
    validation: ValidationConfig = ValidationConfig()

    def check(self) -> None:
        """Checks what several fields decide together."""
        super().check()
        if self.model not in ARCHITECTURES:
            raise ConfigError(
                f"--.model must be one of {', '.join(sorted(ARCHITECTURES))}, got {self.model}."
            )
        if self.quantize_from == 0 and self.start.tokenizer is None and self.codebooks.start == "kmeans":
            raise ConfigError(
                "--.quantize-from 0 needs codebooks to begin with: give --.start.tokenizer, "
                "--.codebooks.start random, or a share > 0."
            )
        if bool(self.corpora) != bool(self.validation.corpora):
            raise ConfigError(
                "--.corpora and --.validation.corpora go together: give both, or neither for scenes."
            )
        self.check_shares("--.sampling.images-per-step")
        if self.scenes_needed > HELD_OUT_START:
            raise ConfigError(
                f"--.steps x --.sampling.images-per-step must be <= {HELD_OUT_START}, where held-out scenes "
                f"begin, got {self.scenes_needed}; or set --.num-scenes."
            )

    @property
    def per_step(self) -> int:
        return self.sampling.images_per_step

    @property
    def scenes_needed(self) -> int:
        """Different synthetic scenes that training draws from."""
        scenes = self.num_scenes or self.steps * self.sampling.images_per_step
        return min(scenes, self.limit or scenes)

    @property
    def quantization_step(self) -> int:
        """The first step whose masks go through the codebooks."""
        return 0 if self.quantize_from == 0 else max(1, round(self.steps * self.quantize_from))

    def fits_codebooks(self, kind: str) -> bool:
        """Returns whether k-means makes the codebooks of a quantizer of this kind."""
        return kind != "fsq" and self.codebooks.start == "kmeans"
