"""From the name of a dataset layout to its reader. A new layout is one reader file and one entry here."""

from collections.abc import Callable, Mapping
from typing import Any

from pipelines import storage
from pipelines.ingestion.coco import IMAGE_PATHS, CocoReader
from pipelines.ingestion.reader import Reader
from pipelines.ingestion.sidecar import Sa1bReader
from samtok.errors import ConfigError


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
        kind: ``coco`` (any COCO-layout JSON) or ``sa1b``.
        source: URI of the annotation file (``coco``), of a folder or of a ``.tar`` archive (``sa1b``).
        images: Folder or prefix of the images; only for kinds whose images are elsewhere.
        split: Split name of the rows.
        dataset: Dataset name of the rows.
        options: What only this kind has. ``coco``: ``image_path`` (file_name or coco_url), ``mask_key``,
            ``image_folders`` (separated by commas). ``sa1b``: none.

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
    for flag, value in {"source": source, "images": images or ""}.items():
        if value.startswith("file://"):  # names of images are joined to it as they are, without quoting
            raise ConfigError(f"--{flag} {value}: write a local path without file://")
        storage.is_remote(value)  # refuses unknown schemes
    return build({"name": dataset, "split": split}, source, images, options)


def _coco(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    if not images:
        raise ConfigError(
            "--reader coco needs --images, the folder that the file names in the JSON are relative to"
        )
    if options.get("image_path", IMAGE_PATHS[0]) not in IMAGE_PATHS:
        raise ConfigError(
            f"image_path is {options['image_path']!r}, expected one of {', '.join(IMAGE_PATHS)}"
        )
    if "image_folders" in options:
        options["image_folders"] = tuple(folder for folder in options["image_folders"].split(",") if folder)
    return CocoReader(**names, annotation_uri=source, image_root=images, **options)


def _sa1b(names: dict[str, str], source: str, images: str | None, options: dict[str, Any]) -> Reader:
    if images:
        raise ConfigError(
            f"--reader sa1b finds images beside the side-cars in --source; drop --images {images}"
        )
    return Sa1bReader(**names, source=source, **options)


_BUILDERS: dict[str, tuple[Callable[..., Reader], tuple[str, ...]]] = {
    "coco": (_coco, ("image_path", "mask_key", "image_folders")),
    "sa1b": (_sa1b, ()),
}
