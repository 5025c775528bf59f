"""DAM's training data as published: WebDataset archives of an image and a pickle each.

A sample is ``KEY.jpg`` and ``KEY.pickle``, a list of ``{mask_rle, caption}`` that is read without running
anything in it (``safe_pickle``). The source is an archive, a folder of them, or of what was unpacked. Keys
are those of one archive, so the image id is ``ARCHIVE/KEY``. Further fields of an entry are not used. Source:
nvidia/describe-anything-dataset. The same as Parquet is read by ``parquet_rows``.
"""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.ingestion import embedded_layouts
from pipelines.ingestion.reader import Input, ReadResult
from pipelines.ingestion.sidecar import PairsReader
from samtok.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DamTarReader(PairsReader):
    """Reads archives of DAM, or a folder of samples."""

    annotation: ClassVar[str] = ".pickle"
    layout: ClassVar[str] = "dam_layout"

    def read(self, item: Input) -> ReadResult:
        """Reads one pickle. If it cannot be loaded no masks are counted, else all of its entries."""
        located, num_masks = self._located(item), 0
        try:
            body = embedded_layouts.of_pickle(self._sidecar_bytes(located["annotation"]))
            num_masks = len(body["masks"])
            image_uri = self._uri(located["image"])
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        return embedded_layouts.row_of(self, item.key, image_uri, body)

    def _key_of(self, path: str, archive: str) -> str:
        return f"{archive.rpartition('.')[0]}/{path.rpartition('/')[2]}" if archive else path
