"""COCONut as Parquet files: panoptic maps in rows, images in folders beside them."""

import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import storage
from pipelines.ingestion import coco_categories
from pipelines.ingestion.reader import Input, Reader
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import Scene, WorldConfig, make_scene
from tests.label_maps import found_in, inputs_of, reasons
from tests.readers import build_reader, read_all

HEIGHT, WIDTH = 6, 8
IDS = np.zeros((HEIGHT, WIDTH), np.int64)
IDS[1:3, 1:4] = 300  # needs green
IDS[4, 2:7] = 70_000  # needs blue
IDS[0, 7] = 5
SEGMENTS = [
    {"id": 300, "category_id": 17, "iscrowd": 0, "isthing": 1, "area": 6},
    {"id": 70_000, "category_id": 199, "iscrowd": 0, "isthing": 0, "area": 5},
    {"id": 5, "category_id": 1, "iscrowd": 1, "isthing": 1, "area": 1},
]
FOLDERS = ("train2017", "unlabeled2017")


def png(ids: np.ndarray = IDS) -> bytes:
    buffer = io.BytesIO()
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(channels).save(buffer, "PNG")
    return buffer.getvalue()


def row(number: int = 7, segments: Any = SEGMENTS, data: Any = None, **image: Any) -> dict[str, Any]:
    name = f"{number:012d}"
    about = {"file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH, "id": number, **image}
    listed = {"file_name": f"{name}.png", "image_id": number, "segments_info": segments}
    mask = {"bytes": png() if data is None else data, "path": f"{name}.png"}
    return {"mask": mask, "segments_info": listed, "image_info": about}


def write(folder: Path, *rows: dict[str, Any], name: str = "data/train-00000-of-00001.parquet") -> Reader:
    """Writes a corpus in row groups of two; images of even numbers are in the second folder."""
    path = folder / "coconut_b" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)
    for number in range(10):
        place = folder / FOLDERS[number % 2 == 0] / f"{number:012d}.jpg"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(place)
    return reader_of(folder)


def reader_of(folder: Path | str, **options: Any) -> Reader:
    place = {"source": f"{folder}/coconut_b", "images": str(folder), "image_folders": FOLDERS}
    return build_reader("coconut_parquet", **{**place, "dataset": "c", **options})


def test_segments_become_masks_with_the_names_of_coco_and_flags(tmp_path):
    rows, rejects = read_all(write(tmp_path, row(7), row(8)))
    assert not rejects and [one["image_id"] for one in rows] == [
        f"data/train-00000-of-00001-{number:08d}" for number in range(2)
    ]
    for one in rows:
        assert found_in(one) == {
            "300": (masks.encode(IDS == 300), "cat", []),
            "70000": (masks.encode(IDS == 70_000), "wall-other-merged", []),
            "5": (masks.encode(IDS == 5), "person", ["crowd"]),
        }
        assert (one["height"], one["width"]) == (HEIGHT, WIDTH)
    places = [f"{tmp_path}/train2017/000000000007.jpg", f"{tmp_path}/unlabeled2017/000000000008.jpg"]
    assert [one["image_uri"] for one in rows] == places


def test_coco_has_133_panoptic_categories():
    numbers = [int(number) for number in coco_categories.PANOPTIC]
    assert len(numbers) == len(set(coco_categories.PANOPTIC.values())) == 133
    assert numbers == sorted(numbers) and sum(number <= 90 for number in numbers) == 80
    assert all(" ".join(name.split()) == name for name in coco_categories.PANOPTIC.values())
    assert not any("- " in name for name in coco_categories.PANOPTIC.values())
    assert coco_categories.PANOPTIC["13"] == "stop sign" and coco_categories.PANOPTIC["200"] == "rug-merged"


def test_a_legend_names_the_categories_instead_and_is_part_of_the_corpus(tmp_path):
    write(tmp_path, row())
    (tmp_path / "names.json").write_text(json.dumps({"17": "kitten", "1": "human"}))
    reader = reader_of(tmp_path, legend=f"{tmp_path}/names.json")
    (one,), rejects = read_all(reader)
    assert [mask["label"] for mask in one["masks"]] == ["human", "kitten", None]
    assert reasons(rejects) == [("unknown_category", one["image_id"], "70000", 0)]
    assert set(reader.witness()) == {"names.json", "data/train-00000-of-00001.parquet"}
    (tmp_path / "names.json").write_text("[]")
    with pytest.raises(DataError, match="no class"):
        list(reader.inputs())


def test_an_image_whose_size_is_not_stated_has_that_of_its_map(tmp_path):
    sizeless = row()
    del sizeless["image_info"]["height"], sizeless["image_info"]["width"]
    (one,), rejects = read_all(write(tmp_path, sizeless))
    assert not rejects and (one["height"], one["width"], len(one["masks"])) == (HEIGHT, WIDTH, 3)


