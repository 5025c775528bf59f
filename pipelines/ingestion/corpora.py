"""Naming a corpus: by flags of its own (``--corpus.reader coco``), or in one flag where there are several.

A corpus in one flag is ``key=value`` parts between commas, such as
``reader=coco,source=instances_val.json,images=val2017,dataset=coco,weight=2``. A new layout is a reader file
and an entry of ``READERS``; the options that only it has are a base class of ``CorpusConfig``.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pipelines import storage
from pipelines.config import (
    Place,
    PlaceMark,
    config,
    flag_name,
    format_pairs,
    number,
    parse_pairs,
    places_of,
    with_places,
)
from pipelines.ingestion import config as shapes
from pipelines.ingestion.boxes import InvigReader, Visual7wReader
from pipelines.ingestion.cityscapes_polygons import CityscapesPolygonsOptions, CityscapesPolygonsReader
from pipelines.ingestion.coco import CocoOptions, CocoReader
from pipelines.ingestion.copsref import CopsrefOptions, CopsrefReader
from pipelines.ingestion.grounded import GroundedReader
from pipelines.ingestion.label_maps import PanopticOptions
from pipelines.ingestion.labelmap import LabelMapOptions, LabelMapReader, check_options
from pipelines.ingestion.labelme import LabelmeReader
from pipelines.ingestion.lisa import LisaReader
from pipelines.ingestion.mask_folders import MasksOptions, MasksReader
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.osprey import OspreyReader
from pipelines.ingestion.panoptic import PanopticReader
from pipelines.ingestion.parquet_rows import ParquetReader
from pipelines.ingestion.pixelweb import PixelWebReader
from pipelines.ingestion.psg import PsgReader
from pipelines.ingestion.reader import Reader
from pipelines.ingestion.reasonseg import ReasonSegReader
from pipelines.ingestion.refer import ReferOptions, ReferReader
from pipelines.ingestion.regions import DamReader
from pipelines.ingestion.sidecar import Sa1bReader
from pipelines.ingestion.yolo import YoloOptions, YoloReader
from pipelines.inputs import require
from samtok.config import SYNTHETIC, MaskTokenizerConfig
from samtok.errors import ConfigError

ReaderKind = Literal[
    "coco",
    "sa1b",
    "refer",
    "granf",
    "psg",
    "dam",
    "osprey",
    "panoptic",
    "labelmap",
    "reasonseg",
    "cityscapes_polygons",
    "lisa",
    "pixelweb",
    "visual7w",
    "invig",
    "copsref",
    "parquet",
    "masks",
    "labelme",
    "yolo",
]

READERS: dict[str, Any] = {
    "coco": CocoReader,
    "sa1b": Sa1bReader,
    "refer": ReferReader,
    "granf": GroundedReader,
    "psg": PsgReader,
    "dam": DamReader,
    "osprey": OspreyReader,
    "panoptic": PanopticReader,
    "labelmap": LabelMapReader,
    "reasonseg": ReasonSegReader,
    "cityscapes_polygons": CityscapesPolygonsReader,
    "lisa": LisaReader,
    "pixelweb": PixelWebReader,
    "visual7w": Visual7wReader,
    "invig": InvigReader,
    "copsref": CopsrefReader,
    "parquet": ParquetReader,
    "masks": MasksReader,
    "labelme": LabelmeReader,
    "yolo": YoloReader,
}
"""Classes of readers. ``options`` of each is the class of the options that only it has."""


@config
class CorpusConfig(
    CocoOptions,
    ReferOptions,
    PanopticOptions,
    LabelMapOptions,
    CityscapesPolygonsOptions,
    CopsrefOptions,
    MasksOptions,
    YoloOptions,
):
    """Which dataset is read."""

    reader: ReaderKind
    """Layout: ``coco`` is an instances JSON, ``sa1b`` a folder or tar of image + JSON pairs, ``refer`` the
    refs of RefCOCO, RefCOCO+, RefCOCOg, RefClef (pickle) or gRefCOCO (JSON), ``granf`` grounded captions
    (GranDf, OpenPSG-GCG, RefCOCOg-GCG, Flickr30k-GCG), ``psg`` scene graphs, ``dam`` captions of masks,
    ``osprey`` descriptions of masks and dialogues, ``panoptic`` a panoptic JSON and its PNGs (COCO, COCONut,
    Cityscapes), ``labelmap`` a folder of label maps (ADE20K, Cityscapes, COCO-Stuff), ``reasonseg`` questions
    and polygons beside images, ``cityscapes_polygons`` polygons of Cityscapes, ``lisa`` questions about
    objects of COCO (LISA++), ``pixelweb`` elements of web pages, ``visual7w``, ``invig`` and ``copsref``
    texts about boxes, ``parquet`` rows with embedded images (the authors' gres and ver files, RefCOCO-M);
    ``masks`` a folder of PNG masks or label maps of your own, ``labelme`` one of LabelMe's JSON files,
    ``yolo`` one of YOLO's text files."""
    source: Place
    """URI of the annotation file, of the folder of annotation files (labelmap, reasonseg,
    cityscapes_polygons, pixelweb, masks, labelme, yolo), of the folder or archive (sa1b), or of a Parquet
    file or a folder of them."""
    images: Place | None = None
    """URI of the folder that the names of images are relative to, with reasonseg, pixelweb and labelme
    often --.source; none for sa1b and parquet."""
    link_root: tuple[Place, ...] = ()
    """Folders that links below --.images, and below --.source where that is a folder, may lead into, such as
    the blobs of a Hugging Face cache. By default links must stay below it."""
    orientation: Orientation = "stored"
    """Which way up images with an EXIF orientation are read. ``stored``: as they are stored, upright where
    only that has the size in the annotations. ``upright``: upright; a size in the annotations that is the
    stored one is exchanged. ``auto``: as ``stored``, and upright where the masks fit only that. With the last
    two the size of RLEs decides."""
    dataset: str | None = None
    """Name of the dataset in every row; by default the name of the reader."""
    split: str = "train"
    """Name of the split in every row. refer: also which refs are taken, such as train, val, testA; visual7w,
    copsref: also which questions are taken, train, val or test; psg:
    train, or val and test for its test images, or another name for all."""

    def check(self) -> None:
        """Refuses what does not go together with the reader, and places that cannot be read."""
        if self.reader not in READERS:
            raise ConfigError(f"--.reader must be one of {', '.join(READERS)}, got {self.reader}.")
        own = option_names(self.reader)
        for field in dataclasses.fields(self):
            if field.name in OPTION_KEYS and field.name not in own and self._sets(field):
                raise ConfigError(
                    f"--.{flag_name(field.name)} is no option of --.reader {self.reader}, whose options are "
                    f"{', '.join(map(flag_name, own)) or 'none'}."
                )
        for name in ("source", "split", "dataset"):
            if getattr(self, name) == "":
                raise ConfigError(f"--.{name} must not be empty.")
        if self.reader == "labelmap":
            check_options(self.encoding, self.part_levels)
        has_folder = "images" in {field.name for field in dataclasses.fields(READERS[self.reader])}
        if has_folder and not self.images:
            raise ConfigError(
                f"--.reader {self.reader} needs --.images, the folder that the names of images in --.source "
                "are relative to."
            )
        if self.images and not has_folder:
            raise ConfigError(f"--.reader {self.reader} finds images in --.source; drop --.images.")
        for flag, places in places_of(self).items():
            for place in places if isinstance(places, tuple) else (places,):
                _check_place(f"--.{flag}", place)

    def identity(self) -> dict[str, Any]:
        """Returns how the corpus is read, for fingerprints: not where it lies, and plain JSON values.

        Options that were added later are in it only where they are set, so earlier fingerprints stay.
        """
        found: dict[str, Any] = {"reader": self.reader, "dataset": self.dataset, "split": self.split}
        places = places_of(self)
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            later = self._sets(field) and flag_name(name) not in places
            if name in OPTION_KEYS and (name in _FIRST_OPTIONS or later):
                found[name] = list(value) if isinstance(value, tuple) else value
        found |= {"link_root": list(self.link_root)} if self.link_root else {}
        return found | ({"orientation": self.orientation} if self.orientation != "stored" else {})

    def _sets(self, field: dataclasses.Field) -> bool:
        return getattr(self, field.name) != field.default


def _check_place(flag: str, place: str) -> None:
    if place.startswith("file://"):  # names of images are joined to it as they are, without quoting
        raise ConfigError(f"{flag} must be a local path without file://, or an s3:// URI, got {place}.")
    try:
        storage.is_remote(place)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error.message}") from error


