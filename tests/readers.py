"""Reads a whole dataset and checks what all readers promise."""

from typing import Any

from hypothesis import HealthCheck, settings

from pipelines import schema
from pipelines.ingestion.corpora import CorpusConfig, reader_of
from pipelines.ingestion.reader import Input, Reader

Row = dict[str, Any]

ANY = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""For properties that hold of any file: each example writes one and reads it."""


def build_reader(kind: Any, **fields: Any) -> Reader:
    """Builds a reader as the flags ``--corpus.*`` do."""
    return reader_of(CorpusConfig(reader=kind, **fields))


def read_all(reader: Reader) -> tuple[list[Row], list[Row]]:
    """Returns rows and rejects, having checked the counts, the schemas, and that no mask is named in vain."""
    rows: list[Row] = []
    rejects: list[Row] = []
    for item in reader.inputs():
        if not isinstance(item, Input):
            rejects.append(item)
            continue
        result = reader.read(item)
        assert item.num_masks in (None, result.num_masks_in)
        rejects += result.rejects
        rows += [result.row] if result.row else []
    schema.table(rows, schema.IMAGE_ROW)
    schema.table(rejects, schema.REJECT_ROW)
    for row in rows:
        known = {mask["mask_id"] for mask in row["masks"]}
        known |= {entry["mask_id"] for entry in rejects if entry["row_id"] == row["image_id"]}
        names = [made["annotation_id"] for made in row["annotations"]]
        assert len(set(names)) == len(names)
        assert all(set(made["mask_ids"]) <= known for made in row["annotations"])
    return rows, rejects
