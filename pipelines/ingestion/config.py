"""What can be told about making the synthetic corpus, and presets."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from samtok.shapes import FAMILIES, TOUR_WORLD, WORLD_VERSION, Family, WorldConfig

Format = Literal["coco", "sa1b", "refer", "granf", "psg", "dam"]


@dataclass(frozen=True, kw_only=True)
class ExpressionsConfig:
    """Which referring expressions are said of a scene; a scene may have fewer that are true."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 an unknown key in a config file is named

    single: int = 2
    """Expressions per image that mean one shape."""
    multi: int = 1
    """Expressions per image that mean several shapes."""
    none: int = 1
    """Expressions per image that mean no shape that is there."""
    families: tuple[Family, ...] = FAMILIES
    """How they are said: by attributes, with a place, as an extreme, beside another shape."""

    def __post_init__(self) -> None:
        counts = (self.single, self.multi, self.none)
        if min(counts) < 0 or not 1 <= sum(counts) <= 99:  # ids leave room for 99 an image
            raise ValueError(
                f"--expressions: single, multi and none must be 0 or more and 1 to 99 together, got {counts}"
            )
        if not self.families or len(set(self.families)) < len(self.families):
            raise ValueError(f"--expressions.families must name each family once, got {self.families}")


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """A range of synthetic scenes and the published format that they are written in."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 an unknown key in a config file is named

    out: str = tyro.MISSING
    """Folder or s3:// prefix of the corpus; one corpus each."""
    format: Format = "coco"
    """Layout: COCO instances, SA-1B side-cars, refer (gRefCOCO: referring expressions), granf (grounded
    captions), psg (panoptic maps and relations), dam (a caption for every mask)."""
    world: WorldConfig = field(default_factory=WorldConfig)
    expressions: ExpressionsConfig = field(default_factory=ExpressionsConfig)
    """refer: what is said of a scene."""
    seed: int = 0
    """Which family of scenes; splits of one family differ in their index range."""
    first_index: int = 0
    """First scene. Ranges that do not overlap are disjoint splits."""
    num_images: int = 1000
    """Scenes to write."""
    split: str = "train"
    """Name of the split, of the image folder and of the annotation file; not for sa1b."""
    segmentation: Literal["rle", "polygon"] = "rle"
    """coco, refer: compressed RLE, or a polygon where one polygon is exactly the mask and RLE elsewhere."""
    crowd_share: float = 0.0
    """coco, refer: share of annotations that are crowds (iscrowd 1, uncompressed RLE)."""
    image_format: Literal["jpg", "png"] = "jpg"
    """Image files. SA-1B has JPEG only."""
    jpeg_quality: int = 95
    """JPEG quality, 1 to 95."""
    layout: Literal["flat", "nested", "tar"] = "nested"
    """sa1b: one folder, numbered sub-folders, or uncompressed archives as published."""
    images_per_folder: int = 1000
    """sa1b: images per sub-folder or archive; an archive is held in memory while it is made."""
    dry_run: bool = False
    """Say what would be written, and stop."""

    def __post_init__(self) -> None:
        for name, low in (("seed", 0), ("first_index", 0), ("num_images", 1), ("images_per_folder", 1)):
            value, flag = getattr(self, name), name.replace("_", "-")
            if value < low:
                raise ValueError(f"--{flag} must be at least {low}, got {value}")
        if not 0 <= self.crowd_share <= 1:
            raise ValueError(f"--crowd-share must be in [0, 1], got {self.crowd_share}")
        if not 1 <= self.jpeg_quality <= 95:
            raise ValueError(f"--jpeg-quality must be in 1..95, got {self.jpeg_quality}")
        if not self.split.isidentifier():
            raise ValueError(f"--split must be a plain name such as train or val2017, got {self.split!r}")
        if self.format == "sa1b" and self.image_format != "jpg":
            raise ValueError(f"SA-1B has JPEG images only; drop --image-format {self.image_format}")

    def identity(self) -> dict[str, Any]:
        """Returns all that decides the corpus, as plain JSON values; not where it is."""
        fields = dataclasses.asdict(self)
        del fields["out"], fields["dry_run"]
        if self.format == "refer":
            fields["expressions"]["families"] = list(self.expressions.families)
        else:
            del fields["expressions"]
        fields["world"]["sizes_hw"] = [list(size) for size in self.world.sizes_hw]
        fields["world"] = {k: list(v) if isinstance(v, tuple) else v for k, v in fields["world"].items()}
        return {**fields, "world_version": WORLD_VERSION}


HELD_OUT_INDEX = 10_000_000
"""First scene of held-out splits, beyond training ranges; mask ids (100 per image) still fit 32 bits."""


def _held_out_tour(split: str, first_index: int, num_images: int) -> ShapesConfig:
    return ShapesConfig(
        out=f"runs/tour/shapes-{split}",
        format="refer",
        num_images=num_images,
        first_index=first_index,
        split=split,
        world=TOUR_WORLD,
        expressions=ExpressionsConfig(single=2, multi=1, none=1, families=("attributes",)),
    )


PRESETS: dict[str, ShapesConfig] = {
    # 64 scenes of 64 px in about a second: enough for every job to run.
    "smoke": ShapesConfig(num_images=64, world=WorldConfig.square(64), crowd_share=0.05),
    "train": ShapesConfig(num_images=20_000),
    "heldout": ShapesConfig(num_images=500, first_index=HELD_OUT_INDEX, split="val"),
    # Referring expressions of `make tour`, of which about a quarter mean nothing that is there.
    "tour": ShapesConfig(
        out="runs/tour/shapes-train",
        format="refer",
        num_images=8000,
        world=TOUR_WORLD,
        expressions=ExpressionsConfig(single=4, multi=1, none=2, families=("attributes",)),
    ),
    "tour-val": _held_out_tour("val", HELD_OUT_INDEX, 400),
    # What nothing is chosen by.
    "tour-test": _held_out_tour("test", HELD_OUT_INDEX + 1_000_000, 400),
}