def option_names(reader: str) -> tuple[str, ...]:
    """Returns the options that only this reader has."""
    return tuple(field.name for field in dataclasses.fields(READERS[reader].options))


def reader_of(corpus: CorpusConfig) -> Reader:
    """Builds the reader of a corpus, without touching the storage."""
    images = {} if corpus.images is None else {"images": corpus.images}
    return READERS[corpus.reader](
        name=corpus.dataset or corpus.reader,
        split=corpus.split,
        source=corpus.source,
        link_root=corpus.link_root,
        orientation=corpus.orientation,
        **images,
        **{name: getattr(corpus, name) for name in option_names(corpus.reader)},
    )


def require_source(corpus: CorpusConfig) -> None:
    """Refuses a corpus whose source is not there.

    Raises:
        ConfigError: Names the command that makes a synthetic one.
    """
    layouts = {  # of readers whose own make_shapes does not write
        **{"osprey": "coco", "parquet": "coco", "visual7w": "coco", "invig": "coco", "copsref": "coco"},
        "labelmap": "ade20k",
    }
    layout = layouts.get(corpus.reader, corpus.reader)
    layout = "cityscapes" if (corpus.encoding or "").startswith("cityscapes") else layout
    command = f"python jobs/make_shapes.py --format {layout} --out runs/shapes"
    require(corpus.source, flag=f"source of the corpus {corpus.dataset or corpus.reader}", command=command)


