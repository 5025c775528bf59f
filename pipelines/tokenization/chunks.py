"""What travels from the CPU stage of tokenization to the tokenizer: images as the networks take them.

Rows are in the schema of the result already, with codes to be filled in, so the actor that holds a GPU builds
no row in Python. Masks travel as prompts, of which only the part that is not 0 is held.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, UInt8

from pipelines import schema
from samtok import words
from samtok.mask_resize import SmallMasks
from samtok.model.prompts import MaskPrompts

COLUMNS = ("rows", "pixels", "prompt_boxes", "prompt_values", "mask_boxes")
"""Entries of a chunk that ``Images`` is made of."""


@dataclass(frozen=True)
class Images:
    """Images of a chunk, or some of them, with the masks that get words.

    Attributes:
        rows: In ``schema.CODE_ROW``; before tokenization masks have no codes and no words.
        prompts: Of all masks of all rows, in their order.
    """

    rows: pa.Table
    pixels: UInt8[np.ndarray, "image side side 3"]
    prompts: MaskPrompts

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_masks(self) -> Int[np.ndarray, " image"]:
        """Masks of each image."""
        return np.diff(self._offsets)

    @property
    def names(self) -> list[tuple[str, str]]:
        """Dataset and image id of each image."""
        columns = (self.rows[name].to_pylist() for name in ("dataset", "image_id"))
        return list(zip(*columns, strict=True))

    def part(self, start: int, stop: int) -> "Images":
        """Returns the images from ``start`` up to ``stop``."""
        stop = min(stop, len(self))
        first, last = self._offsets[[start, stop]].tolist()
        rows = self.rows.slice(start, stop - start)
        return Images(rows, self.pixels[start:stop], self.prompts[first:last])

    @property
    def _offsets(self) -> Int[np.ndarray, " end"]:
        counts = self.rows["masks"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        return np.append(0, np.cumsum(counts, dtype=np.int64))

    def mask_column(self, name: str) -> list[Any]:
        """Returns a field of all masks."""
        return self.rows["masks"].combine_chunks().flatten().field(name).to_pylist()

    def coded(
        self,
        codes: Int[np.ndarray, "mask level"],
        scores: dict[str, Float[np.ndarray, " mask"]],
        *,
        num_codes: int,
        keep_rle: bool,
    ) -> pa.Table:
        """Returns the rows with the codes and words of their masks; scores that are NaN become null."""
        masks = self.rows["masks"].combine_chunks()
        flat = masks.flatten()
        ends = pa.array(np.arange(len(codes) + 1, dtype=np.int32) * codes.shape[1])
        filled = {
            "codes": pa.ListArray.from_arrays(ends, pa.array(codes.ravel(), pa.int32())),
            "words": pa.array(
                [words.format_words(row, num_codes=num_codes) for row in codes.tolist()], pa.string()
            ),
        }
        for name, values in scores.items():
            filled[name] = pa.array(values, pa.float32(), from_pandas=True)
        if not keep_rle:
            filled["rle"] = pa.nulls(len(codes), pa.string())
        fields = list(schema.CODE_ROW.field("masks").type.value_type)
        columns = [filled.get(field.name, flat.field(field.name)) for field in fields]
        struct = pa.StructArray.from_arrays(columns, fields=fields)
        offsets = pa.array(self._offsets.astype(np.int32))
        where = self.rows.schema.get_field_index("masks")
        column = pa.ListArray.from_arrays(offsets, struct, type=schema.CODE_ROW.field("masks").type)
        return self.rows.set_column(where, schema.CODE_ROW.field("masks"), column)


def pack(
    rows: Sequence[dict[str, Any]], pixels: Sequence[np.ndarray], prompts: Sequence[MaskPrompts], size: int
) -> dict[str, pa.Array]:
    """Returns images as ``COLUMNS`` of a chunk of one row, of any length; ``size`` is that of soft masks."""
    soft = SmallMasks.join([one.soft for one in prompts], size)
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(one.boxes for one in prompts)])
    parts = {
        "rows": ipc(schema.table(rows, schema.CODE_ROW)),
        "pixels": b"".join(picture.tobytes() for picture in pixels),
        "prompt_boxes": soft.boxes.tobytes(),
        "prompt_values": soft.values.tobytes(),
        "mask_boxes": boxes.tobytes(),
    }
    return {name: pa.array([data], pa.large_binary()) for name, data in parts.items()}


def unpack(chunk: pa.Table, *, side: int, size: int) -> Images:
    """Returns the images of a chunk as views of it. ``side`` is that of images, ``size`` of soft masks."""

    def view(name: str, dtype: type, *shape: int) -> np.ndarray:
        return np.frombuffer(chunk[name][0].as_buffer() or b"", dtype).reshape(-1, *shape)

    soft = SmallMasks(size, view("prompt_boxes", np.int32, 4), view("prompt_values", np.float32).ravel())
    rows = read_ipc(chunk["rows"][0].as_buffer())
    return Images(
        rows, view("pixels", np.uint8, side, side, 3), MaskPrompts(soft, view("mask_boxes", np.float32, 4))
    )


def read_ipc(data: bytes | pa.Buffer) -> pa.Table:
    """Reads a table that travels inside a chunk."""
    return pa.ipc.open_stream(data).read_all()


def ipc(table: pa.Table) -> bytes:
    """Writes a table as ``read_ipc`` takes it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
