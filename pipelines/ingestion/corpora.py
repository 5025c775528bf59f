"""Naming a corpus: by flags of its own (``--corpus.reader coco``), or in one flag where there are several.

A corpus in one flag is ``key=value`` parts between commas, such as
``reader=coco,source=instances_val.json,images=val2017,dataset=coco,weight=2``.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from pipelines.ingestion import mask_files as files_of_masks
from pipelines.ingestion.known_datasets import parts_of
from pipelines.ingestion.labelmap import check_options
from pipelines.ingestion.mixtures import MixtureReader, below, read_entries
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.reader import Reader
from pipelines.ingestion.readers import READERS, ReaderKind, ReaderOptions, option_names
from pipelines.ingestion.synthetic import config as shapes
from pipelines.ingestion.video_frames import check_options as check_video_options
from pipelines.inputs import require
from samtok.config import SYNTHETIC, MaskTokenizerConfig
from samtok.errors import ConfigError


@config
class CorpusConfig(ReaderOptions):
    """Which dataset is read."""

    reader: ReaderKind
    """Layout: ``coco`` is an instances JSON, ``sa1b`` a folder or tar of image + JSON pairs, ``refer`` the
    refs of RefCOCO, RefCOCO+, RefCOCOg, RefClef (pickle) or gRefCOCO (JSON), ``granf`` grounded captions
    (GranDf, OpenPSG-GCG, RefCOCOg-GCG, Flickr30k-GCG), ``psg`` scene graphs, ``dam`` captions of masks,
    ``osprey`` descriptions of masks and dialogues, ``panoptic`` a panoptic JSON and its PNGs (COCO, COCONut,
    Cityscapes), ``labelmap`` a folder of label maps (ADE20K, Cityscapes, COCO-Stuff), ``reasonseg`` questions
    and polygons beside images, ``cityscapes_polygons`` polygons of Cityscapes, ``lisa`` questions about
    objects of COCO (LISA++), ``pixelweb`` elements of web pages, ``visual7w``, ``invig`` and ``copsref``
    texts about boxes, ``parquet`` rows with embedded images (the authors' gres and ver files, RefCOCO-M),
    ``coconut_parquet`` rows with embedded panoptic maps and images beside them (COCONut);
    ``masks`` a folder of PNG masks or label maps of your own, ``labelme`` one of LabelMe's JSON files,
    ``yolo`` one of YOLO's text files; ``regions`` records of masks with texts (GroundingSuite-Eval,
    MDVP-Bench, DLC-Bench packed anew), ``dlc`` DLC-Bench as published, ``gar`` Arrow streams of GAR,
    ``dam_tar`` DAM's archives, ``segllm`` conversations of several rounds, ``video`` videos whose frames
    become rows (SA-V, MeViS, ReVOS, Ref-YouTube-VOS, VideoRefer-Bench-D); ``mixture`` several datasets that a
    YAML file names."""
    source: Place
    """URI of the annotation file, of the folder of annotation files (labelmap, reasonseg,
    cityscapes_polygons, pixelweb, masks, labelme, yolo, video with sav and sav_masks), of the folder or
    archive (sa1b, dam_tar), of a Parquet or Arrow file or a folder of them (parquet, coconut_parquet, gar),
    or of the YAML file (mixture)."""
    images: Place | None = None
    """URI of the folder that the names of images are relative to, with reasonseg, pixelweb and labelme often
    --.source; none for sa1b, dam_tar, parquet, gar and mixture."""
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
        if self.reader == "video":
            check_video_options(self)
        has_folder = "images" in {field.name for field in dataclasses.fields(READERS[self.reader])}
        if has_folder and not self.images:
            raise ConfigError(
                f"--.reader {self.reader} needs --.images, the folder that the names of images in --.source "
                "are relative to."
            )
        if self.images and not has_folder:
            raise ConfigError(f"--.reader {self.reader} finds images in --.source; drop --.images.")
        for flag, places in places_of(self).items():
            if flag == "mask-files":
                places = tuple(files_of_masks.parse(places).values())
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
        if self.reader == "mixture":
            specs = mixed(self)
            found["corpora"] = [dataclasses.replace(spec, weight=None).text for spec in specs]
            found["mixture_sources"] = [spec.corpus.source for spec in specs]
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


def reader_of(corpus: CorpusConfig) -> Reader:
    """Builds the reader of a corpus, without touching the storage but for the file of a mixture."""
    if corpus.reader == "mixture":
        specs = mixed(corpus)
        return MixtureReader(
            name=corpus.dataset or corpus.reader,
            split=corpus.split,
            source=corpus.source,
            readers=tuple(spec.reader() for spec in specs),
            limits=tuple(spec.limit for spec in specs),
        )
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


_FORMATS = {
    "labelmap": "ade20k",
    "coconut_parquet": "panoptic",
    "parquet": "easyr1",
    "regions": "groundingsuite",
    "sav_masks": "sav",
    "videorefer": "mevis",
}
"""Formats of ``jobs/make_shapes.py`` that readers and layouts of videos read, where names differ."""


def require_source(corpus: CorpusConfig) -> None:
    """Refuses a corpus whose source is not there.

    Raises:
        ConfigError: Names the command that makes a synthetic one.
    """
    if corpus.reader == "mixture":
        for spec in mixed(corpus):
            require_source(spec.corpus)
        return
    layout = corpus.video_layout if corpus.reader == "video" else corpus.reader
    layout = _FORMATS.get(layout or "", layout)
    layout = "cityscapes" if (corpus.encoding or "").startswith("cityscapes") else layout
    command = f"python jobs/make_shapes.py --format {layout} --out runs/shapes"
    require(corpus.source, flag=f"source of the corpus {corpus.dataset or corpus.reader}", command=command)


def caveat_of(
    tokenizer_uri: str, architecture: MaskTokenizerConfig, sources: Sequence[str], dataset: str
) -> str:
    """Returns what speaks against using a tokenizer on a corpus; empty if nothing is known to."""
    if architecture.trained_on != SYNTHETIC or all(map(is_of_shapes, sources)):
        return ""
    return (
        f"the tokenizer {tokenizer_uri} was trained on {SYNTHETIC}, which {dataset} has not: its words say "
        "little about these masks. Give --tokenizer one that knows photographs."
    )


def sources_of(corpus: CorpusConfig) -> list[str]:
    """Returns the source of a corpus, of a mixture those of its datasets."""
    mixture = corpus.reader == "mixture"
    return [spec.corpus.source for spec in mixed(corpus)] if mixture else [corpus.source]


def is_of_shapes(source: str) -> bool:
    """Returns whether ``jobs/make_shapes.py`` wrote a corpus: it leaves a mark in its folder, which is the
    source or at most three levels above."""
    above = [source.rstrip("/").rsplit("/", levels)[0] for levels in range(4)]
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
MIXTURE_KEYS = ("tasks", "styles")
"""Further keys of a dataset in a mixture file."""


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
        return cls.of_parts(parse_pairs(text, flag=flag, keys=SPEC_KEYS), f"--{flag} {text}", flag)

    @classmethod
    def of_parts(cls, parts: Mapping[str, str], where: str, flag: str) -> "CorpusSpec":
        """Reads keys and values; ``where`` they come from is for errors, which are those of ``parse``."""
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

    def absolute(self, root: str = "") -> "CorpusSpec":
        """Makes local paths mean the same in workers, whose working directory is another; relative ones are
        below ``root``, if it is not empty."""
        return dataclasses.replace(self, corpus=with_places(self.below(root).corpus, storage.absolute))

    def below(self, root: str) -> "CorpusSpec":
        """Puts ``root``, if it is not empty, before places that are relative."""
        return dataclasses.replace(self, corpus=with_places(self.corpus, partial(below, root)))


def mixed(corpus: CorpusConfig, *, flag: str = "corpus.source") -> tuple[CorpusSpec, ...]:
    """Returns the datasets of a mixture, with absolute places.

    Raises:
        ConfigError: If the file is not there, names none, an unknown key, two of one name and split, or
            another mixture.
        StorageError: If it cannot be read.
    """
    specs = []
    for place, entry in enumerate(read_entries(corpus.source, flag=f"--{flag}").datasets, start=1):
        where = f"--{flag} {corpus.source}: datasets[{place}]"
        parts = _with_known(entry, where)
        root = parts.pop("root")
        if unknown := sorted(set(parts) - {*SPEC_KEYS, *MIXTURE_KEYS}):
            raise ConfigError(f"{where} has the key {unknown[0]}, expected {', '.join(SPEC_KEYS)}.")
        spec = CorpusSpec.of_parts({key: parts[key] for key in SPEC_KEYS if key in parts}, where, flag)
        if spec.corpus.reader == "mixture":
            raise ConfigError(f"{where} is a mixture itself; name its datasets instead.")
        specs.append(spec.absolute(root))
    names = Counter((spec.name, spec.corpus.split) for spec in specs)
    if not specs or max(names.values()) > 1:
        name, split = names.most_common(1)[0][0] if specs else ("", "")
        fault = f"{name}/{split} twice; give one of them another dataset" if specs else "no dataset"
        raise ConfigError(f"--{flag} {corpus.source} has {fault}.")
    return tuple(specs)


def _with_known(entry: Mapping[str, str], where: str) -> dict[str, str]:
    """Returns an entry whose ``known`` dataset is written out; its other keys come before those of that."""
    own = dict(entry)
    name = own.pop("known", None)
    if name is None:
        return own
    try:
        return {**parts_of(name, own["root"], own.pop("split", None)), **own}
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error


def of_datasets(uri: str, key: str, *, flag: str) -> dict[str, str]:
    """Returns a key of each dataset in a mixture file, ``tasks`` or ``styles``, by its name in rows; of those
    that have it.

    Raises:
        ConfigError: As ``read_entries``, or if two entries of one dataset have different ones.
    """
    found: dict[str, str] = {}
    for place, entry in enumerate(read_entries(uri, flag=flag).datasets, start=1):
        known = _with_known(entry, f"{flag} {uri}: datasets[{place}]")
        name = known.get("dataset") or known.get("reader") or ""
        if key in entry and found.setdefault(name, entry[key]) != entry[key]:
            raise ConfigError(f"{flag} {uri}: datasets[{place}] has other {key} than an earlier {name}.")
    return found


def specs_of(texts: Sequence[str], *, flag: str) -> list[CorpusSpec]:
    """Reads the corpora of a flag; a mixture stands for its datasets, each with its own weight, and with the
    smaller one of two limits. Raises as ``CorpusSpec.parse`` and ``mixed``."""
    specs = []
    for text in texts:
        spec = CorpusSpec.parse(text, flag=flag)
        if spec.corpus.reader != "mixture":
            specs.append(spec)
            continue
        if spec.weight is not None:
            raise ConfigError(f"--{flag} {text}: weights of a mixture stand in its file; drop weight=.")
        specs += [limited(one, spec.limit) for one in mixed(spec.corpus, flag=flag)]
    return specs


def limited(spec: CorpusSpec, limit: int | None) -> CorpusSpec:
    """Returns a corpus of which at most so many images are taken."""
    limits = [one for one in (spec.limit, limit) if one is not None]
    return dataclasses.replace(spec, limit=min(limits)) if limits else spec


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
