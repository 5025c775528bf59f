"""What the pixels of published label maps mean: which files are maps, which numbers they have, what is void.

A map is first turned into one *value* per pixel, of which each different one is a mask; a value then gives
the id of its mask, its class, and whether it is void or a crowd. ``ENCODINGS`` has all of them with their
sources. Reading files and naming classes is ``labelmap``.
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

EncodingName = Literal[
    "ade20k",
    "ade20k_instances",
    "sceneparsing",
    "ade_instances",
    "cityscapes",
    "cityscapes_labels",
    "cocostuff",
    "train_ids",
]

Pixels = Int[np.ndarray, "height width"]

CITYSCAPES_CLASSES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground"),
    *("road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge"),
    *("tunnel", "pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky"),
    *("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
"""Names of classes 0 to 33 (mcordts/cityscapesScripts, labels.py), which no file of the dataset has."""

CITYSCAPES_VOIDS = range(7)
"""Classes of pixels that are left out of all evaluations."""

_CITYSCAPES_THINGS = range(24, 34)


class Named(NamedTuple):
    """What one value of a map stands for."""

    mask_id: str
    label: int
    """Number of its class in the legend."""
    void: bool = False
    crowd: bool = False
    instance: int = 0
    """Which one of its class, from 1; 0 where the map does not tell one from another."""
    level: int = 0
    """0 for whole objects, from 1 for parts (ADE20K)."""


class Encoding(NamedTuple):
    """One way to write a label map."""

    files: re.Pattern[str]
    """Names of the maps; ``key`` is the name of the image without what says its kind."""
    image: str
    """Name of the image, with ``{}`` for that key and without its suffix."""
    named: Callable[[int], Named]
    rgb: bool = False
    """Numbers are in colours; else one number per pixel."""
    values: Callable[[Pixels], Pixels] = lambda ids: ids
    """Turns ``R + 256 * G + 65536 * B``, or the number of gray, into values; none is below 0."""
    classes: tuple[str, ...] = ()
    """Names by number where no file of the dataset has them."""


def _ade_classes(ids: Pixels) -> Pixels:
    return (ids & 255) // 10 * 256 + (ids >> 8 & 255)


def _ade_class_and_rank(ids: Pixels) -> Pixels:
    """An instance is the rank of B among the values above 0 of B in its image, which are no numbers of their
    own; 0 where B is 0."""
    classes, tags = _ade_classes(ids), ids >> 16
    present = np.zeros(256, bool)
    present[tags] = True
    ranks = np.cumsum(present & (np.arange(256) > 0)) * present
    ranks[0] = 0
    return np.where(classes > 0, classes * 256 + ranks[tags], 0).astype(np.int32)


def _ade_category_and_instance(ids: Pixels) -> Pixels:
    return np.where(ids >> 8 & 255, (ids & 255) * 256 + (ids >> 8 & 255), 0).astype(np.int32)


def _class(value: int) -> Named:
    return Named(str(value), value, void=value == 0)


def _instance(value: int) -> Named:
    label, instance = value >> 8, value & 255
    return Named(f"{label}-{instance}" if value else "0", label, void=value == 0, instance=instance)


def _counted_from_1(value: int) -> Named:
    return Named(str(value), value + 1, void=value == 255)


def _train_id(value: int) -> Named:
    return Named(str(value), value, void=value == 255)


def _cityscapes_label(value: int) -> Named:
    return Named(str(value), value, void=value in CITYSCAPES_VOIDS)


def _cityscapes_instance(value: int) -> Named:
    label = value // 1000 if value >= 1000 else value
    crowd = value < 1000 and label in _CITYSCAPES_THINGS
    return Named(str(value), label, void=label in CITYSCAPES_VOIDS, crowd=crowd)


def _files(end: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<key>.*[^/]){end}\.png", re.IGNORECASE | re.DOTALL)


CITYSCAPES_IMAGE = "{}_leftImg8bit"
"""Name of an image without its suffix, by what its files have in common."""

ENCODINGS: dict[str, Encoding] = {
    # CSAILVision/ADE20K, utils_ade20k.py. 0 is unlabelled.
    "ade20k": Encoding(_files("_seg"), "{}", _class, True, _ade_classes),
    "ade20k_instances": Encoding(_files("_seg"), "{}", _instance, True, _ade_class_and_rank),
    # CSAILVision/sceneparsing (ADEChallengeData2016). 0 is other.
    "sceneparsing": Encoding(_files(""), "{}", _class),
    # The same, annotations_instance: R category, G instance, 0 for none (Mask2Former,
    # prepare_ade20k_ins_seg.py).
    "ade_instances": Encoding(_files(""), "{}", _instance, True, _ade_category_and_instance),
    # mcordts/cityscapesScripts, json2instanceImg.py and labels.py. Classes 0 to 6 are void; of things below
    # 1000, several objects as one.
    "cityscapes": Encoding(
        *(_files("_gt(?:Fine|Coarse)_instanceIds"), CITYSCAPES_IMAGE, _cityscapes_instance),
        classes=CITYSCAPES_CLASSES,
    ),
    "cityscapes_labels": Encoding(
        *(_files("_gt(?:Fine|Coarse)_labelIds"), CITYSCAPES_IMAGE, _cityscapes_label),
        classes=CITYSCAPES_CLASSES,
    ),
    # nightrome/cocostuff, README: labels of labels.txt, less 1; 255 is unlabelled.
    "cocostuff": Encoding(_files("(?<!_labelTrainIds)"), "{}", _counted_from_1),
    # open-mmlab/mmsegmentation, coco_stuff164k.py; cityscapesScripts, createTrainIdLabelImgs.py. 255 is void.
    "train_ids": Encoding(_files("_labelTrainIds"), "{}", _train_id),
}
"""How the files of ``--corpus.encoding`` are read."""


def image_stem(encoding: Encoding, key: str) -> str:
    """Returns the name of the image of a map without its suffix: of maps of training ids, as of the dataset
    that they were made from."""
    stem = re.sub("_gt(?:Fine|Coarse)$", "", key)
    return CITYSCAPES_IMAGE.format(stem) if stem != key else encoding.image.format(key)
