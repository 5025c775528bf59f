"""PixelWeb: matrices of numbers become masks with names of classes, and anything else a reject."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import storage
from pipelines.ingestion import label_maps
from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.pixelweb import matrix_of
from pipelines.ingestion.reader import Reader
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import WorldConfig, make_scene
from tests.folders import HEIGHT, PICTURE, SQUARE, WIDTH, put
from tests.label_maps import found_in, inputs_of, reasons
from tests.readers import build_reader, read_all

CELLS = np.ones((HEIGHT, WIDTH), int)
CELLS[SQUARE] = 3
CELLS[0, 1:4] = 0
CELLS[19, 20:] = 2
CELLS[12, 5] = 7
CLASSES = ["html", "none", "button"]


def page(cells: Any = None, classes: Any = CLASSES, name: str = "sub/a") -> dict[str, bytes]:
    rows = CELLS.tolist() if cells is None else cells
    mask, named = (one if isinstance(one, bytes) else json.dumps(one).encode() for one in (rows, classes))
    return {f"{name}-screenshot.png": PICTURE, f"{name}-mask.json": mask, f"{name}-class.json": named}


def reader_of(folder: Path | str, **options: Any) -> Reader:
    return build_reader("pixelweb", source=str(folder), images=str(folder), dataset="p", **options)


def read(folder: Path, files: dict[str, bytes]) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    put(folder, files)
    rows, rejects = read_all(reader_of(folder))
    return rows, reasons(rejects)


def test_numbers_are_masks_of_the_class_one_before_and_page_and_none_are_void(tmp_path):
    (row,), told = read(tmp_path, page())
    assert found_in(row) == {
        "1": (masks.encode(CELLS == 1), "html", ["void"]),
        "2": (masks.encode(CELLS == 2), "none", ["void"]),
        "3": (masks.encode(CELLS == 3), "button", []),
        "7": (masks.encode(CELLS == 7), None, []),
    }
    assert told == [("unknown_category", "sub/a", "7", 0)]
    assert (row["image_id"], row["height"], row["width"]) == ("sub/a", HEIGHT, WIDTH)
    assert row["image_uri"] == f"{tmp_path}/sub/a-screenshot.png"


def test_a_page_without_elements_is_a_row_without_masks(tmp_path):
    (row,), told = read(tmp_path, page([[0, 0], [0, 0]], []))
    assert row["masks"] == [] and told == []


FAULTS: dict[str, tuple[dict[str, bytes], str]] = {
    "empty": (page(b""), "matrix"),
    "cut": (page(json.dumps(CELLS.tolist()).encode()[:-9]), "matrix"),
    "an empty list": (page([]), "matrix"),
    "an empty row": (page([[]]), "matrix"),
    "rows of different lengths": (page([[1, 2], [3]]), "matrix"),
    "deeper": (page([[[1, 2]], [[3, 4]]]), "matrix"),
    "not deep": (page([1, 2]), "matrix"),
    "a missing cell": (page(b"[[1,,2],[3,4,5]]"), "matrix"),
    "a number in two": (page(b"[[1 2,3]]"), "matrix"),
    "below 0": (page([[1, -2]]), "matrix"),
    "a number between rows": (page(b"[[1,2]1,[3,4]]"), "matrix"),
    "a number before them": (page(b"1[[1,2]]"), "matrix"),
    "a number behind them": (page(b"[[1,2]]1"), "matrix"),
    "a number before a row": (page(b"[[1,2],1[3,4]]"), "matrix"),
    "ten digits": (page(b"[[1234567890,2]]"), "matrix"),
    "a fraction": (page([[1, 2.0]]), "matrix"),
    "null": (page([[1, None]]), "matrix"),
    "a text": (page([["1", 2]]), "matrix"),
    "an endless number": (page([[10**40]]), "matrix"),
    "something behind": (page(b"[[1,2]] [[1,2]]"), "matrix"),
    "no names": (page(classes={"0": "html"}), "sidecar_layout"),
    "names of another kind": (page(classes=["html", 5]), "sidecar_layout"),
    "names cut": (page(classes=b'["html"'), "json"),
    "half a character": (page(classes=["\ud800"]), "sidecar_layout"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_page_at_fault_costs_its_row_and_no_other(tmp_path, fault):
    files, reason = FAULTS[fault]
    rows, told = read(tmp_path, {**files, **page(name="b")})
    assert [row["image_id"] for row in rows] == ["b"]
    assert [one for one in told if one[0] != "unknown_category"] == [(reason, "sub/a", "", 0)]


@pytest.mark.parametrize(
    ("end", "reason"), [("-screenshot.png", "missing_image"), ("-class.json", "classes_missing")]
)
def test_a_page_that_lacks_a_file_is_rejected(tmp_path, end, reason):
    files = page()
    del files[f"sub/a{end}"]
    rows, told = read(tmp_path, files)
    assert rows == [] and told == [(reason, "sub/a", "", 0)]


def test_a_folder_without_matrices_is_refused(tmp_path):
    put(tmp_path, {"a-class.json": b"[]", "sub/-mask.json": b"[[1]]", "-mask.json": b"[[1]]"})
    with pytest.raises(DataError, match=r"not a \*-mask.json file below"):
        list(reader_of(tmp_path).inputs())


def test_a_matrix_may_be_laid_out_in_any_way(tmp_path):
    for indent in (None, 0, 3):
        raw = json.dumps([[10, 2], [0, 305]], indent=indent).encode() + b"\r\n"
        assert matrix_of(raw, "x").tolist() == [[10, 2], [0, 305]]


def test_as_many_elements_as_a_page_may_have_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(label_maps, "MAX_IDS", 3)
    assert read(tmp_path, page())[1] == [("label_map_ids", "sub/a", "", 0)]


def test_more_cells_than_an_image_has_pixels_are_refused(monkeypatch):
    monkeypatch.setattr("pipelines.ingestion.pixelweb.masks.MAX_PIXELS", 3)
    with pytest.raises(DataError, match="2x2 numbers, expected at most 3"):
        matrix_of(b"[[1,2],[3,4]]", "x")


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.one_of(st.integers(-2, 12), st.sampled_from([None, 1.5, "1", 10**9, 10**9 - 1])),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=12,
    )
)
def test_any_json_is_the_matrix_that_python_reads_or_none(value):
    rows = value if isinstance(value, list) else []
    is_matrix = (
        bool(rows)
        and all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows)
        and all(type(cell) is int and 0 <= cell < 10**9 for row in rows for cell in row)
    )
    try:
        assert matrix_of(json.dumps(value).encode(), "x").tolist() == value and is_matrix
    except DataError:
        assert not is_matrix


@pytest.mark.slow
@pytest.mark.numerics
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_of_any_bytes_are_read_or_rejected(tmp_path, data):
    files = page()
    for name in ("sub/a-mask.json", "sub/a-class.json"):
        raw = bytearray(files[name])
        for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
            raw[place] = data.draw(st.integers(0, 255))
        files[name] = bytes(raw[: data.draw(st.integers(len(raw) - 3, len(raw)))])
    rows, told = read(tmp_path, files)
    assert len(rows) + len([one for one in told if one[0] != "unknown_category"]) == 1


# ---------------------------------------------------------------- the synthetic corpus


WORLD = WorldConfig.square(48)


def synthetic(root: str) -> tuple[ShapesConfig, Reader]:
    config = ShapesConfig(out=root, format="pixelweb", num_images=6, seed=4, world=WORLD)
    write_shapes(config)
    return config, reader_of(f"{root}/train")


def test_the_synthetic_corpus_is_read_back_bit_for_bit(tmp_path):
    config, reader = synthetic(str(tmp_path))
    rows, rejects = read_all(reader)
    assert rejects == [] and len(rows) == config.num_images
    for row in rows:
        scene = make_scene(config.seed, int(row["image_id"]) - 1, config.world)
        ground = ~np.any([shape.mask for shape in scene.objects], axis=0)
        expected = {"1": (masks.encode(ground), "html", ["void"])}
        for number, shape in enumerate(scene.objects, start=2):
            expected[str(number)] = (masks.encode(shape.mask), shape.kind, [])
        assert found_in(row) == expected
        assert read_size_hw(row["image_uri"]) == (row["height"], row["width"])


@pytest.mark.slow
def test_a_corpus_on_s3_is_read_as_on_a_disk(tmp_path, bucket):
    _, there = synthetic(f"{bucket}/pixelweb")
    _, here = synthetic(str(tmp_path))
    inputs = inputs_of(there)
    assert inputs == inputs_of(here)
    assert there.witness() == here.witness() and there.witness(inputs) == here.witness(inputs)
    found, expected = read_all(there), read_all(here)
    for row in found[0]:
        row["image_uri"] = row["image_uri"].replace(f"{bucket}/pixelweb", str(tmp_path))
    assert found == expected
    storage.delete(f"{bucket}/pixelweb/train/000000000001-class.json")
    assert [one["reason"] for one in read_all(there)[1]] == ["classes_missing"]
