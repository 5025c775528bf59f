"""From the name of a dataset layout to its reader. A new layout is one reader file and one entry here."""

from collections.abc import Callable, Mapping
from typing import Any

from pipelines import storage
from pipelines.ingestion.coco import IMAGE_PATHS, CocoReader
from pipelines.ingestion.grounded import GroundedReader
from pipelines.ingestion.osprey import OspreyReader
from pipelines.ingestion.psg import PsgReader
from pipelines.ingestion.reader import Reader
from pipelines.ingestion.refer import SENTENCES, ReferReader
from pipelines.ingestion.regions import DamReader
from pipelines.ingestion.sidecar import Sa1bReader
from samtok.errors import ConfigError

_PLACES = ("instances", "panoptic")
"""Options that are URIs."""


def reader_kinds() -> tuple[str, ...]:
    """Returns the values that ``--reader`` takes."""
    return tuple(_BUILDERS)


def build_reader(
    kind: str,
    *,
    source: str,
    images: str | None = None,
    split: str,
    dataset: str,
    options: Mapping[str, str] | None = None,
) -> Reader:
    """Builds a reader from flags, without touching the storage.

    Args:
        kind: One of ``reader_kinds``; ``corpora.CorpusConfig`` says which datasets each one serves.
        source: URI of the annotation file, or for ``sa1b`` of a folder or a ``.tar`` archive.
        images: Folder or prefix of the images; only for kinds whose images are elsewhere.
        split: Split name of the rows.
        dataset: Dataset name of the rows.
        options: What only this kind has. ``coco``: ``image_path`` (file_name or coco_url), ``mask_key``,
            ``image_folders`` (separated by commas). ``refer``: ``instances``, ``sentence`` (sent or raw).
            ``granf``: ``image_folders``. ``psg``: ``panoptic``. Others: none.

    Raises:
        ConfigError: For an unknown kind, option or scheme, or a missing or superfluous ``images``.
    """
    if kind not in _BUILDERS:
        raise ConfigError(f"--reader {kind!r} is unknown, expected one of {', '.join(_BUILDERS)}")
    build, known = _BUILDERS[kind]
    options = dict(options or {})
    if unknown := sorted(options.keys() - known):
        raise ConfigError(
            f"--reader {kind} has no option {', '.join(unknown)}; "
            f"its options are {', '.join(known) or 'none'}"
        )
    for flag, value in {"source": source, "dataset": dataset, "split": split}.items():
        if not value:
            raise ConfigError(f"--{flag} is empty, but --reader {kind} needs it")
    places = {"source": source, "images": images, **{name: options.get(name) for name in _PLACES}}
    for flag, value in ((flag, value) for flag, value in places.items() if value):
        if value.startswith("file://"):  # names of images are joined to it as they are, without quoting
            raise ConfigError(f"--{flag} {value}: write a local path without file://")
        storage.is_remote(value)  # refuses unknown schemes
    return build({"name": dataset, "split": split}, source, images, options)


def _coco(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    root = _image_root("coco", images)
    _check_choice("image_path", options, IMAGE_PATHS)
    folders = _folders(options)
    return CocoReader(**names, annotation_uri=source, image_root=root, image_folders=folders, **options)


def _refer(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    root = _image_root("refer", images)
    _check_choice("sentence", options, SENTENCES)
    instances = options.pop("instances", None)
    return ReferReader(**names, refs_uri=source, image_root=root, instances_uri=instances, **options)


def _granf(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    root = _image_root("granf", images)
    return GroundedReader(**names, captions_uri=source, image_root=root, image_folders=_folders(options))


def _psg(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    root = _image_root("psg", images)
    return PsgReader(**names, graphs_uri=source, image_root=root, panoptic_root=options.get("panoptic"))


def _dam(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    return DamReader(**names, captions_uri=source, image_root=_image_root("dam", images))


def _osprey(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    return OspreyReader(**names, dialogues_uri=source, image_root=_image_root("osprey", images))


def _folders(options: dict[str, Any]) -> tuple[str, ...]:
    return tuple(folder for folder in options.pop("image_folders", "").split(",") if folder)


def _image_root(kind: str, images: str | None) -> str:
    if not images:
        raise ConfigError(
            f"--reader {kind} needs --images, the folder that the file names in the JSON are relative to"
        )
    return images


def _check_choice(name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    if options.get(name, known[0]) not in known:
        raise ConfigError(f"{name} is {options[name]!r}, expected one of {', '.join(known)}")


def _sa1b(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    if images:
        raise ConfigError(
            f"--reader sa1b finds images beside the side-cars in --source; drop --images {images}"
        )
    return Sa1bReader(**names, source=source, **options)


_BUILDERS: dict[str, tuple[Callable[..., Reader], tuple[str, ...]]] = {
    "coco": (_coco, ("image_path", "mask_key", "image_folders")),
    "sa1b": (_sa1b, ()),
    "refer": (_refer, ("instances", "sentence")),
    "granf": (_granf, ("image_folders",)),
    "psg": (_psg, ("panoptic",)),
    "dam": (_dam, ()),
    "osprey": (_osprey, ()),
}
