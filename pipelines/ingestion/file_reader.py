"""What the readers of one annotation file have in common, whose images lie in a folder elsewhere."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.ingestion import image_source, records


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a reader that has none."""


@dataclass(frozen=True, kw_only=True)
class ImageFolders:
    """For datasets whose names of images may lack their folder."""

    image_folders: tuple[str, ...] = ()
    """coco, granf: folders below the images to search for names that are not found as they are, as
    entity_01_11580 entity_02_11598 (EntitySeg) or train2017 val2017 (OpenPSG-GCG). Without any, names are
    used as they are."""


@dataclass(frozen=True, kw_only=True)
class FileReader:
    """Base of readers of one annotation file.

    Attributes:
        options: Class of the options that only this reader has; their fields are fields of the reader.
        name: Dataset name of the rows.
        split: Split name of the rows.
        source: URI of the annotation file.
        images: Folder or prefix that the names of images are relative to and may not leave.
    """

    options: ClassVar[type] = NoOptions

    name: str
    split: str
    source: str
    images: str

    def sources(self) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}`` of the annotation file."""
        return records.file_digest(self.source)

    def image_uri(self, name: str) -> str:
        """Returns where the image of that name is; raises as ``image_source.find_image``."""
        folders = self.image_folders if isinstance(self, ImageFolders) else ()
        if not folders:
            return image_source.below_root(self.images, name)
        return image_source.find_image(self.images, [name, *(f"{folder}/{name}" for folder in folders)])