def test_gray_maps_and_segments_without_an_area_are_read(tmp_path):
    buffer = io.BytesIO()
    small = np.where(IDS == 300, 2, IDS % 7).astype(np.uint8)
    Image.fromarray(small).save(buffer, "PNG")
    segments = [{"id": int(one), "category_id": 1} for one in np.unique(small) if one]
    (one,), rejects = read_all(write(tmp_path, row(segments=segments, data=buffer.getvalue())))
    assert not rejects
    assert {mask["mask_id"]: mask["rle"] for mask in one["masks"]} == {
        str(segment["id"]): masks.encode(small == segment["id"]) for segment in segments
    }


# ---------------------------------------------------------------- what is wrong with rows


def changed(data: bytes) -> bytes:
    """The same PNG, with a height in its header that it has not."""
    return data[:20] + struct.pack(">I", HEIGHT + 1) + data[24:]


ROW_FAULTS: dict[str, tuple[dict[str, Any], str, int]] = {
    "a map that is cut": ({"data": png()[:-40]}, "image_truncated", 3),
    "a map with another header": ({"data": changed(png())}, "image_", 3),
    "a map that is no PNG": ({"data": b"no image"}, "image_format", 3),
    "no map": ({"data": b""}, "label_map_cell", 3),
    "a map of another size": ({"data": png(IDS.T)}, "label_map_size", 3),
    "another size of the image": ({"height": WIDTH, "width": HEIGHT}, "label_map_size", 3),
    "half a size": ({"height": None}, "image_size", 3),
    "no size": ({"height": 0}, "image_size", 3),
    "an image that is nowhere": ({"file_name": "9999.jpg"}, "missing_image", 3),
    "an image above the folder": ({"file_name": "../7.jpg"}, "unsafe_path", 3),
    "an absolute image": ({"file_name": "/etc/passwd"}, "unsafe_path", 3),
    "an image of a URL": ({"file_name": "s3://b/7.jpg"}, "unsafe_path", 3),
    "an image inside a Parquet file": ({"file_name": "a.parquet#row:1:mask"}, "unsafe_path", 3),
    "no image name": ({"file_name": None}, "image_path", 3),
    "no list of segments": ({"segments": None}, "annotation_record", 0),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_a_row_at_fault_is_lost_with_its_masks_and_no_other(tmp_path, fault):
    of_row, reason, lost = ROW_FAULTS[fault]
    rows, rejects = read_all(write(tmp_path, row(7), row(8, **of_row), row(9)))
    assert [one["image_id"][-1] for one in rows] == ["0", "2"]
    ((told, key, mask_id, count),) = reasons(rejects)
    assert (key[-1], mask_id, count) == ("1", "", lost) and told.startswith(reason)


def test_segments_at_fault_are_rejects_and_the_others_stay(tmp_path):
    segments = [
        SEGMENTS[0] | {"area": 7},
        SEGMENTS[1] | {"category_id": 12},
        {"id": 6, "category_id": 2, "iscrowd": 0, "isthing": 1, "area": 3},
        SEGMENTS[0] | {"id": None},
        SEGMENTS[0] | {"id": 0},
        None,
    ]
    (one,), rejects = read_all(write(tmp_path, row(segments=segments)))
    assert {key: about[1:] for key, about in found_in(one).items()} == {
        "6": ("bicycle", ["empty"]),  # no pixel of it
        "70000": (None, []),
    }
    key = one["image_id"]
    assert reasons(rejects) == [
        ("segment_area", key, "300", 1),
        ("segment_id", key, "#3", 1),
        ("segment_id", key, "#5", 1),
        ("segment_id", key, "0", 1),
        ("unknown_category", key, "70000", 0),
        ("unknown_segment", key, "5", 0),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [1]}, "has the columns image, expected mask, segments_info, image_info"),
        ({"mask": [1], "segments_info": [1]}, "expected mask, segments_info, image_info"),
    ],
)
def test_a_file_of_other_columns_is_refused(tmp_path, columns, message):
    (tmp_path / "coconut_b").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "coconut_b" / "a.parquet")
    with pytest.raises(DataError, match=message):
        list(reader_of(tmp_path).inputs())


def test_columns_of_other_types_are_rejects_of_their_rows(tmp_path):
    (tmp_path / "coconut_b").mkdir()
    table = pa.table({"mask": [1, 2], "segments_info": ["x", None], "image_info": [None, "y"]})
    pq.write_table(table, tmp_path / "coconut_b" / "a.parquet")
    rows, rejects = read_all(reader_of(tmp_path))
    assert not rows and [one["reason"] for one in rejects] == ["annotation_record"] * 2


def test_the_reader_of_other_parquet_files_names_this_one(tmp_path):
    write(tmp_path, row())
    with pytest.raises(DataError, match="of the reader coconut_parquet"):
        list(build_reader("parquet", source=f"{tmp_path}/coconut_b").inputs())