def caveat_of(tokenizer_uri: str, architecture: MaskTokenizerConfig, source: str, dataset: str) -> str:
    """Returns what speaks against using a tokenizer on a corpus; empty if nothing is known to."""
    if architecture.trained_on != SYNTHETIC or is_of_shapes(source):
        return ""
    return (
        f"the tokenizer {tokenizer_uri} was trained on {SYNTHETIC}, which {dataset} has not: its words say "
        "little about these masks. Give --tokenizer one that knows photographs."
    )


def is_of_shapes(source: str) -> bool:
    """Returns whether ``jobs/make_shapes.py`` wrote a corpus: it leaves a mark in its folder, which is the
    source or at most two levels above."""
    above = [source.rstrip("/").rsplit("/", levels)[0] for levels in range(3)]
    folders = [folder for folder in above if folder and not folder.endswith((":", "/"))]
    return any(storage.exists(storage.join(folder, shapes.COMPLETE)) for folder in folders)


# ---------------------------------------------------------------- one corpus of several

_HINTS = get_type_hints(CorpusConfig, include_extras=True)
_FIRST_OPTIONS = ("mask_key", "image_path", "sentence")

OPTION_KEYS = tuple(dict.fromkeys(name for reader in READERS for name in option_names(reader)))
"""Options that not all readers have."""
CORPUS_KEYS = ("reader", "source", "images", "link_root", "orientation", "dataset", "split", *OPTION_KEYS)
SPEC_KEYS = (*CORPUS_KEYS, "weight", "limit")
"""Keys of a corpus in one flag."""


