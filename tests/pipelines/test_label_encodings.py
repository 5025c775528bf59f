"""What the pixels of label maps mean in each encoding, their images and names, and parts of ADE20K."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.ingestion.label_encodings import CITYSCAPES_CLASSES
from pipelines.ingestion.reader import Reader
from samtok import masks
from tests.label_maps import (
    covers,
    found_in,
    picture,
    reader_of,
    reasons,
    regions,
    save,
    write_cityscapes,
)
from tests.readers import read_all


def test_sceneparsing_has_classes_from_1_and_what_is_0_is_void(tmp_path):
    values = save(tmp_path / "maps" / "training" / "ADE_train_00000001.png", regions(1, 150, 7, 7))
    picture(tmp_path / "images" / "training" / "ADE_train_00000001.jpg")
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11664\t1172\t1\twall\n7\t0.01\t9\t8\t0\tbed \n"
        "150\t0.0002\t40\t4\t0\tflag\n"
    )
    (row,), rejects = read_all(
        reader_of(tmp_path, "sceneparsing", legend=f"{tmp_path}/objectInfo150.txt", split="train")
    )
    assert not rejects and covers(row)
    assert found_in(row) == {
        "0": (masks.encode(values == 0), None, ["void"]),
        "1": (masks.encode(values == 1), "wall", []),
        "7": (masks.encode(values == 7), "bed", []),
        "150": (masks.encode(values == 150), "flag", []),
    }
    assert row["image_id"] == "training/ADE_train_00000001"
    assert row["image_uri"] == f"{tmp_path}/images/training/ADE_train_00000001.jpg"


def write_ade(folder: Path, stem: str = "a/ADE_train_00000001") -> np.ndarray:
    """Class 312 (R 10, G 56) as two instances of B 35 and 120 and one without B; class 3 with B 200; 0."""
    values = regions([10, 56, 35], [10, 56, 120], [12, 56, 0], [0, 3, 200], [0, 0, 90])
    values[0, 0] = [19, 56, 35]  # R is of tens
    save(folder / "maps" / f"{stem}_seg.png", values)
    picture(folder / "maps" / f"{stem}.jpg")
    return values


def describe_ade(folder: Path, stem: str, objects: Any, encoding: str = "utf-8") -> None:
    text = json.dumps({"annotation": {"object": objects}}, ensure_ascii=False)
    (folder / "maps" / f"{stem}.json").write_bytes(text.encode(encoding))


def ade_reader(folder: Path, encoding: str = "ade20k", **options: Any) -> Reader:
    return reader_of(folder, encoding, images=f"{folder}/maps", **options)


ADE_OBJECTS = [
    {"id": 0, "name": "café", "name_ndx": 312, "parts": {"part_level": 0, "ispartof": []}},
    {"id": 1, "name": [], "name_ndx": 9},
    {"id": 2, "name": "door", "name_ndx": 3},
    7,
]


def test_full_ade20k_has_a_mask_per_class_and_the_names_beside_it(tmp_path):
    values = write_ade(tmp_path)
    describe_ade(tmp_path, "a/ADE_train_00000001", ADE_OBJECTS, "latin1")
    (row,), rejects = read_all(ade_reader(tmp_path))
    cafe = (values[..., 0] >= 10) & (values[..., 1] == 56)
    door = (values[..., 0] == 0) & (values[..., 1] == 3)
    assert not rejects and covers(row)
    assert found_in(row) == {
        "0": (masks.encode(~cafe & ~door), None, ["void"]),
        "312": (masks.encode(cafe), "café", []),
        "3": (masks.encode(door), "door", []),
    }
    assert row["image_id"] == "a/ADE_train_00000001"
    assert row["image_uri"] == f"{tmp_path}/maps/a/ADE_train_00000001.jpg"


def test_full_ade20k_has_instances_by_the_rank_of_blue(tmp_path):
    values = write_ade(tmp_path)
    (row,), rejects = read_all(ade_reader(tmp_path, "ade20k_instances"))
    blue, named = values[..., 2], values[..., :2].sum(axis=-1) > 0
    assert not rejects and covers(row)
    assert found_in(row) == {
        "0": (masks.encode(~named), None, ["void"]),
        "312-0": (masks.encode(named & (blue == 0)), None, []),
        "312-1": (masks.encode(blue == 35), None, []),
        "312-3": (masks.encode(blue == 120), None, []),  # the second is 90, of what has no name
        "3-4": (masks.encode(blue == 200), None, []),
    }


def car(occluded: Any, x: Any = (), y: Any = (), level: Any = 0, number: Any = 312) -> dict[str, Any]:
    polygon = {"x": list(x), "y": list(y)}
    return {"name_ndx": number, "occluded": occluded, "polygon": polygon, "parts": {"part_level": level}}


LEFT, RIGHT = ((1, 9), (1, 20)), ((31, 39), (1, 20))  # polygons around the two instances below, with room
OCCLUDED = {
    "all objects of the class": ([car("yes"), car("yes")], {"312-1", "312-2"}),
    "the one around it": ([car("yes", *LEFT), car("no", *RIGHT)], {"312-1"}),
    "several around it": ([car("yes", *LEFT), car("yes", *LEFT), car([], *RIGHT)], {"312-1"}),
    "one of two around it": ([car("yes", *LEFT), car("no", *LEFT)], set()),
    "one whose place is unknown": ([car("yes", *LEFT), car("no")], set()),
    "an unknown place of an occluded one": ([car("yes"), car([], *RIGHT)], {"312-1"}),
    "elsewhere": ([car("yes", (20, 25), (1, 20))], set()),
    "too small": ([car("yes", (1, 9), (1, 2))], set()),
    "a part of it": ([car("yes", *LEFT, level=1), car("no", *LEFT)], set()),
    "a part only": ([car("yes", *LEFT, level=1)], set()),
    "of no level": ([car("yes", *LEFT) | {"parts": []}], {"312-1"}),
    "another class": ([car("yes", number=3), car("no")], {"3-3"}),
    "another answer": ([car("YES"), car(True), car(1)], set()),
    "none": ([], set()),
    "odd polygons": ([car("yes", ("a",), (1,)), car("yes", (1e30,), (2,))], {"312-1", "312-2"}),
    "odd objects": ([7, None, {"name_ndx": "312"}, car("yes") | {"polygon": 5}], {"312-1", "312-2"}),
}


@pytest.mark.parametrize("kind", OCCLUDED)
def test_instances_of_full_ade20k_are_occluded_where_their_object_is_for_certain(tmp_path, kind):
    objects, expected = OCCLUDED[kind]
    values = np.zeros((20, 40, 3), np.int64)
    values[4:16, 2:7] = [10, 56, 35]
    values[4:16, 32:37] = [10, 56, 120]
    values[0, 20] = [10, 56, 0]  # of no instance: several objects may be in it
    values[18, 12:20] = [0, 3, 200]
    save(tmp_path / "maps" / "b_seg.png", values)
    Image.new("RGB", (40, 20)).save(tmp_path / "maps" / "b.jpg")
    describe_ade(tmp_path, "b", objects)
    (row,), rejects = read_all(ade_reader(tmp_path, "ade20k_instances"))
    flagged = {mask["mask_id"] for mask in row["masks"] if "occluded" in mask["flags"]}
    assert not rejects and flagged == expected
    (tmp_path / "names.json").write_text(json.dumps({"312": "car", "3": "door"}))
    (again,), _ = read_all(ade_reader(tmp_path, "ade20k_instances", legend=f"{tmp_path}/names.json"))
    assert [mask["flags"] for mask in again["masks"]] == [mask["flags"] for mask in row["masks"]]
    (classes,), _ = read_all(ade_reader(tmp_path, "ade20k"))
    assert not any("occluded" in mask["flags"] for mask in classes["masks"])


def test_parts_are_occluded_as_the_objects_of_their_level_say(tmp_path):
    write_ade(tmp_path, "b")
    save(tmp_path / "maps" / "b_parts_1.png", regions([10, 57, 9]))
    save(tmp_path / "maps" / "b_parts_2.png", regions([10, 57, 9]))
    describe_ade(tmp_path, "b", [car("yes", level=1, number=313), car("no", level=2, number=313)])
    (row,), _ = read_all(ade_reader(tmp_path, "ade20k_instances", part_levels=2))
    flagged = {mask["mask_id"] for mask in row["masks"] if mask["flags"] == ["occluded"]}
    assert flagged == {"part1-313-1"}


def test_parts_are_read_by_option_only_as_far_as_an_image_has_them(tmp_path):
    write_ade(tmp_path)
    write_ade(tmp_path, "b")
    first = save(tmp_path / "maps" / "a" / "ADE_train_00000001_parts_1.png", regions([10, 57, 9], [0, 0, 0]))
    save(tmp_path / "maps" / "a" / "ADE_train_00000001_parts_2.png", regions([20, 1, 9], [0, 3, 0]))
    describe_ade(tmp_path, "a/ADE_train_00000001", [{"name": "handle", "name_ndx": 313}])
    whole = read_all(ade_reader(tmp_path))[0]
    assert [len(row["masks"]) for row in whole] == [3, 3]
    for encoding, names in (
        ("ade20k", ["part1-313", "part2-513", "part2-3"]),
        ("ade20k_instances", ["part1-313-1", "part2-513-1", "part2-3-0"]),
    ):
        rows, _ = read_all(ade_reader(tmp_path, encoding, part_levels=3))
        parts = {key: one for key, one in found_in(rows[0]).items() if key.startswith("part")}
        assert set(parts) == set(names) and "part1" not in str(found_in(rows[1]))
        assert parts[names[0]] == (masks.encode(first[..., 1] == 57), "handle", [])
    rows, _ = read_all(ade_reader(tmp_path, part_levels=1))
    assert [key for key in found_in(rows[0]) if key.startswith("part")] == ["part1-313"]


def test_a_part_map_at_fault_is_told_and_the_others_stay(tmp_path):
    write_ade(tmp_path, "b")
    save(tmp_path / "maps" / "b_parts_1.png", regions([10, 57, 9])[:-1])
    save(tmp_path / "maps" / "b_parts_2.png", regions([20, 1, 9]))
    (row,), rejects = read_all(ade_reader(tmp_path, part_levels=2))
    assert reasons(rejects) == [("label_map_size", "b", "parts 1", 0)]
    assert "part2-513" in found_in(row) and len(row["masks"]) == 4


@pytest.mark.parametrize(
    ("raw", "reason"), [(b"{", "json"), (b"[]", "legend"), (b'{"annotation": {"object": 5}}', "legend")]
)
def test_names_beside_a_map_that_cannot_be_read_are_told_and_its_masks_stay(tmp_path, raw, reason):
    write_ade(tmp_path, "b")
    (tmp_path / "maps" / "b.json").write_bytes(raw)
    (row,), rejects = read_all(ade_reader(tmp_path))
    assert reasons(rejects) == [(reason, "b", "labels", 0)] and len(row["masks"]) == 3


def test_ade_instances_have_a_category_in_red_and_a_number_in_green(tmp_path):
    values = save(tmp_path / "maps" / "a.png", regions([100, 1, 0], [100, 2, 9], [1, 3, 0], [7, 0, 0]))
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "names.json").write_text(json.dumps({"1": "bed", "100": "flag"}))
    (row,), rejects = read_all(reader_of(tmp_path, "ade_instances", legend=f"{tmp_path}/names.json"))
    green = values[..., 1]
    assert not rejects and covers(row)
    assert found_in(row) == {
        "0": (masks.encode(green == 0), None, ["void"]),
        "100-1": (masks.encode(green == 1), "flag", []),
        "100-2": (masks.encode(green == 2), "flag", []),
        "1-3": (masks.encode(green == 3), "bed", []),
    }


def test_cityscapes_has_instances_groups_and_classes_in_one_map_of_16_bits(tmp_path):
    values = write_cityscapes(tmp_path)
    (row,), rejects = read_all(reader_of(tmp_path, "cityscapes"))
    assert covers(row) and found_in(row) == {
        "26001": (masks.encode(values == 26001), "car", []),
        "26": (masks.encode(values == 26), "car", ["crowd"]),
        "7": (masks.encode(values == 7), "road", []),
        "3": (masks.encode(values == 3), "out of roi", ["void"]),
        "0": (masks.encode(values == 0), "unlabeled", ["void"]),
        "24000": (masks.encode(values == 24000), "person", []),
        "40": (masks.encode(values == 40), None, []),
    }
    name = "aachen/aachen_000000_000019"
    assert reasons(rejects) == [("unknown_category", name, "40", 0)] and row["image_id"] == name
    assert row["image_uri"] == f"{tmp_path}/images/{name}_leftImg8bit.png"


def test_label_ids_of_cityscapes_are_classes_and_no_groups(tmp_path):
    values = write_cityscapes(tmp_path, of="gtCoarse")
    (row,), _ = read_all(reader_of(tmp_path, "cityscapes_labels"))
    cars = (values == 26) | (values == 26001)
    assert covers(row) and found_in(row)["26"] == (masks.encode(cars), "car", [])
    assert found_in(row)["3"][2] == ["void"] and len(CITYSCAPES_CLASSES) == 34


def test_cocostuff_has_classes_from_0_and_255_is_void(tmp_path):
    values = np.where(regions(1, 182) == 0, 255, regions(1, 182) - 1)
    palette = Image.fromarray(values.astype(np.uint8), "P")  # pixel maps are indexed images
    palette.putpalette(list(range(255, -1, -1)) * 3)
    (tmp_path / "maps" / "val2017").mkdir(parents=True)
    palette.save(tmp_path / "maps" / "val2017" / "000000000139.png")
    save(tmp_path / "maps" / "val2017" / "000000000139_labelTrainIds.png", values)
    picture(tmp_path / "images" / "val2017" / "000000000139.jpg")
    (tmp_path / "labels.txt").write_text("0: unlabeled\n1: person\n182: wood\n")
    (row,), rejects = read_all(reader_of(tmp_path, "cocostuff", legend=f"{tmp_path}/labels.txt"))
    assert not rejects and covers(row) and row["image_id"] == "val2017/000000000139"
    assert found_in(row) == {
        "0": (masks.encode(values == 0), "person", []),
        "181": (masks.encode(values == 181), "wood", []),
        "255": (masks.encode(values == 255), None, ["void"]),
    }


def test_training_ids_of_both_datasets_find_the_images_of_theirs(tmp_path):
    values = np.where(regions(1, 19) == 0, 255, regions(1, 19) - 1)
    save(tmp_path / "maps" / "000000000139_labelTrainIds.png", values)
    save(tmp_path / "maps" / "000000000139.png", values)
    picture(tmp_path / "images" / "000000000139.jpg")
    stem = "aachen/aachen_000000_000019"
    save(tmp_path / "maps" / f"{stem}_gtFine_labelTrainIds.png", values)
    picture(tmp_path / "images" / f"{stem}_leftImg8bit.png")
    (tmp_path / "names.json").write_text(json.dumps(["road", *(f"class {i}" for i in range(1, 19))]))
    rows, rejects = read_all(reader_of(tmp_path, "train_ids", legend=f"{tmp_path}/names.json"))
    places = [f"{tmp_path}/images/000000000139.jpg", f"{tmp_path}/images/{stem}_leftImg8bit.png"]
    assert not rejects and [row["image_uri"] for row in rows] == places
    for row in rows:
        assert covers(row) and found_in(row)["0"] == (masks.encode(values == 0), "road", [])
        assert found_in(row)["18"][1:] == ("class 18", []) and found_in(row)["255"][1:] == (None, ["void"])


def test_maps_of_the_other_kind_of_pixels_are_no_maps_of_an_encoding(tmp_path):
    for kind, shape in (("gray", (6, 8)), ("rgb", (6, 8, 3))):
        save(tmp_path / "maps" / f"{kind}.png", np.ones(shape))
        save(tmp_path / "maps" / f"{kind}_seg.png", np.ones(shape))
        for name in (kind, f"{kind}_seg"):
            picture(tmp_path / "images" / f"{name}.jpg")
    for encoding, lost in (("sceneparsing", ["rgb", "rgb_seg"]), ("ade_instances", ["gray", "gray_seg"])):
        assert reasons(read_all(reader_of(tmp_path, encoding))[1]) == [
            ("label_mode", one, "", 0) for one in lost
        ]
    assert reasons(read_all(reader_of(tmp_path, "ade20k"))[1]) == [("label_mode", "gray", "", 0)]
