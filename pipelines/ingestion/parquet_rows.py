"""Parquet files with images, masks and texts in their rows, as Hugging Face datasets embed them.

Two layouts are recognised by their columns:

- ``images, problem, answer, masks``: EasyR1's, which the authors publish
  (mix_gres8k_ver4k_train.parquet): one image, a prompt, and compressed RLEs in the order of the answer's
  words; no RLE is "no target";
- ``image, samples``: RefCOCO-M's: one image, and of each sample a ``mask`` and its ``sentences``.

A row of the file is a row of the corpus. The source is one file or a folder of them, whose row groups are
listed apart, without their images; those are read one row group at a time (``parquet_cells``).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines import schema
from pipelines.ingestion import annotations, image_source, parquet_cells, records, rl_rows
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.file_reader import NoOptions, first_of, witness_of
from pipelines.ingestion.image_source import below_root
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.parquet_cells import Cell
from pipelines.ingestion.reader import MAX_NAMES, STAGE, Head, Input, ReadResult, Reject
from pipelines.ingestion.records import Record
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

    name: str
    split: str
    source: str
    link_root: tuple[str, ...] = ()
    orientation: Orientation = "stored"

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{name below the source: "size:sha256"}`` of every file, of large ones by samples."""
        files = parquet_cells.files_of(self.source)
        found = map_ahead(witness_of, map(self._uri, files))
        return {name: text for name, one in zip(files, found, strict=True) for text in one.values()}

    def parts(self) -> tuple[str, ...]:
        """Returns ``file#group`` of every row group."""
        files = parquet_cells.files_of(self.source)
        found = map_ahead(parquet_cells.metadata, map(self._uri, files))
        groups = [(name, range(one.num_row_groups)) for name, one in zip(files, found, strict=True)]
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
        named = [
            {"mask_id": str(number), "segmentation": rle} for number, rle in enumerate(body["masks"], start=1)
        ]
        try:
            image_hw = records.size_hw_of_masks(body["masks"], "the image") or image_source.read_size_hw(uri)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=len(named))
        made: list[Annotation] = []
        lost: list[Reject] = []
        for number, entry in enumerate(body["texts"], start=1):
            try:
                text = annotations.text_of(entry["text"], "text")
            except DataError as error:
                lost.append(annotations.annotation_reject(self.name, item.key, str(number), error))
                continue
            ids = [str(one) for one in entry["masks"]]
            about = {"tags": entry.get("tags", ()), "payload": entry.get("payload")}
            made.append(annotations.annotation(str(number), "referring", ids, text=text, **about))
        return annotations.attach(records.make_row(self, item.key, uri, image_hw, named), made, lost)

    def _uri(self, name: str) -> str:
        if self.source.endswith(parquet_cells.SUFFIX):
            return self.source
        return below_root(self.source, name, link_roots=self.link_root)

    def _rows(self, name: str, group: int) -> Iterator[Input | Reject]:
        uri = self._uri(name)
        metadata = parquet_cells.metadata(uri)
        column, columns, body_of = _layout(parquet_cells.columns_of(uri), uri)
        row = sum(metadata.row_group(number).num_rows for number in range(group))
        for values in parquet_cells.rows_of(uri, group, columns, BATCH_ROWS):
            key = f"{parquet_cells.stem(name)}{row:08d}"
            place = {"file": name, "row": row, "column": column}
            row += 1
            try:
                body = body_of(values)
                payload = records.compact_json({**place, **body})
            except DataError as error:
                yield schema.reject(STAGE, self.name, key, error.reason, str(error))
            else:
                yield Input(key=key, payload=payload, num_masks=len(body["masks"]))


BodyOf = Callable[[Record], dict[str, Any]]
"""Makes ``masks`` and ``texts`` of the values of a row."""


def _layout(found: Sequence[str], uri: str) -> tuple[str, list[str], BodyOf]:
    """Returns the column with images, those that are listed, and what makes a row of them masks and texts."""
    if {"images", "problem", "masks"} <= set(found):
        names = [name for name in ("problem", "answer", "masks", "source") if name in found]
        return "images", names, _of_problem
    if {"image", "samples"} <= set(found):
        return "image", ["samples"], _of_samples
    raise DataError(
        f"{uri} has the columns {', '.join(found)}, expected images, problem and masks (EasyR1, the "
        "authors' files), or image and samples (RefCOCO-M)",
        reason="parquet_layout",
    )


def _of_problem(values: Record) -> dict[str, Any]:
    """EasyR1: all masks of a row are the targets of its prompt, a text or a list of one."""
    row = rl_rows.of_easyr1(values)
    entry = {"text": row.problem, "masks": list(range(1, len(row.masks) + 1))}
    if row.source is not None:
        entry["tags"] = [row.source]
    if row.answer is not None:
        entry["payload"] = {"answer": row.answer}
    return {"masks": row.masks, "texts": [entry]}


def _of_samples(values: Record) -> dict[str, Any]:
    """RefCOCO-M: each sample has a mask, and sentences about it."""
    rles, texts = [], []
    for number, sample in enumerate(rl_rows.listed(values["samples"], "samples"), start=1):
        if not isinstance(sample, dict) or "mask" not in sample or "sentences" not in sample:
            raise DataError(
                f"sample {number} is {sample!r:.200}, expected mask and sentences", reason="sample"
            )
        rles.append(rl_rows.rle_of(sample["mask"]))
        texts += [
            {"text": one, "masks": [number]} for one in rl_rows.listed(sample["sentences"], "sentences")
        ]
    return {"masks": rles, "texts": texts}
