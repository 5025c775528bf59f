"""Parquet and Arrow files with images, masks and texts in their rows, as Hugging Face datasets embed them.

The columns tell which of the layouts of ``embedded_layouts`` a file has. A row of the file is a row of the
corpus. The source is one file or a folder of them, whose row groups are listed apart, in Parquet without
their images; those are read one row group at a time (``parquet_cells``).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipelines import schema
from pipelines.ingestion import embedded_layouts, parquet_cells, records
from pipelines.ingestion.embedded_layouts import Layout
from pipelines.ingestion.file_reader import NoOptions, first_of, witness_of
from pipelines.ingestion.image_source import below_root
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.parquet_cells import Cell
from pipelines.ingestion.reader import MAX_NAMES, STAGE, Head, Input, ReadResult, Reject
from pipelines.storage.threads import map_ahead
from samtok.errors import DataError

BATCH_ROWS = 256
"""Rows that are listed at a time: RLEs of very many masks are long."""


@dataclass(frozen=True, kw_only=True)
class ParquetReader:
    """Reads Parquet files of one layout.

    Attributes:
        source: One file, or a folder or prefix of them.
        link_root: Folders besides the source that links below it may lead into.
    """

    options: ClassVar[type] = NoOptions
    suffix: ClassVar[str] = parquet_cells.SUFFIX

    name: str
    split: str
    source: str
    link_root: tuple[str, ...] = ()
    orientation: Orientation = "stored"

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{name below the source: "size:sha256"}`` of every file, of large ones by samples."""
        files = parquet_cells.files_of(self.source, self.suffix)
        found = map_ahead(witness_of, map(self._uri, files))
        return {name: text for name, one in zip(files, found, strict=True) for text in one.values()}

    def parts(self) -> tuple[str, ...]:
        """Returns ``file#group`` of every row group."""
        files = parquet_cells.files_of(self.source, self.suffix)
        found = map_ahead(parquet_cells.rows_of_groups, map(self._uri, files))
        groups = [(name, range(len(rows))) for name, rows in zip(files, found, strict=True)]
        return tuple(f"{name}#{group}" for name, numbers in groups for group in numbers)

    def inputs_of(self, part: str) -> Iterator[Input | Reject]:
        """Yields the rows of a row group."""
        name, _, group = part.rpartition("#")
        return self._rows(name, int(group))

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields the rows of all files, in their order."""
        for part in self.parts():
            yield from self.inputs_of(part)

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first rows."""
        return first_of(self.inputs(), limit)

    def read(self, item: Input) -> ReadResult:
        """Reads the masks and texts of a row; of the image at most its size."""
        body = json.loads(item.payload)
        uri = Cell(self._uri(body["file"]), body["row"], body["column"]).uri
        return embedded_layouts.row_of(self, item.key, uri, body)

    def layout_of(self, found: Sequence[str], uri: str) -> Layout:
        """Returns how a file with these columns is read; raises as ``embedded_layouts.layout_of``."""
        return embedded_layouts.layout_of(found, uri)

    def _uri(self, name: str) -> str:
        if self.source.endswith(self.suffix):
            return self.source
        return below_root(self.source, name, link_roots=self.link_root)

    def _rows(self, name: str, group: int) -> Iterator[Input | Reject]:
        uri = self._uri(name)
        found = parquet_cells.columns_of(uri)
        layout = self.layout_of(found, uri)
        row = sum(parquet_cells.rows_of_groups(uri)[:group])
        for values in parquet_cells.each_row(uri, group, layout.listed(found), BATCH_ROWS):
            key = f"{parquet_cells.stem(name)}{row:08d}"
            place = {"file": name, "row": row, "column": layout.image}
            row += 1
            try:
                if isinstance(values, DataError):
                    raise values
                body = layout.body_of(values)
                payload = records.compact_json({**place, **body})
            except DataError as error:
                yield schema.reject(STAGE, self.name, key, error.reason, str(error))
            except (TypeError, ValueError) as error:  # bytes, times or endless numbers in the place of masks
                yield schema.reject(STAGE, self.name, key, "parquet_value", f"{key} cannot be JSON: {error}")
            else:
                yield Input(key=key, payload=payload, num_masks=len(body["masks"]))


@dataclass(frozen=True, kw_only=True)
class GarReader(ParquetReader):
    """Reads Arrow streams, as the datasets of GAR are published: folders of ``data-*-of-*.arrow``.

    Batches keep all of their columns together, so listing reads the files whole.
    """

    suffix: ClassVar[str] = ".arrow"
