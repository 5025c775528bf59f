"""What a LabelMe shape becomes, and why some become none."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok import masks
from tests.folders import (
    HEIGHT,
    MASK,
    PICTURE,
    POINTS,
    SMALL,
    SQUARE,
    SQUARE_RLE,
    WIDTH,
    A,
    labelme,
    mask_shape,
    only_row,
    png,
    put,
    reader_of,
    rejected,
    shape,
)
from tests.readers import ANY, build_reader, read_all


def labelme_row(tmp_path: Path, *shapes: Any, **fields: Any) -> dict[str, Any]:
    put(tmp_path, {"images/a.jpg": PICTURE, "json/a.json": labelme(*shapes, **fields)})
    return only_row(reader_of("labelme", tmp_path))


def test_polygon_rectangle_and_mask_of_the_same_square_are_equal(tmp_path):
    part = png(np.ones((6, 8), np.uint8))
    row = labelme_row(
        tmp_path, shape(), shape([[12, 9], [4, 3]], "rectangle"), mask_shape(part, [[4, 3], [11, 8]])
    )
    assert [mask["rle"] for mask in row["masks"]] == [SQUARE_RLE] * 3
    assert [mask["mask_id"] for mask in row["masks"]] == ["1", "2", "3"]


def test_a_circle_is_round(tmp_path):
    row = labelme_row(tmp_path, shape([[15, 10], [15, 18]], "circle"))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    circle = (x - 15) ** 2 + (y - 10) ** 2 <= 64
    found = masks.decode(row["masks"][0]["rle"], height=HEIGHT, width=WIDTH)
    assert masks.iou(found, circle) > 0.97


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_mask_shape_lies_where_its_points_say(data):
    from pipelines.ingestion.painting import placed

    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    size = data.draw(st.integers(1, height - y0)), data.draw(st.integers(1, width - x0))
    part = np.array(
        data.draw(st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]))
    )
    whole = np.zeros((height, width), bool)
    whole[y0 : y0 + size[0], x0 : x0 + size[1]] = part.reshape(size)
    assert placed(part.reshape(size), x0, y0, height, width)["counts"] == masks.encode(whole)


def test_shapes_of_a_group_and_label_are_one_object(tmp_path):
    part = png(np.ones((2, 2), np.uint8))
    other = [[20, 12], [24, 12], [24, 16], [20, 16]]
    row = labelme_row(
        tmp_path,
        shape(group_id=1, description="left"),
        shape(other, group_id=1, label="lid"),
        mask_shape(part, [[26, 3], [27, 4]], group_id=1),
        shape(other, group_id=2, flags={"void": True}),
        shape(other, label="__ignore__"),
    )
    both = SQUARE.copy()
    both[3:5, 26:28] = True
    assert [(m["mask_id"], m["label"], m["flags"]) for m in row["masks"]] == [
        ("1", "box", []),
        ("2", "lid", []),
        ("4", "box", ["void"]),
        ("5", "__ignore__", ["void"]),
    ]
    assert row["masks"][0]["rle"] == masks.encode(both)
    assert [(made["text"], made["mask_ids"]) for made in row["annotations"]] == [("left", ["1"])]


@pytest.mark.parametrize(
    "name", ["a.jpg", "..\\images\\a.jpg", "C:\\Users\\me\\a.jpg", "/home/me/images/a.jpg", "./../x/a.jpg"]
)
def test_only_the_end_of_a_name_counts(tmp_path, name):
    row = labelme_row(tmp_path, shape(), image=name)
    assert row["image_uri"] == f"{tmp_path}/images/a.jpg"


def test_an_image_is_found_in_the_folder_of_its_file_or_that_of_its_name(tmp_path):
    put(tmp_path, {"images/x/a.jpg": PICTURE, "images/y/b.jpg": PICTURE, "images/y/a.jpg": PICTURE})
    put(
        tmp_path, {"json/x/a.json": labelme(shape()), "json/one.json": labelme(shape(), image="..\\y\\b.jpg")}
    )
    rows, rejects = read_all(reader_of("labelme", tmp_path))
    assert rejects == []
    assert {row["image_id"]: row["image_uri"].removeprefix(f"{tmp_path}/images/") for row in rows} == {
        "one": "y/b.jpg",
        "x/a": "x/a.jpg",
    }


def test_images_may_lie_in_a_part_of_the_folder_of_the_files(tmp_path):
    put(tmp_path, {"a.jpg": PICTURE, "b/b.jpg": PICTURE})
    put(tmp_path, {"a.json": labelme(image="b\\b.jpg"), "b/b.json": labelme(image="b.jpg")})
    reader = build_reader("labelme", source=str(tmp_path), images=f"{tmp_path}/b")
    assert [row["image_id"] for row in read_all(reader)[0]] == ["a", "b/b"]


def test_a_file_that_does_not_state_the_size_has_that_of_its_image(tmp_path):
    row = labelme_row(tmp_path, shape(), imageHeight=None, imageWidth=None)
    assert (row["height"], row["width"]) == (HEIGHT, WIDTH) and row["masks"][0]["rle"] == SQUARE_RLE


def test_a_point_of_a_group_is_an_object_of_its_own(tmp_path):
    point = shape([[3, 4]], "point", group_id=1)
    put(tmp_path, {**A, "json/a.json": labelme(shape(group_id=1), point)})
    (row,), rejects = read_all(reader_of("labelme", tmp_path))
    assert not rejects and [(mask["rle"], mask["flags"]) for mask in row["masks"]] == [
        (SQUARE_RLE, []),
        (None, ["point_only"]),
    ]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (7, "annotation_type"),
        (shape(kind="line", points=[[1, 2], [3, 4]]), "shape_type"),
        (shape(kind="line"), "shape_type"),
        (shape(kind=["polygon"]), "shape_type"),
        (shape(label=["a"]), "label"),
        (shape(group_id=[1]), "group_id"),
        (shape([]), "points"),
        (shape("x"), "points"),
        (shape([[1, 2], [3]]), "points"),
        (shape([[1, 2], [3, 4], [5, float("nan")]]), "points"),
        (shape([[1, 2], [3, 4], [5, 1e30]]), "points"),
        (shape([[1, 2], [3, True], [5, 6]]), "points"),
        (shape([[1, 2], [3, 4]]), "polygon_invalid"),
        (shape([[90, 90], [95, 90], [95, 95]]), "polygon_outside"),
        (shape([[1, 1], [2, 2], [3, 3]]), "polygon_collinear"),
        (shape([[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]), "polygon_normalised"),
        (shape(POINTS, "rectangle"), "points"),
        (shape([[8e6, 8e6], [-8e6, -8e6]], "circle"), "too_large"),
        (shape([[4, 3], [11, 8]], "mask"), "mask_file_format"),
        (shape([[4, 3], [11, 8]], "mask", mask="?"), "mask_base64"),
        (mask_shape(MASK[:-30], [[0, 0], [WIDTH - 1, HEIGHT - 1]]), "mask_file_truncated"),
        (mask_shape(MASK, [[0, 0], [WIDTH, HEIGHT]]), "mask_box"),
        (mask_shape(MASK, [[1, 0], [WIDTH, HEIGHT - 1]]), "mask_box"),
        (mask_shape(MASK, [[-1, 0], [WIDTH - 2, HEIGHT - 1]]), "mask_box"),
    ],
)
def test_a_shape_that_cannot_be_used_leaves_the_others(tmp_path, entry, reason):
    put(tmp_path, {**A, "json/a.json": labelme(shape(), entry)})
    reader = reader_of("labelme", tmp_path)
    (row,), _ = read_all(reader)
    assert [mask["rle"] for mask in row["masks"]] == [SQUARE_RLE]
    assert rejected(reader) == [("a", "2", reason, 1)]


def test_a_part_of_two_corners_is_told_and_a_bad_text_spoils_no_mask(tmp_path):
    entries = [shape(group_id=1), shape([[1, 2]], group_id=1), shape(description=5)]
    put(tmp_path, {**A, "json/a.json": labelme(*entries)})
    assert rejected(reader_of("labelme", tmp_path)) == [
        ("a", "1", "polygon_part", 0),
        ("a", "annotation 3", "annotation_text", 0),
    ]


NUMBERS = st.sampled_from(
    [0, 3, 4.5, 12, -1, 1e9, 1e30, 10**400, float("nan"), float("inf"), None, "x", True, []]
)
LEAVES = st.none() | st.booleans() | st.integers(-3, 300) | st.text(max_size=3) | NUMBERS
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from(["a", "", "__ignore__", "\ud800", 5, None, []]),
        "points": st.lists(st.lists(NUMBERS, max_size=3), max_size=5) | st.just(POINTS) | LEAVES,
        "shape_type": st.sampled_from(["polygon", "rectangle", "circle", "mask", "point", None, 4]),
        "group_id": st.sampled_from([None, 1, "g", 1.5, []]),
        "mask": st.sampled_from(
            [base64.b64encode(MASK).decode(), "", "%", None, 7, base64.b64encode(SMALL).decode()]
        ),
        "flags": st.sampled_from([{}, {"void": True}, {"crowd": True}, None, []]),
        "description": st.sampled_from(["", "text", "\ud800", 4, None]),
    },
)


@ANY
@given(
    shapes=st.lists(ENTRIES | LEAVES, max_size=4),
    image=st.sampled_from(["a.jpg", "a.jpg", "", "..", "\ud800", None]),
    height=st.sampled_from([HEIGHT, HEIGHT, None, -1, 10**9]),
)
def test_any_labelme_file_gives_masks_or_rejects(tmp_path_factory, shapes, image, height):
    root = tmp_path_factory.mktemp("any")
    put(root, {**A, "json/a.json": labelme(*shapes, image=image, imageHeight=height)})
    rows, rejects = read_all(reader_of("labelme", root))
    assert len(rows) + sum(entry["mask_id"] is None for entry in rejects) == 1
