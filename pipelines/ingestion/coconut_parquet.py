"""COCONut as Parquet files, whose rows have a panoptic map and its segments, but no image.

Source: bytedance/coconut_cvpr2024 (download_coconut.py), which makes panoptic JSON and PNGs of them. Columns:

- ``mask``: the PNG, a struct of ``bytes`` and ``path``; numbers of pixels as in ``panoptic``, 0 is void;
- ``segments_info``: an annotation of panoptic JSON, with its list ``segments_info``;
- ``image_info``: an image of panoptic JSON: ``file_name``, and mostly ``height`` and ``width``. Where it has
  no size, that of the map counts.

Images are in folders of COCO's. Segments become masks, or rejects, as in ``panoptic``. There are numbers of
categories only, which are COCO's 133 unless a legend names others. Rows are told by file and number, not by
the number of their image, so that neighbours share a row group, which is read as one (``parquet_cells``).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.ingestion import coco_categories, label_maps, panoptic, records
from pipelines.ingestion.embedded_layouts import Layout
from pipelines.ingestion.file_reader import FileReader, ImageFolders, witness_of
from pipelines.ingestion.label_maps import SEGMENT_FIELDS
from pipelines.ingestion.legends import LegendOption, legend_of
from pipelines.ingestion.parquet_cells import Cell
from pipelines.ingestion.parquet_rows import ParquetReader
from pipelines.ingestion.reader import Input, ReadResult
from pipelines.ingestion.records import Record
from samtok.errors import DataError

_IMAGE_FIELDS = ("file_name", "height", "width")
_COLUMNS = ("mask", "segments_info", "image_info")


@dataclass(frozen=True, kw_only=True)
class CoconutParquetOptions(LegendOption, ImageFolders):
    """Options of COCONut's Parquet files."""


@dataclass(frozen=True, kw_only=True)
class CoconutParquetReader(ParquetReader, FileReader, CoconutParquetOptions):
    """Reads Parquet files of panoptic maps, whose images are below ``images``."""

    options: ClassVar[type] = CoconutParquetOptions

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns that of the Parquet files, and the legend's as ``witness_of``."""
        legend = {} if self.legend is None else witness_of(self.legend)
        return legend | super().witness(inputs)

    def parts(self) -> tuple[str, ...]:
        """Returns ``file#group`` of every row group; raises also as ``legend_of``."""
        if self.legend is not None:
            legend_of.cache_clear()  # it may have changed since another corpus was read
            legend_of(self.legend)
        return super().parts()

    def layout_of(self, found: Sequence[str], uri: str) -> Layout:
        """Returns the only layout; DataError ``parquet_layout`` for a file with other columns."""
        if not set(_COLUMNS) <= set(found):
            raise DataError(
                f"{uri} has the columns {', '.join(found)}, expected {', '.join(_COLUMNS)} (COCONut)",
                reason="parquet_layout",
            )
        return Layout(frozenset(_COLUMNS), "mask", (), _of_row)

    def read(self, item: Input) -> ReadResult:
        """Reads the map of a row; ``num_masks_in`` of the result equals ``item.num_masks``."""
        body = json.loads(item.payload)
        image, segments = body["image"], body["masks"]
        try:
            name = records.image_name(image.get("file_name"), f"file_name of image_info of {item.key}")
            image_uri = self.image_uri(name)
            stated = "height" in image or "width" in image
            image_hw = records.size_hw(image, f"image_info of {item.key}") if stated else None
            map_uri = Cell(self._uri(body["file"]), body["row"], body["column"]).uri
            counts, masks_hw = label_maps.read_counts(map_uri, image_hw, self.orientation)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=len(segments))
        labels = self._labels()
        segments = [panoptic.labelled(segment, labels) for segment in segments]
        return panoptic.row_of(self, item.key, image_uri, image_hw or masks_hw, segments, counts, masks_hw)

    def _labels(self) -> dict[str, str]:
        if self.legend is None:
            return coco_categories.PANOPTIC
        return {str(number): name for number, name in legend_of(self.legend).items()}


def _of_row(values: Record) -> dict[str, Any]:
    """Returns what is read of a row; raises DataError ``annotation_record`` for one without segments."""
    segments = _fields(values["segments_info"], ("segments_info",)).get("segments_info")
    if not isinstance(segments, list):
        raise DataError(
            f"segments_info is {values['segments_info']!r:.200}, expected a struct with such a list",
            reason="annotation_record",
        )
    image = _fields(values["image_info"], _IMAGE_FIELDS)
    return {"masks": [_fields(segment, SEGMENT_FIELDS) for segment in segments], "image": image}


def _fields(value: Any, names: Sequence[str]) -> Record:
    """Returns the fields of a struct that are not null: Arrow has each in every row."""
    picked = records.picked(value, names) if isinstance(value, dict) else {}
    return {name: one for name, one in picked.items() if one is not None}
