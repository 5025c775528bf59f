"""Options of ``jobs/make_shapes.py``, and its presets."""

import dataclasses
from dataclasses import field
from typing import Annotated, Any, Literal

import tyro
from annotated_types import Interval

from pipelines.config import AtLeast0, AtLeast1, NotEmpty, Place, Share, config
from samtok.errors import ConfigError
from samtok.shapes import FAMILIES, TOUR_WORLD, WORLD_VERSION, Family, WorldConfig

STARTED, COMPLETE = "shapes.started", "shapes.complete"
"""Files in the folder of a synthetic corpus, the first and the last that are written."""

Format = Literal[
    "coco",
    "sa1b",
    "refer",
    "granf",
    "psg",
    "dam",
    "vqa",
    "panoptic",
    "ade20k",
    "cityscapes",
    "cityscapes_polygons",
    "reasonseg",
    "lisa",
    "pixelweb",
    "masks",
    "labelme",
    "yolo",
    "sav",
    "mevis",
    "gar",
    "segllm",
    "osprey",
    "groundingsuite",
    "mdvp",
    "dlc",
    "dam_tar",
    "easyr1",
    "revos",
    "ytvos",
    "visual7w",
    "invig",
    "copsref",
    "v3det",
]

_WITH_EXPRESSIONS = ("refer", "mevis", "revos", "ytvos", "groundingsuite", "easyr1", "visual7w", "copsref")
_WITH_FRAMES = ("sav", "mevis", "revos", "ytvos")
_ONE_TARGET = ("ytvos", "visual7w", "copsref")
_JPEG_ONLY = {
    "sa1b": "SA-1B",
    "ade20k": "ADE20K",
    "sav": "SA-V",
    "mevis": "MeViS",
    "revos": "ReVOS",
    "ytvos": "Ref-YouTube-VOS",
    "dam_tar": "DAM",
    "copsref": "Cops-Ref",
}


@config
class ExpressionsConfig:
    """Which referring expressions a scene gets; a scene may have fewer that are true."""

    single: AtLeast0 = 2
    """Expressions per image that mean one shape."""
    multi: AtLeast0 = 1
    """Expressions per image that mean several shapes."""
    none: AtLeast0 = 1
    """Expressions per image that mean no shape that is there."""
    families: Annotated[tuple[Family, ...], NotEmpty] = FAMILIES
    """How they refer: by attributes, by a place, by an extreme, by another shape beside it; ordinals, which
    count (the second star from the left), only where they are named."""
    mark_hidden: bool = False
    """refer: give expressions the tag occluded if another shape hides a clear piece of what they mean."""

    def check(self) -> None:
        """Refuses what leaves no room for ids, and families that are repeated."""
        total = self.single + self.multi + self.none
        if not 1 <= total <= 99:  # ids leave room for 99 an image
            raise ConfigError(f"--.single, --.multi and --.none must be in [1, 99] together, got {total}.")
        if len(set(self.families)) < len(self.families):
            raise ConfigError(f"--.families must have each family once, got {' '.join(self.families)}.")