ANY_SEGMENT = st.fixed_dictionaries(
    {
        "id": st.sampled_from([300, 5, 70_000, 6, 0, -3, 2**40, None]),
        "category_id": st.sampled_from([1, 12, -1, None]),
        "iscrowd": st.sampled_from([0, 1, 2, None]),
        "area": st.sampled_from([6, 5, 1, -1, None]),
    }
)


@pytest.mark.slow
@pytest.mark.numerics
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), segments=st.lists(st.one_of(st.none(), ANY_SEGMENT), min_size=1, max_size=5))
def test_whatever_is_in_a_row_each_mask_is_kept_or_rejected(tmp_path, data, segments):
    raw = bytearray(png())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw) - 20, 30]))
    rows, rejects = read_all(write(tmp_path, row(7, segments, bytes(raw[:cut])), row(8)))
    kept = [len(one["masks"]) for one in rows]
    assert kept[-1] == 3 and sum(kept) + sum(one["num_masks"] for one in rejects) == 3 + len(segments)


# ---------------------------------------------------------------- whole corpora

WORLD = WorldConfig.square(48)
COUNT = 7


def scenes() -> list[Scene]:
    return [make_scene(0, number, WORLD) for number in range(COUNT)]


def scene_row(number: int, scene: Scene) -> dict[str, Any]:
    ids, segments = np.zeros(scene.size_hw, np.int64), []
    for place, thing in enumerate(scene.objects):
        one = 1 + 1000 * place
        ids[thing.mask] = one
        about = {"iscrowd": 0, "isthing": 1, "area": int(thing.mask.sum())}
        segments.append({"id": one, "category_id": 1 + place, **about})
    height, width = scene.size_hw
    return row(number, segments, png(ids), height=height, width=width)


def write_scenes(folder: Path) -> None:
    rows = [scene_row(number, scene) for number, scene in enumerate(scenes())]
    write(folder, *rows[:4], name="data/train-00000-of-00002.parquet")
    write(folder, *rows[4:], name="data/train-00001-of-00002.parquet")


def test_a_corpus_is_read_back_bit_for_bit_and_listed_in_parts(tmp_path):
    write_scenes(tmp_path)
    reader = pickle.loads(pickle.dumps(reader_of(tmp_path)))
    rows, rejects = read_all(reader)
    assert not rejects and len(rows) == COUNT
    for one, scene in zip(rows, scenes(), strict=True):
        expected = {str(1 + 1000 * place): thing.mask for place, thing in enumerate(scene.objects)}
        size = {"height": one["height"], "width": one["width"]}
        found = {mask["mask_id"]: masks.decode(mask["rle"], **size) for mask in one["masks"]}
        assert found.keys() == expected.keys()
        for name, mask in expected.items():
            np.testing.assert_array_equal(found[name], mask)
    keys = [item.key for item in inputs_of(reader)]
    assert keys == sorted(keys) and len(reader.parts()) == 2 + 2
    apart = [
        item.key for part in reader.parts() for item in reader.inputs_of(part) if isinstance(item, Input)
    ]
    assert apart == keys and reader.head(3).more


def test_parquet_and_panoptic_json_give_the_same_masks(tmp_path):
    """As the authors' own converter writes the second out of the first."""
    write_scenes(tmp_path)
    rows = [scene_row(number, scene) for number, scene in enumerate(scenes())]
    (tmp_path / "coconut").mkdir()
    for one in rows:
        (tmp_path / "coconut" / one["segments_info"]["file_name"]).write_bytes(one["mask"]["bytes"])
    body = {
        "images": [one["image_info"] for one in rows],
        "annotations": [one["segments_info"] for one in rows],
        "categories": [{"id": int(key), "name": name} for key, name in coco_categories.PANOPTIC.items()],
    }
    (tmp_path / "coconut.json").write_text(json.dumps(body))
    place = {"source": f"{tmp_path}/coconut.json", "images": str(tmp_path), "image_folders": FOLDERS}
    of_json, lost = read_all(build_reader("panoptic", **place, dataset="c"))
    of_parquet, also_lost = read_all(reader_of(tmp_path))
    assert not lost and not also_lost
    for one, other in zip(of_json, of_parquet, strict=True):
        assert {**one, "image_id": ""} == {**other, "image_id": ""}


@pytest.mark.slow
def test_a_corpus_on_s3_is_read_as_on_a_disk(tmp_path, bucket):
    write_scenes(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{bucket}/{path.relative_to(tmp_path)}", path.read_bytes())
    there, here = reader_of(bucket), reader_of(tmp_path)
    assert inputs_of(there) == inputs_of(here) and there.witness() == here.witness()
    rows, rejects = read_all(there)
    expected, _ = read_all(here)
    assert not rejects and len(rows) == COUNT
    for one, other in zip(rows, expected, strict=True):
        assert one["image_uri"].removeprefix(bucket) == other["image_uri"].removeprefix(str(tmp_path))
        assert {**one, "image_uri": ""} == {**other, "image_uri": ""}