@dataclass(frozen=True)
class CorpusSpec:
    """One corpus of several.

    Attributes:
        corpus: The dataset.
        weight: How much of a mixture it is, relative to the other corpora; above 0. None: by its size.
        limit: Take only its first images; at least 1. None takes all.
        flag: Where it was named, without the dashes; for errors.
    """

    corpus: CorpusConfig
    weight: float | None = None
    limit: int | None = None
    flag: str = "corpora"

    @classmethod
    def parse(cls, text: str, *, flag: str) -> "CorpusSpec":
        """Reads ``reader=coco,source=FILE,images=FOLDER,dataset=NAME,weight=2,limit=1000``.

        Args:
            text: Parts between commas; a value that holds one stands in quotes, also one with several
                values: ``image_folders="train2017,val2017"``. ``reader`` and ``source`` are required.
            flag: Where the text comes from, without the dashes; named in errors.

        Raises:
            ConfigError: Names the flag, the bad part, and what would be right.
        """
        flag = flag.removeprefix("--")
        where = f"--{flag} {text}"
        parts = parse_pairs(text, flag=flag, keys=SPEC_KEYS)
        if missing := [key for key in ("reader", "source") if key not in parts]:
            raise ConfigError(
                f"{where}: {' and '.join(missing)} must be given, as in "
                "reader=coco,source=FILE,images=FOLDER or reader=sa1b,source=FOLDER."
            )
        values: dict[str, Any] = {key: _typed(key, parts[key], where) for key in CORPUS_KEYS if key in parts}
        weight, limit = (parts.get(key) for key in ("weight", "limit"))
        try:
            corpus = CorpusConfig(**values)
        except ConfigError as error:
            keys = re.sub(r"--\.([\w-]+)", lambda found: found[1].replace("-", "_"), error.message)
            raise ConfigError(f"{where}: {keys}") from error
        return cls(
            corpus,
            None if weight is None else number(weight, where=f"{where}: weight"),
            None if limit is None else int(number(limit, where=f"{where}: limit", kind=int)),
            flag,
        )

    @property
    def text(self) -> str:
        """What ``parse`` reads."""
        values = {key: getattr(self.corpus, key) for key in CORPUS_KEYS}
        values |= {"weight": self.weight, "limit": self.limit}
        defaults = {field.name: field.default for field in dataclasses.fields(CorpusConfig)}
        given = {key: value for key, value in values.items() if value != defaults.get(key)}
        return format_pairs({k: ",".join(v) if isinstance(v, tuple) else v for k, v in given.items()})

    @property
    def name(self) -> str:
        """Name of the dataset in rows and reports."""
        return self.corpus.dataset or self.corpus.reader

    def reader(self) -> Reader:
        """Builds the reader."""
        return reader_of(self.corpus)

    def absolute(self) -> "CorpusSpec":
        """Makes local paths mean the same in workers, whose working directory is another."""
        return dataclasses.replace(self, corpus=with_places(self.corpus, storage.absolute))


def _rewritten(text: str, absolute: Callable[[str], str]) -> str:
    """Makes the places in a corpus of one flag absolute; a text that cannot be read stays."""
    try:
        spec = CorpusSpec.parse(text, flag="corpora")
    except ConfigError:
        return text  # refused where it is read, with its flag
    return dataclasses.replace(spec, corpus=with_places(spec.corpus, absolute)).text


CorpusText = Annotated[str, PlaceMark(rewrite=_rewritten)]
"""Type of a field that holds a corpus as ``CorpusSpec.parse`` reads it."""


def _typed(key: str, text: str, where: str) -> Any:
    kind = _HINTS[key]
    optional = [one for one in get_args(kind) if get_origin(one) is Literal]
    kind = optional[0] if optional else kind  # of one that may be None
    if get_origin(kind) is Annotated and get_args(kind)[0] is int:
        return int(number(text, where=f"{where}: {key}", kind=int))
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if any(int in (part, get_origin(part), *get_args(part)) for part in (kind, *get_args(kind))):
        return int(number(text, where=f"{where}: {key}", kind=int))
    if get_origin(kind) is Literal and text not in get_args(kind):
        raise ConfigError(f"{where}: {key} must be one of {', '.join(get_args(kind))}, got {text}.")
    return text
