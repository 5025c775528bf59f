"""Parquet files with embedded images: the authors' rows (EasyR1) and RefCOCO-M's."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import storage
from pipelines.ingestion import image_source, parquet_cells
from pipelines.ingestion.parquet_cells import Cell
from pipelines.ingestion.reader import Input
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import WorldConfig, make_scene
from tests.readers import build_reader, read_all

WORLD = WorldConfig.square(48)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rle(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": masks.encode(mask)}


def scenes(count: int) -> list[Any]:
    return [make_scene(0, number, WORLD) for number in range(count)]


def easyr1(count: int = 7) -> list[dict[str, Any]]:
    """Rows as the authors publish them; every third has no target."""
    rows = []
    for number, scene in enumerate(scenes(count)):
        found = [] if number % 3 == 2 else [rle(thing.mask) for thing in scene.objects]
        problem = f"<image>\nSegment number {number}."
        rows.append(
            {
                "images": [{"bytes": png(scene.image), "path": f"old/{number}.png"}],
                "problem": [problem] if number % 2 else problem,
                "answer": "words",
                "masks": found,
                "source": "gres" if number % 2 else "ver",
            }
        )
    for row in rows:  # a column has one type; files have one or the other
        row["problem"] = row["problem"] if isinstance(row["problem"], list) else [row["problem"]]
    return rows


def refcoco_m(count: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": png(scene.image), "path": None},
            "samples": [
                {"mask": rle(thing.mask), "sentences": [f"thing {place}", f"the {place}th"]}
                for place, thing in enumerate(scene.objects)
            ],
        }
        for scene in scenes(count)
    ]


def write(path: Path, rows: list[dict[str, Any]], *, row_group_size: int = 3) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return str(path)


def read(source: str) -> tuple[list, list]:
    return read_all(build_reader("parquet", source=source))


def test_the_authors_rows_are_read_back_equal(tmp_path):
    written = easyr1()
    rows, rejects = read(write(tmp_path / "mix.parquet", written))
    assert not rejects and [row["image_id"] for row in rows] == [f"mix-{n:08d}" for n in range(7)]
    for number, (row, scene) in enumerate(zip(rows, scenes(7), strict=True)):
        pixels = image_source.read_image(row["image_uri"], expected_hw=(row["height"], row["width"]))
        np.testing.assert_array_equal(pixels, scene.image)
        wanted = written[number]["masks"]
        assert [masks.decode(mask["rle"], height=48, width=48).tolist() for mask in row["masks"]] == [
            masks.decode(one["counts"], height=48, width=48).tolist() for one in wanted
        ]
        (made,) = row["annotations"]
        assert (made["task"], made["text"]) == ("referring", f"<image>\nSegment number {number}.")
        assert made["mask_ids"] == [mask["mask_id"] for mask in row["masks"]]
        assert made["tags"] == [written[number]["source"]]
        assert json.loads(made["payload"]) == {"answer": "words"}


def test_samples_with_sentences_are_read_back_equal(tmp_path):
    rows, rejects = read(write(tmp_path / "val.parquet", refcoco_m()))
    assert not rejects
    for row, scene in zip(rows, scenes(5), strict=True):
        found = [masks.decode(mask["rle"], height=48, width=48) for mask in row["masks"]]
        assert [mask.tolist() for mask in found] == [thing.mask.tolist() for thing in scene.objects]
        texts = [(made["mask_ids"], made["text"]) for made in row["annotations"]]
        assert texts == [
            ([str(place + 1)], text)
            for place in range(len(found))
            for text in (f"thing {place}", f"the {place}th")
        ]


def test_a_folder_of_files_is_read_in_the_order_of_its_keys_and_listed_in_parts(tmp_path):
    for number, name in enumerate(("a/data.parquet", "a-1.parquet", "a.parquet")):
        write(tmp_path / name, easyr1(4 + number))
    reader = build_reader("parquet", source=str(tmp_path))
    keys = [item.key for item in reader.inputs() if isinstance(item, Input)]
    assert keys == sorted(keys) and len(keys) == len(set(keys)) == 15
    apart = [item.key for part in reader.parts() for item in reader.inputs_of(part)]
    assert apart == keys and len(reader.parts()) == 2 + 2 + 2
    assert set(reader.witness()) == {"a/data.parquet", "a-1.parquet", "a.parquet"}
    assert reader.head(5).more


def test_what_is_wrong_with_a_row_is_a_reject_of_it(tmp_path):
    rows = easyr1(6)
    rows[0]["masks"] = [{"size": [48, 48], "counts": "no RLE"}, rows[1]["masks"][0]]
    rows[1]["masks"][0] = {"size": [9, 9], "counts": masks.encode(np.ones((9, 9), bool))}
    rows[3]["problem"] = [" "]
    rows[4] |= {"masks": [], "images": [{"bytes": b"", "path": "gone.png"}]}  # its size is asked for
    found, rejects = read(write(tmp_path / "mix.parquet", rows))
    assert [row["image_id"][-1] for row in found] == ["0", "1", "2", "3", "5"]
    reasons = {(entry["row_id"][-1], entry["reason"], entry["num_masks"]) for entry in rejects}
    assert {("3", "annotation_text", 0), ("4", "image_cell", 0)} <= reasons
    assert {row for row, _, lost in reasons if lost} == {"0", "1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no Parquet file, or damaged"),
        (b"PAR1" + bytes(100), "no Parquet file, or damaged"),
        ("columns", "has the columns a, expected images, problem and masks"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, message):
    path = tmp_path / "x.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match=message):
        list(build_reader("parquet", source=str(path)).inputs())


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [(9, "images", "it has 7 rows"), (0, "photo", "its columns are"), (0, "answer", "no bytes are embedded")],
)
def test_a_cell_that_is_no_image_says_so(tmp_path, row, column, message):
    cell = Cell(write(tmp_path / "mix.parquet", easyr1()), row, column)
    assert parquet_cells.parse(cell.uri) == cell
    with pytest.raises(DataError, match=message):
        image_source.read_image_bytes(cell.uri)


def test_a_name_in_a_dataset_never_leads_into_a_parquet_file(tmp_path):
    with pytest.raises(DataError, match="a Parquet value"):
        image_source.below_root(str(tmp_path), "a.parquet#row:1:images")


@pytest.mark.slow
def test_a_store_gives_the_same_rows_as_a_disk(tmp_path, bucket):
    path = Path(write(tmp_path / "mix.parquet", easyr1()))
    storage.write_bytes(f"{bucket}/data/mix.parquet", path.read_bytes())
    here, there = read(str(path)), read(f"{bucket}/data")
    for row, other in zip(here[0], there[0], strict=True):
        size_hw = row["height"], row["width"]
        uris = row["image_uri"], other["image_uri"]
        first, second = (image_source.read_image(uri, expected_hw=size_hw) for uri in uris)
        np.testing.assert_array_equal(first, second)
        assert {**row, "image_uri": ""} == {**other, "image_uri": ""}
    assert here[1] == there[1]


def test_texts_that_are_no_utf_8_cost_their_rows(tmp_path):
    """The damaged text is the path of an image; that of another row is a problem."""
    image = pa.array([{"bytes": png(scenes(1)[0].image), "path": "a\u00e9"}] * 2)
    table = pa.Table.from_pylist(easyr1(2))
    path = tmp_path / "mix.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    assert data.count(b"Segment number 1.") >= 1
    path.write_bytes(data.replace(b"Segment number 1.", b"Segment n\xffmber 1."))
    rows, rejects = read(str(path))
    assert not rows and [one["reason"] for one in rejects] == ["parquet_layout"] * 2
    broken = tmp_path / "image.parquet"
    pq.write_table(pa.table({"image": image}), broken, compression="none", use_dictionary=False)
    broken.write_bytes(broken.read_bytes().replace("a\u00e9".encode(), b"a\xff\xff"))
    with pytest.raises(DataError, match="no Parquet file, or damaged"):
        parquet_cells.read(Cell(str(broken), 0, "image"))
