"""Datasets whose files are known: what each is for, who publishes it, and how it is read below a folder.

A split is written as in ``--corpora``, with places below the folder (``root``) that the download was unpacked
into. ``python -m pipelines.tools.datasets`` lists and checks them, and a mixture file names them with
``known``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.config import parse_pairs
from samtok.errors import ConfigError

PAPER = ("tokenizer", "SFT", "benchmark")
"""What the paper uses a dataset for (its Fig. 4, and docs/TRAIN_TOKENIZER.md of the authors' code)."""

COCO_TERMS = "annotations CC BY 4.0, images under Flickr's terms"
ASK = "see where it is published"


@dataclass(frozen=True)
class KnownDataset:
    """A dataset in its published layout."""

    name: str
    title: str
    gives: str
    """What a row has besides masks."""
    use: tuple[str, ...]
    """Of ``PAPER``; empty for one that the paper does not use."""
    get: str
    """Where its files are published."""
    licence: str
    splits: Mapping[str, str]
    """Name of a split -> how it is read."""
    note: str = ""


def _split(dataset: str, reader: str, source: str, images: str | None = None, **more: str) -> str:
    """Returns a split as ``--corpora`` has it."""
    parts = {"reader": reader, "source": source, "images": images, "dataset": dataset, **more}
    return ",".join(f'{key}="{value}"' for key, value in parts.items() if value is not None)


def _refer(name: str, folder: str, refs: str, images: str, splits: str) -> dict[str, str]:
    return {split: _split(name, "refer", f"{folder}/{refs}", images, split=split) for split in splits.split()}


_TRAIN2014 = "images/mscoco/images/train2014"
_REFER = "github.com/lichengunc/refer, images of COCO 2014"

_ALL = (
    KnownDataset(
        "coco",
        "COCO 2017 instances",
        "labels, crowds",
        (),
        "cocodataset.org",
        COCO_TERMS,
        {
            split: _split(
                "coco", "coco", f"annotations/instances_{split}2017.json", f"{split}2017", split=split
            )
            for split in ("train", "val")
        },
    ),
    KnownDataset(
        "lvis",
        "LVIS v1",
        "labels of 1,203 classes",
        (),
        "lvisdataset.org, images of COCO 2017 in one folder",
        COCO_TERMS,
        {
            split: _split("lvis", "coco", f"lvis_v1_{split}.json", ".", split=split, image_path="coco_url")
            for split in ("train", "val")
        },
        "Images of train and val are mixed: the folder needs both train2017 and val2017.",
    ),
    KnownDataset(
        "entityseg",
        "EntitySeg, low resolution",
        "class-agnostic masks",
        ("tokenizer",),
        "github.com/adobe-research/EntitySeg-Dataset",
        ASK,
        {
            split: _split(
                "entityseg",
                "coco",
                f"annotations/entity_segmentation/entityv2_010203_entity_{split}_lr.json",
                "images_lr",
                split=split,
                image_folders="entity_01_11580,entity_02_11598,entity_03_10049",
            )
            for split in ("train", "val")
        },
    ),
    KnownDataset(
        "sa1b",
        "SA-1B",
        "class-agnostic masks",
        ("tokenizer",),
        "ai.meta.com/datasets/segment-anything",
        "SA-1B Dataset Research License",
        {"train": _split("sa1b", "sa1b", ".")},
        "Folders or uncompressed archives (sa_000000.tar) as published; not unpacked is better.",
    ),
    KnownDataset(
        "coco-panoptic",
        "COCO 2017 panoptic",
        "labels of things and stuff",
        ("tokenizer",),
        "cocodataset.org",
        COCO_TERMS,
        {
            split: _split(
                "coco-panoptic",
                "panoptic",
                f"annotations/panoptic_{split}2017.json",
                f"{split}2017",
                split=split,
            )
            for split in ("train", "val")
        },
    ),
    KnownDataset(
        "coconut",
        "COCONut S, B and its validation",
        "labels of things and stuff",
        ("tokenizer", "SFT"),
        "github.com/bytedance/coconut_cvpr2024, images of COCO 2017",
        ASK,
        {
            "s": _split("coconut", "panoptic", "coconut_s.json", ".", split="s", image_folders="train2017"),
            "b": _split(
                "coconut",
                "panoptic",
                "coconut_b.json",
                ".",
                split="b",
                image_folders="train2017,unlabeled2017",
            ),
            "val": _split(
                "coconut",
                "panoptic",
                "relabeled_coco_val.json",
                ".",
                split="val",
                image_folders="val2017",
                panoptic="relabeled_coco_val",
            ),
        },
    ),
    KnownDataset(
        "ade20k",
        "ADE20K, the 2016 challenge",
        "labels of 150 classes, one mask per class",
        ("tokenizer", "SFT"),
        "data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        "research and education, without commerce (groups.csail.mit.edu/vision/datasets/ADE20K/terms)",
        {
            split: _split(
                "ade20k",
                "labelmap",
                f"annotations/{split}",
                f"images/{split}",
                encoding="sceneparsing",
                legend="objectInfo150.txt",
                split=split,
            )
            for split in ("training", "validation")
        },
    ),
    KnownDataset(
        "ade20k-full",
        "ADE20K, the full release of 2021",
        "labels, one mask per object",
        (),
        "ade20k.csail.mit.edu",
        "research and education, without commerce (groups.csail.mit.edu/vision/datasets/ADE20K/terms)",
        {
            split: _split(
                "ade20k-full",
                "labelmap",
                f"images/ADE/{split}",
                f"images/ADE/{split}",
                encoding="ade20k_instances",
                split=split,
            )
            for split in ("training", "validation")
        },
    ),
    KnownDataset(
        "cityscapes",
        "Cityscapes, instance maps",
        "labels, groups as crowds",
        ("tokenizer",),
        "cityscapes-dataset.com: leftImg8bit, gtFine",
        "own terms, without commerce",
        {
            split: _split(
                "cityscapes",
                "labelmap",
                f"gtFine/{split}",
                f"leftImg8bit/{split}",
                encoding="cityscapes",
                split=split,
            )
            for split in ("train", "val")
        },
    ),
    KnownDataset(
        "cocostuff",
        "COCO-Stuff 164k",
        "labels of things and stuff, one mask per class",
        ("SFT",),
        "github.com/nightrome/cocostuff: stuffthingmaps_trainval2017, labels.txt; images of COCO 2017",
        COCO_TERMS,
        {
            split: _split(
                "cocostuff",
                "labelmap",
                f"stuffthingmaps/{split}2017",
                f"{split}2017",
                encoding="cocostuff",
                legend="labels.txt",
                split=split,
            )
            for split in ("train", "val")
        },
    ),
    KnownDataset(
        "refcoco",
        "RefCOCO (UNC)",
        "expressions of one object",
        ("SFT", "benchmark"),
        _REFER,
        COCO_TERMS,
        _refer("refcoco", "refcoco", "refs(unc).p", _TRAIN2014, "train val testA testB"),
        "Images of val and test are COCO train2014 images: leave them out of what is trained on.",
    ),
    KnownDataset(
        "refcoco+",
        "RefCOCO+ (UNC)",
        "expressions of one object, without places",
        ("SFT", "benchmark"),
        _REFER,
        COCO_TERMS,
        _refer("refcoco+", "refcoco+", "refs(unc).p", _TRAIN2014, "train val testA testB"),
    ),
    KnownDataset(
        "refcocog",
        "RefCOCOg (UMD)",
        "longer expressions of one object",
        ("SFT", "benchmark"),
        _REFER,
        COCO_TERMS,
        _refer("refcocog", "refcocog", "refs(umd).p", _TRAIN2014, "train val test"),
    ),
    KnownDataset(
        "refclef",
        "RefClef (Berkeley)",
        "expressions of one object",
        ("SFT",),
        "github.com/lichengunc/refer, images of SAIAPR TC-12",
        ASK,
        _refer("refclef", "refclef", "refs(berkeley).p", "images/saiapr_tc-12", "train val test"),
    ),
    KnownDataset(
        "grefcoco",
        "gRefCOCO",
        "expressions of none, one or several objects",
        ("SFT", "benchmark"),
        "github.com/henghuiding/gRefCOCO, images of COCO 2014",
        ASK,
        _refer("grefcoco", ".", "grefs(unc).json", "train2014", "train val testA testB"),
    ),
    KnownDataset(
        "refcoco-m",
        "RefCOCO-M",
        "expressions of one object",
        (),
        "huggingface.co/datasets: Parquet files",
        ASK,
        {"validation": _split("refcoco-m", "parquet", "data", split="validation")},
    ),
    KnownDataset(
        "grandf",
        "GranD-f grounded captions",
        "captions with masks of their phrases",
        ("SFT", "benchmark"),
        "huggingface.co/datasets/MBZUAI/GranD-f, images of SA-1B",
        ASK,
        {"train": _split("grandf", "granf", "GranDf_HA_GCG_train.json", "GranDf_HA_images/train")},
    ),
    KnownDataset(
        "openpsg-gcg",
        "OpenPSG grounded captions",
        "captions with masks of their phrases",
        ("SFT",),
        "huggingface.co/datasets/MBZUAI/GranD-f, images of COCO 2017",
        ASK,
        {
            split: _split(
                "openpsg-gcg",
                "granf",
                f"OpenPsgGCG_{split}.json",
                "coco_2017",
                split=split,
                image_folders="train2017,val2017",
            )
            for split in ("train", "val")
        },
    ),
    KnownDataset(
        "refcocog-gcg",
        "RefCOCOg grounded captions",
        "captions with masks of their phrases",
        ("SFT",),
        "huggingface.co/datasets/MBZUAI/GranD-f, images of COCO 2014",
        ASK,
        {
            split: _split(
                "refcocog-gcg", "granf", f"RefCOCOg_GCG_{split}.json", "coco_2014/train2014", split=split
            )
            for split in ("train", "val")
        },
    ),
    KnownDataset(
        "flickr30k-gcg",
        "Flickr30k grounded captions",
        "captions with masks of their phrases",
        ("SFT",),
        "huggingface.co/datasets/MBZUAI/GranD-f, images of Flickr30k",
        ASK,
        {
            split: _split(
                "flickr30k-gcg",
                "granf",
                f"flickr_mergedGT_GCG_{split}.json",
                "flickr30k-images",
                split=split,
            )
            for split in ("train", "val")
        },
    ),
    KnownDataset(
        "psg",
        "Panoptic scene graphs (OpenPSG)",
        "labels, relations",
        ("SFT",),
        "github.com/Jingkang50/OpenPSG, images and panoptic maps of COCO 2017",
        ASK,
        {split: _split("psg", "psg", "psg/psg.json", "coco", split=split) for split in ("train", "test")},
    ),
    KnownDataset(
        "dam",
        "Captions of DAM, as extracted",
        "a caption for each mask",
        ("SFT",),
        "huggingface.co/datasets/nvidia/describe-anything-dataset",
        ASK,
        {"train": _split("dam", "dam", "annotations.json", "images")},
    ),
    KnownDataset(
        "osprey",
        "Osprey-724K",
        "descriptions of masks, dialogues about them",
        (),
        "huggingface.co/datasets/AntGroup-MI/Osprey-724K, images of COCO",
        ASK,
        {"train": _split("osprey", "osprey", "osprey_detail_description.json", "train2014")},
    ),
    KnownDataset(
        "samtok-rl",
        "The authors' prompts for reinforcement learning",
        "expressions of none, one or several objects",
        (),
        "the authors' data release: mix_gres8k_ver4k_train.parquet",
        ASK,
        {"train": _split("samtok-rl", "parquet", "mix_gres8k_ver4k_train.parquet")},
        "`compose_dialogues --chats.source` reads the words in it too.",
    ),
)

KNOWN: Mapping[str, KnownDataset] = {one.name: one for one in _ALL}
"""All of them by their name."""


def parts_of(name: str, root: str, split: str | None = None) -> dict[str, str]:
    """Returns a split of a known dataset as keys and values of ``--corpora``, with ``root`` in them; without
    a split its first one.

    Raises:
        ConfigError: If there is no such dataset or split; names those that there are.
    """
    known = KNOWN.get(name)
    if known is None:
        raise ConfigError(f"there is no known dataset {name}; there are {', '.join(KNOWN)}.")
    split = split or next(iter(known.splits))
    if split not in known.splits:
        raise ConfigError(f"{name} has no split {split}; it has {', '.join(known.splits)}.")
    return {"root": root, **parse_pairs(known.splits[split], flag="known")}