@config
class ShapesConfig:
    """A range of synthetic scenes and the published format that they are written in."""

    MAIN = ("out", "format", "num_images", "first_index", "seed", "split", "dry_run")

    out: Place = tyro.MISSING
    """Folder or s3:// prefix of the corpus; one corpus each."""
    format: Format = "coco"
    """Layout: COCO instances, SA-1B side-cars, refer (gRefCOCO: referring expressions), granf (grounded
    captions), psg (panoptic maps and relations), dam (a caption for every mask), vqa (chats without masks,
    half of them without an image, for --chats.source of compose_dialogues), panoptic (COCO panoptic JSON and
    PNGs), ade20k (full release: *_seg.png and JSON), cityscapes (*_instanceIds.png, *_labelIds.png),
    cityscapes_polygons (*_gtFine_polygons.json), reasonseg (questions and polygons in a JSON beside each
    image), lisa (LISA++: questions, and objects as in COCO), pixelweb (a matrix and classes beside each
    image), masks (PNGs in a folder), labelme (a JSON beside each image), yolo (a text file for each image),
    sav (SA-V: masklets of videos), mevis (MeViS: expressions of videos), gar (Arrow streams of conversations
    about regions), segllm (conversations of several rounds), osprey (descriptions of regions, and
    conversations), groundingsuite (a line for each expression), mdvp (questions and captions of regions), dlc
    (DLC-Bench: questions that judge descriptions), dam_tar (DAM's archives), easyr1 (Parquet of prompts with
    embedded images), revos, ytvos (ReVOS, Ref-YouTube-VOS: expressions of videos), visual7w, invig, copsref
    and v3det (boxes without masks: questions, dialogues, expressions, labels)."""
    world: WorldConfig = field(default_factory=WorldConfig)
    expressions: ExpressionsConfig = field(default_factory=ExpressionsConfig)
    """refer, easyr1: expressions of each scene; groundingsuite: those that mean something; visual7w, copsref:
    those that mean one shape; mevis, revos, and with one shape ytvos: by attributes whatever the families."""
    seed: AtLeast0 = 0
    """Which family of scenes; splits of one family differ in their index range."""
    first_index: AtLeast0 = 0
    """First scene. Ranges that do not overlap are disjoint splits."""
    num_images: AtLeast1 = 1000
    """Scenes to write; sav, mevis, revos, ytvos: videos."""
    split: str = "train"
    """Name of the split, and in most layouts of the image folder and of the annotation file; not for sa1b."""
    segmentation: Literal["rle", "polygon"] = "rle"
    """coco, refer, lisa, segllm, osprey: compressed RLE, or a polygon where one polygon is exactly the mask
    and RLE elsewhere; labelme: likewise, with shapes of type mask for RLE."""
    crowd_share: Share = 0.0
    """coco, refer, lisa, segllm, panoptic, cityscapes: share of annotations that are crowds (the first four:
    iscrowd 1, uncompressed RLE; cityscapes, cityscapes_polygons: a group of its class); labelme: of shapes
    that have the flag crowd; v3det: of boxes that have iscrowd 1; reasonseg: of shapes that are ignored,
    unless they are meant."""
    image_format: Literal["jpg", "png"] = "jpg"
    """Image files. SA-1B, ADE20K, DAM's archives, Cops-Ref and videos have JPEG only; cityscapes,
    cityscapes_polygons and pixelweb are PNG whatever is said here."""
    jpeg_quality: Annotated[int, Interval(ge=1, le=95)] = 95
    """JPEG quality."""
    layout: Literal["flat", "nested", "tar"] = "nested"
    """sa1b: one folder, numbered sub-folders, or uncompressed archives as published."""
    images_per_folder: AtLeast1 = 1000
    """sa1b, gar, dam_tar, easyr1: images per sub-folder, archive, stream or Parquet file; such a file is held
    in memory while it is made. sav: videos per sub-folder."""
    mask_layout: Literal["objects", "labelmap"] = "objects"
    """masks: a PNG for each shape, or one for each image with the kinds of shapes as values."""
    frames: AtLeast1 = 8
    """sav, mevis, revos, ytvos: annotated frames of each video, in which a camera pans over a scene and
    back."""
    dry_run: bool = False
    """Print the resolved config and what would be written, and write nothing."""

    def check(self) -> None:
        """Refuses a split that is no plain name, PNGs of what has JPEGs only, and texts about nothing."""
        if not self.split.isidentifier():
            raise ConfigError(f"--.split must be a plain name such as train or val2017, got {self.split!r}.")
        name = _JPEG_ONLY.get(self.format)
        if name and self.image_format != "jpg":
            raise ConfigError(f"{name} has JPEG images only; drop --.image-format {self.image_format}.")
        wanted = self.expressions
        if self.format in _ONE_TARGET and not wanted.single:
            raise ConfigError(
                f"--.format {self.format} has only expressions that mean one shape; "
                "--.expressions.single must be >= 1, got 0."
            )
        if self.format == "groundingsuite" and not wanted.single + wanted.multi:
            raise ConfigError(
                "--.format groundingsuite has only expressions that mean something; --.expressions.single or "
                "--.expressions.multi must be >= 1, got 0."
            )

    def identity(self) -> dict[str, Any]:
        """Returns all that decides the corpus, as plain JSON values; not where it is."""
        fields = dataclasses.asdict(self)
        del fields["out"], fields["dry_run"]
        if self.format in _WITH_EXPRESSIONS:
            fields["expressions"]["families"] = list(self.expressions.families)
            if not self.expressions.mark_hidden:
                del fields["expressions"]["mark_hidden"]
        else:
            del fields["expressions"]
        if self.format != "masks":
            del fields["mask_layout"]
        if self.format not in _WITH_FRAMES:
            del fields["frames"]
        fields["world"]["sizes_hw"] = [list(size) for size in self.world.sizes_hw]
        fields["world"] = {k: list(v) if isinstance(v, tuple) else v for k, v in fields["world"].items()}
        return {**fields, "world_version": WORLD_VERSION}


