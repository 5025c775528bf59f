"""All readers by their names, and the options that only some of them have.

A new layout is a reader file and an entry of ``READERS``; its options are a base class of ``ReaderOptions``.
"""

from dataclasses import fields
from typing import Any, Literal

from pipelines.config import config
from pipelines.ingestion.boxes import InvigReader, Visual7wReader
from pipelines.ingestion.cityscapes_polygons import CityscapesPolygonsOptions, CityscapesPolygonsReader
from pipelines.ingestion.coco import CocoOptions, CocoReader
from pipelines.ingestion.coconut_parquet import CoconutParquetReader
from pipelines.ingestion.copsref import CopsrefOptions, CopsrefReader
from pipelines.ingestion.dam_archives import DamTarReader
from pipelines.ingestion.dlc_bench import DlcReader
from pipelines.ingestion.grounded import GroundedReader
from pipelines.ingestion.label_maps import PanopticOptions
from pipelines.ingestion.labelmap import LabelMapOptions, LabelMapReader
from pipelines.ingestion.labelme import LabelmeReader
from pipelines.ingestion.lisa import LisaReader
from pipelines.ingestion.mask_files import MaskFilesOptions
from pipelines.ingestion.mask_folders import MasksOptions, MasksReader
from pipelines.ingestion.mixtures import MixtureReader
from pipelines.ingestion.osprey import OspreyReader
from pipelines.ingestion.panoptic import PanopticReader
from pipelines.ingestion.parquet_rows import GarReader, ParquetReader
from pipelines.ingestion.pixelweb import PixelWebReader
from pipelines.ingestion.psg import PsgReader
from pipelines.ingestion.reasonseg import ReasonSegReader
from pipelines.ingestion.refer import ReferOptions, ReferReader
from pipelines.ingestion.regions import DamReader, RegionsReader
from pipelines.ingestion.segllm import SegllmReader
from pipelines.ingestion.sidecar import Sa1bReader
from pipelines.ingestion.video import VideoReader
from pipelines.ingestion.video_frames import VideoOptions
from pipelines.ingestion.yolo import YoloOptions, YoloReader

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
    "coconut_parquet",
    "masks",
    "labelme",
    "yolo",
    "regions",
    "dlc",
    "gar",
    "dam_tar",
    "segllm",
    "video",
    "mixture",
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
    "coconut_parquet": CoconutParquetReader,
    "masks": MasksReader,
    "labelme": LabelmeReader,
    "yolo": YoloReader,
    "regions": RegionsReader,
    "dlc": DlcReader,
    "gar": GarReader,
    "dam_tar": DamTarReader,
    "segllm": SegllmReader,
    "video": VideoReader,
    "mixture": MixtureReader,
}
"""Classes of readers. ``options`` of each is the class of the options that only it has."""


@config
class ReaderOptions(
    CocoOptions,
    ReferOptions,
    PanopticOptions,
    LabelMapOptions,
    CityscapesPolygonsOptions,
    CopsrefOptions,
    MasksOptions,
    YoloOptions,
    MaskFilesOptions,
    VideoOptions,
):
    """Options of single readers."""


def option_names(reader: str) -> tuple[str, ...]:
    """Returns the options that only this reader has."""
    return tuple(field.name for field in fields(READERS[reader].options))
