"""Naming a corpus: by flags of its own (``--corpus.reader coco``), or in one flag where there are several.

A corpus in one flag is ``key=value`` parts between commas, such as
``reader=coco,source=instances_val.json,images=val2017,dataset=coco,weight=2``.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipelines.cli import FORBID_UNKNOWN
from samtok.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.ingestion.reader import Reader


ReaderKind = Literal["coco", "sa1b", "refer", "granf", "psg", "dam", "osprey"]

_OPTIONS = {"coco": ("mask_key", "image_path"), "refer": ("instances", "sentence"), "psg": ("panoptic",)}
"""Fields of a corpus that only one reader has."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which dataset is read."""

    __pydantic_config__ = FORBID_UNKNOWN

    reader: ReaderKind
    """Layout: ``coco`` is an instances JSON, ``sa1b`` a folder or tar of image + JSON pairs, ``refer`` the
    refs of RefCOCO, RefCOCO+, RefCOCOg, RefClef (pickle) or gRefCOCO (JSON), ``granf`` grounded captions
    (GranDf, OpenPSG-GCG, RefCOCOg-GCG, Flickr30k-GCG), ``psg`` scene graphs, ``dam`` captions of masks,
    ``osprey`` descriptions of masks and dialogues."""
    source: str
    """URI of the annotation file, or of the folder or archive (sa1b)."""
    images: str | None = None
    """URI of the folder that the names of images are relative to; none for sa1b."""
    dataset: str | None = None
    """Name of the dataset in every row; by default the name of the reader."""
    split: str = "train"
    """Name of the split in every row. refer: also which refs are taken, such as train, val, testA; psg:
    train, or val and test for its test images, or another name for all."""
    mask_key: str = "segmentation"
    """Key of the mask in a COCO annotation."""
    image_path: Literal["file_name", "coco_url"] = "file_name"
    """Which COCO field names the image file; LVIS uses coco_url."""
    instances: str | None = None
    """refer: URI of the objects; by default instances.json beside the refs."""
    sentence: Literal["sent", "raw"] = "sent"
    """refer: expressions in lower case and clean (sent), or as they were typed (raw)."""
    panoptic: str | None = None
    """psg: URI of the folder of panoptic maps; by default annotations below the images."""


def reader_of(corpus: CorpusConfig) -> "Reader":
    """Builds the reader of a corpus, without touching the storage.

    Raises:
        ConfigError: If the fields do not go together, as ``images`` with sa1b.
    """
    from pipelines.ingestion.registry import build_reader  # readers are slow to load, and --help needs none

    fields = {name: getattr(corpus, name) for name in _OPTIONS.get(corpus.reader, ())}
    return build_reader(
        corpus.reader,
        source=corpus.source,
        images=corpus.images,
        split=corpus.split,
        dataset=corpus.dataset or corpus.reader,
        options={name: value for name, value in fields.items() if value is not None},
    )


PLACES = ("source", "images", "instances", "panoptic")
"""Fields of a corpus that say where it lies."""

CORPUS_KEYS = tuple(field.name for field in dataclasses.fields(CorpusConfig))
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
            text: Parts between commas, so a value cannot hold one. ``reader`` and ``source`` are required.
            flag: Where the text comes from, without the dashes; named in errors.

        Raises:
            ConfigError: Names the flag, the bad part, and what would be right.
        """
        flag = flag.removeprefix("--")
        where = f"--{flag} {text}"
        parts = _parts(text, where)
        if missing := [key for key in ("reader", "source") if key not in parts]:
            raise ConfigError(
                f"{where}: it lacks {' and '.join(missing)}; write reader=coco,source=FILE,images=FOLDER "
                "or reader=sa1b,source=FOLDER"
            )
        corpus: dict[str, Any] = {key: parts[key] for key in CORPUS_KEYS if key in parts}
        spec = cls(CorpusConfig(**corpus), _weight(parts, where), _limit(parts, where), flag)
        try:
            spec.reader()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        return spec

    @property
    def name(self) -> str:
        """Name of the dataset in rows and reports."""
        return self.corpus.dataset or self.corpus.reader

    def reader(self) -> "Reader":
        """Builds the reader; raises as ``reader_of``."""
        return reader_of(self.corpus)

    def absolute(self) -> "CorpusSpec":
        """Makes local paths mean the same in workers, whose working directory is another."""
        return dataclasses.replace(self, corpus=absolute_corpus(self.corpus))


def absolute_corpus(corpus: CorpusConfig) -> CorpusConfig:
    """Returns the corpus with absolute local paths; URIs stay as they are."""
    from pipelines import storage  # slow to load, like the readers

    told = {name: place for name in PLACES if (place := getattr(corpus, name))}
    return dataclasses.replace(corpus, **{name: storage.absolute(place) for name, place in told.items()})


def _parts(text: str, where: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or key not in SPEC_KEYS:
            raise ConfigError(
                f"{where}: {part!r} is not key=value with a known key; the keys are {', '.join(SPEC_KEYS)} "
                "(a comma always begins a new key)"
            )
        if not value:
            raise ConfigError(f"{where}: {key} is empty; give it a value or leave it out")
        if key in parts:
            raise ConfigError(f"{where}: {key} is given twice, as {parts[key]} and {value}; keep one")
        parts[key] = value
    return parts


def _weight(parts: dict[str, str], where: str) -> float | None:
    if "weight" not in parts:
        return None
    try:
        weight = float(parts["weight"])
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"{where}: weight must be a number above 0, got {parts['weight']}")
    return weight


def _limit(parts: dict[str, str], where: str) -> int | None:
    if "limit" not in parts:
        return None
    limit = parts["limit"]
    if not (limit.isascii() and limit.isdigit() and int(limit) >= 1):
        raise ConfigError(f"{where}: limit must be a whole number of at least 1, got {limit}")
    return int(limit)