HELD_OUT_INDEX = 10_000_000
"""First scene of held-out splits, beyond training ranges; mask ids (100 per image) still fit 32 bits."""


def _held_out_tour(split: str, first_index: int, num_images: int, *, tour: str = "tour") -> ShapesConfig:
    return ShapesConfig(
        out=f"runs/{tour}/shapes-{split}",
        format="refer",
        num_images=num_images,
        first_index=first_index,
        split=split,
        world=TOUR_WORLD,
        expressions=ExpressionsConfig(single=2, multi=1, none=1, families=("attributes",)),
    )


_TOUR = ShapesConfig(
    out="runs/tour/shapes-train",
    format="refer",
    num_images=8000,
    world=TOUR_WORLD,
    expressions=ExpressionsConfig(single=4, multi=1, none=2, families=("attributes",)),
)


TOUR_TASKS: dict[str, tuple[Format, int, int]] = {
    "gcg": ("granf", 4, 3000),
    "psg": ("psg", 3, 1500),
    "regions": ("dam", 6, 2000),
    "rounds": ("segllm", 4, 3000),
}
"""Corpora of ``make tour-tasks``: the layout of each, the most shapes of its scenes, and how many there are
to train on. Relations are ten times as long as captions of regions, so there are fewer of them."""


def _tour_tasks(name: str, split: str, *, first_index: int, num_images: int) -> ShapesConfig:
    layout, most, _ = TOUR_TASKS[name]
    return ShapesConfig(
        out=f"runs/tour-tasks/shapes-{split}/{name}",
        format=layout,
        num_images=num_images,
        first_index=first_index,
        split=split,
        world=dataclasses.replace(TOUR_WORLD, max_objects=most),
    )


PRESETS: dict[str, ShapesConfig] = {
    # 64 scenes of 64 px in about a second: enough for every job to run.
    "smoke": ShapesConfig(
        out="runs/shapes-smoke", num_images=64, world=WorldConfig.square(64), crowd_share=0.05
    ),
    # 20,000 scenes of 128 px to train on.
    "train": ShapesConfig(num_images=20_000),
    # 500 scenes beyond every training range.
    "heldout": ShapesConfig(num_images=500, first_index=HELD_OUT_INDEX, split="val"),
    # Referring expressions of `make tour` to train on, of which about a quarter mean nothing that is there.
    "tour": _TOUR,
    # Held-out scenes for validation in `make tour`.
    "tour-val": _held_out_tour("val", HELD_OUT_INDEX, 400),
    # Held-out scenes for the last measurement; nothing is chosen by them.
    "tour-test": _held_out_tour("test", HELD_OUT_INDEX + 1_000_000, 400),
    # Scenes of `make tour-thinking`, and held-out ones.
    "tour-thinking": dataclasses.replace(_TOUR, out="runs/tour-thinking/shapes-train", num_images=2000),
    "tour-thinking-val": _held_out_tour("val", HELD_OUT_INDEX, 200, tour="tour-thinking"),
    # Of each task of `make tour-tasks`: grounded captions, relations, captions of regions, several rounds.
    **{
        f"tour-tasks-{name}": _tour_tasks(name, "train", first_index=0, num_images=count)
        for name, (_, _, count) in TOUR_TASKS.items()
    },
    # Held-out scenes of the same.
    **{
        f"tour-tasks-{name}-val": _tour_tasks(name, "val", first_index=HELD_OUT_INDEX, num_images=100)
        for name in TOUR_TASKS
    },
}
