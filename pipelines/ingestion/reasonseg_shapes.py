"""The polygons of ReasonSeg's JSON files as masks, painted as LISA does (dvlab-research/LISA,
utils/data_processing.py): one over the other by descending area, so that a small one stays on top."""

import contextlib
from collections.abc import Sequence
from typing import Any

from pipelines.ingestion import records
from pipelines.ingestion.painting import Canvas, points_of
from pipelines.ingestion.records import Record
from samtok.errors import DataError

TARGET, IGNORE = "target", "ignore"
"""Kinds of shapes: what the texts mean, and what metrics leave out."""

FLAG = "flag"
"""Kind of shapes that mean nothing: an annotation of the annotators' own, deprecated."""

_NUMBERS = {TARGET: 1, IGNORE: 2}

Note = tuple[str, str, str]
"""Reason, message and name of a shape that adds nothing."""


def record_of(raw: bytes, name: str) -> Record:
    """Returns the object of a file, in UTF-8 or cp1252; raises as ``records.parse_object``."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        with contextlib.suppress(UnicodeDecodeError):  # parse_object names the fault in UTF-8
            raw = raw.decode("cp1252").encode()
    return records.parse_object(raw, name, "ReasonSeg", "shapes")


def kind_of(shape: Any) -> str:
    """Returns ``TARGET``, ``IGNORE`` or ``FLAG``; DataError ``label`` for a shape without a label."""
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str):
        raise DataError(f"a shape is {shape!r:.80}, expected an object with a label", reason="label")
    if label.lower() == FLAG:
        return FLAG
    return IGNORE if IGNORE in label.lower() else TARGET


def painted(
    shapes: Sequence[tuple[str, Any]], image_hw: tuple[int, int], key: str
) -> tuple[dict[str, Record], list[Note]]:
    """Returns the masks of kinds as RLEs, without those that have no pixel, and what adds nothing.

    Args:
        shapes: Kind and object of each, in the order of the file, counted from 1.
        image_hw: Height and width of the image in pixels.
        key: Names the image in messages.

    Raises:
        DataError: ``points`` or ``too_large`` for a shape that cannot be painted, which costs the image: the
            others lie over it or below.
    """
    canvas, notes, areas = Canvas(*image_hw), list[Note](), []
    for number, (kind, shape) in enumerate(shapes, start=1):
        name = f"shape {number}"
        if kind == FLAG:
            message = f"{name} of {key} has the label {shape['label']!r:.40} and is no mask"
            notes.append(("shape_flag", message, name))
            continue
        try:
            points = points_of(shape.get("points"))
            if len(points) < 3:
                message = f"{name} of {key} adds nothing: it has {len(points)} corners"
                notes.append(("polygon_part", message, name))
                continue
            filled = canvas.filled(points)
        except DataError as error:
            raise DataError(f"{name} of {key}: {error}", reason=error.reason) from error
        areas.append((int(filled.pixels.sum()), number, kind, filled))
    for _, _, kind, filled in sorted(areas, key=lambda one: one[:2], reverse=True):
        canvas.paint(_NUMBERS[kind], filled)
    seen = canvas.painted()
    return {kind: seen[number] for kind, number in _NUMBERS.items() if number in seen}, notes


def target_of(record: Record, image_hw: tuple[int, int], key: str) -> Record | None:
    """Returns the union of all targets of a file as RLE, whatever is ignored; None if it has no pixel.

    SegLLM reads its masks so (berkeley-hipie/segllm, seg_register/register_dataset.py). Raises as ``kind_of``
    and ``painted``.
    """
    shown = [(TARGET, shape) for shape in record["shapes"] if kind_of(shape) == TARGET]
    return painted(shown, image_hw, key)[0].get(TARGET)
