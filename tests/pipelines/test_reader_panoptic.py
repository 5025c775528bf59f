"""The reader of panoptic JSON: masks out of label maps, flags and labels, and that nothing is lost."""

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import storage
from pipelines.ingestion import external_sort, label_maps
from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.reader import Input, Reader
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from pipelines.ingestion.synthetic.scenes import crowds
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import WorldConfig, make_scene
from tests.label_maps import inputs_of, reasons
from tests.readers import build_reader, read_all

HEIGHT, WIDTH = 6, 8
IDS = np.zeros((HEIGHT, WIDTH), np.int64)
IDS[1:3, 1:4] = 300  # needs green
IDS[4, 2:7] = 70_000  # needs blue
IDS[0, 7] = 5
AREAS = {300: 6, 70_000: 5, 5: 1}
CATEGORIES = [{"id": 1, "name": "ring"}, {"id": 17, "name": "star"}, {"id": 200, "name": "sky"}]


def segment(identity: Any, category_id: Any = 1, **fields: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "category_id": category_id,
        "iscrowd": 0,
        "area": AREAS.get(identity, 1),
        **fields,
    }


SEGMENTS = [segment(300), segment(70_000, 200), segment(5, 17, iscrowd=1)]


def image(image_id: Any = 7, **fields: Any) -> dict[str, Any]:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "height": HEIGHT, "width": WIDTH, **fields}


def annotation(image_id: Any = 7, segments: Any = SEGMENTS, **fields: Any) -> dict[str, Any]:
    return {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments, **fields}


def map_bytes(folder: Path, ids: np.ndarray = IDS) -> bytes:
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(channels).save(folder / "made.png")
    return (folder / "made.png").read_bytes()


def write(folder: Path, images: Any, annotations: Any, categories: Any = CATEGORIES) -> Reader:
    """Writes a corpus; images 7, 8 and 9 have maps."""
    maps = folder / "panoptic_val"
    maps.mkdir(exist_ok=True)
    for one in (7, 8, 9):
        if not (maps / f"{one}.png").exists():
            (maps / f"{one}.png").write_bytes(map_bytes(folder))
    body = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic_val.json").write_text(json.dumps(body))
    return reader_of(folder)


def reader_of(folder: Path | str, **options: Any) -> Reader:
    place = {"source": f"{folder}/panoptic_val.json", "images": f"{folder}/val"}
    return build_reader("panoptic", **{**place, "dataset": "p", **options})


def test_segments_become_masks_with_the_names_of_categories_and_flags(tmp_path):
    (row,), rejects = read_all(write(tmp_path, [image()], [annotation()]))
    found = {mask["mask_id"]: (mask["rle"], mask["label"], mask["flags"]) for mask in row["masks"]}
    assert not rejects and found == {
        "300": (masks.encode(IDS == 300), "ring", []),
        "70000": (masks.encode(IDS == 70_000), "sky", []),
        "5": (masks.encode(IDS == 5), "star", ["crowd"]),
    }
    assert row["image_uri"] == f"{tmp_path}/val/7.jpg"
    assert (row["height"], row["width"]) == (HEIGHT, WIDTH)


def test_coconut_has_no_boxes_and_finds_its_images_in_several_folders(tmp_path):
    for folder, name in (("train2017", "7.jpg"), ("unlabeled2017", "8.jpg")):
        (tmp_path / "val" / folder).mkdir(parents=True)
        (tmp_path / "val" / folder / name).write_bytes(b"x")
    write(tmp_path, [image(7), image(8), image(9)], [annotation(7), annotation(8), annotation(9)])
    reader = reader_of(tmp_path, image_folders=("train2017", "unlabeled2017"))
    rows, rejects = read_all(reader)
    places = ["train2017/7.jpg", "unlabeled2017/8.jpg"]
    assert [row["image_uri"] for row in rows] == [f"{tmp_path}/val/{place}" for place in places]
    assert reasons(rejects) == [("missing_image", "9", "", 3)]


def test_the_names_that_cityscapes_own_converter_writes_are_those_of_no_file_and_found(tmp_path):
    name = "aachen_000000_000019"
    images = [image(name, file_name=f"{name}_gtFine_leftImg8bit.png")]
    reader = write(tmp_path, images, [annotation(name, file_name="7.png")])
    assert reasons(read_all(reader)[1]) == [("missing_image", name, "", 3)]
    real = tmp_path / "val" / "aachen" / f"{name}_leftImg8bit.png"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"x")
    (row,), rejects = read_all(reader)
    assert row["image_uri"] == str(real) and row["image_id"] == name and not rejects


def test_a_segment_without_pixels_is_an_empty_mask(tmp_path):
    (row,), rejects = read_all(write(tmp_path, [image()], [annotation(segments=[*SEGMENTS, segment(6)])]))
    assert not rejects
    assert [(mask["mask_id"], mask["rle"], mask["flags"]) for mask in row["masks"] if not mask["rle"]] == [
        ("6", None, ["empty"])
    ]


def test_an_image_without_an_annotation_is_a_row_without_masks(tmp_path):
    rows, rejects = read_all(write(tmp_path, [image(4), image()], [annotation()]))
    assert [(row["image_id"], len(row["masks"])) for row in rows] == [("4", 0), ("7", 3)] and not rejects


SEGMENT_FAULTS = {
    "area of another map": (segment(300, area=7), ("segment_area", "7", "300", 1)),
    "no id": (segment(None), ("segment_id", "7", "#0", 1)),
    "an id of another kind": (segment("300"), ("segment_id", "7", "300", 1)),
    "a fraction": (segment(300.0), ("segment_id", "7", "300", 1)),
    "void": (segment(0), ("segment_id", "7", "0", 1)),
    "below 0": (segment(-1), ("segment_id", "7", "-1", 1)),
    "no object": ("x", ("segment_id", "7", "#0", 1)),
    "no crowd": (segment(300, iscrowd=2), ("iscrowd", "7", "300", 1)),
    "unknown category": (segment(300, 2), ("unknown_category", "7", "300", 0)),
    "no category": (segment(300, None), ("unknown_category", "7", "300", 0)),
    "a category of another kind": (segment(300, [1]), ("unknown_category", "7", "300", 0)),
}


@pytest.mark.parametrize("fault", SEGMENT_FAULTS)
def test_a_segment_at_fault_is_one_reject_and_the_others_stay(tmp_path, fault):
    bad, expected = SEGMENT_FAULTS[fault]
    (row,), rejects = read_all(write(tmp_path, [image()], [annotation(segments=[bad, *SEGMENTS[1:]])]))
    told = [one for one in reasons(rejects) if one[0] != "unknown_segment"]
    assert told == [expected]
    assert len(row["masks"]) == 3 - expected[3]
    assert [mask["label"] for mask in row["masks"] if mask["mask_id"] == "300"] in ([], [None])


def test_segments_that_repeat_an_id_and_pixels_of_no_segment_are_told(tmp_path):
    reader = write(tmp_path, [image()], [annotation(segments=[segment(300), segment(300, 17)])])
    (row,), rejects = read_all(reader)
    assert row["masks"] == [] and reasons(rejects) == [
        ("segment_id", "7", "#0", 1),
        ("segment_id", "7", "#1", 1),
        ("unknown_segment", "7", "5", 0),
        ("unknown_segment", "7", "70000", 0),
    ]


RECORD_FAULTS = {
    "another size of the image": ({"height": WIDTH, "width": HEIGHT}, {}, "label_map_size"),
    "no size": ({"height": None}, {}, "image_size"),
    "no image name": ({"file_name": None}, {}, "image_path"),
    "an image above the folder": ({"file_name": "../7.jpg"}, {}, "unsafe_path"),
    "an absolute image": ({"file_name": "/etc/passwd"}, {}, "unsafe_path"),
    "no map name": ({}, {"file_name": 7}, "image_path"),
    "a map above the folder": ({}, {"file_name": "../made.png"}, "unsafe_path"),
    "a map of a URL": ({}, {"file_name": "s3://b/made.png"}, "unsafe_path"),
    "a map that a link leads to": ({}, {"file_name": "link.png"}, "unsafe_path"),
    "no such map": ({}, {"file_name": "6.png"}, "label_map_missing"),
    "an empty map": ({}, {"file_name": "empty.png"}, "label_map_empty"),
    "a map that is no image": ({}, {"file_name": "text.png"}, "image_format"),
    "a map that is cut": ({}, {"file_name": "cut.png"}, "image_truncated"),
    "a map with alpha": ({}, {"file_name": "alpha.png"}, "label_mode"),
    "a JPEG": ({}, {"file_name": "photo.png"}, "image_format"),
    "a map of another size": ({}, {"file_name": "turned.png"}, "label_map_size"),
    "a photograph": ({"height": 110, "width": 110}, {"file_name": "noise.png"}, "label_map_ids"),
}


def write_bad_maps(folder: Path) -> None:
    maps = folder / "panoptic_val"
    maps.mkdir(exist_ok=True)
    (folder / "outside").mkdir()
    (folder / "outside" / "7.png").write_bytes(map_bytes(folder))
    (maps / "link.png").symlink_to(folder / "outside" / "7.png")
    (maps / "empty.png").write_bytes(b"")
    (maps / "text.png").write_bytes(b"no image")
    noise = np.random.default_rng(0).integers(1, 2**24, (110, 110))
    (maps / "noise.png").write_bytes(map_bytes(folder, noise))
    (maps / "cut.png").write_bytes((maps / "noise.png").read_bytes()[:900])
    (maps / "turned.png").write_bytes(map_bytes(folder, IDS.T))
    Image.new("RGBA", (WIDTH, HEIGHT)).save(maps / "alpha.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(maps / "photo.png", "JPEG")


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("fault", RECORD_FAULTS)
def test_a_record_at_fault_is_lost_with_its_masks_and_no_other(tmp_path, fault):
    write_bad_maps(tmp_path)
    of_image, of_annotation, reason = RECORD_FAULTS[fault]
    reader = write(
        tmp_path, [image(7, **of_image), image(8)], [annotation(7, **of_annotation), annotation(8)]
    )
    rows, rejects = read_all(reader)
    assert [row["image_id"] for row in rows] == ["8"] and reasons(rejects) == [(reason, "7", "", 3)]


def test_links_may_lead_to_a_folder_that_was_named(tmp_path):
    write_bad_maps(tmp_path)
    write(tmp_path, [image()], [annotation(file_name="link.png")])
    rows, rejects = read_all(reader_of(tmp_path, link_root=(str(tmp_path / "outside"),)))
    assert len(rows[0]["masks"]) == 3 and not rejects


def test_images_and_annotations_that_are_repeated_or_belong_nowhere_are_rejected(tmp_path):
    images = [image(7), image(7), image(8), image(8, width=9), image(9), image(None), "x"]
    annotations = [annotation(7), annotation(8), annotation(9), annotation(9, segments=[]), annotation(3)]
    annotations += [annotation(7), annotation(None), annotation(7, segments=None), 5]
    rows, rejects = read_all(write(tmp_path, images, annotations))
    assert [(row["image_id"], len(row["masks"])) for row in rows] == [("7", 3), ("9", 0)]
    assert reasons(rejects) == [
        ("annotation_record", "7", "", 0),
        ("annotation_record", "?", "", 0),
        ("annotation_record", "?", "", 3),
        ("duplicate_annotation", "7", "", 3),
        ("duplicate_annotation", "9", "", 0),
        ("duplicate_annotation", "9", "", 3),
        ("duplicate_image_id", "7", "", 0),
        ("duplicate_image_id", "8", "", 0),
        ("duplicate_image_id", "8", "", 0),
        ("image_id", "#5", "", 0),
        ("image_id", "#6", "", 0),
        ("unknown_image", "3", "", 3),
        ("unknown_image", "8", "", 3),
    ]


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "cut": (b'{"images": [], "annotations": [{"image_id": 7, "segm', "is not JSON .* at byte"),
    "no UTF-8": (b'{"images": ["\xff"]}', "is not UTF-8"),
    "a list": (b'[{"segments_info": []}]', "holds a list, expected an object with the lists"),
    "instances": (b'{"images": [], "annotations": []}', "holds no categories"),
    "no list": (b'{"images": {}, "annotations": [], "categories": []}', '"images" twice or as another value'),
    "twice": (b'{"images": [], "images": [], "annotations": [], "categories": []}', '"images" twice'),
    "one id, two names": (
        b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
        "category 1 named both 'a' and 'b'",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_of_another_layout_is_refused(tmp_path, kind):
    raw, message = BAD_FILES[kind]
    (tmp_path / "panoptic_val.json").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        list(reader_of(tmp_path).inputs())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(storage.NotFoundError, match=r"panoptic_val\.json"):
        list(reader_of(tmp_path).inputs())


@pytest.mark.slow
@pytest.mark.numerics
def test_a_file_larger_than_memory_is_sorted_on_the_disk(tmp_path, monkeypatch):
    ids = [7, 8, 9] * 40
    images = [image(place, file_name="7.jpg") for place in range(len(ids))]
    annotations = [annotation(place, file_name=f"{one}.png") for place, one in enumerate(ids)]
    reader = write(tmp_path, images, annotations)
    expected = read_all(reader)
    monkeypatch.setattr(external_sort, "RUN_ROWS", 7)
    assert read_all(reader) == expected and len(expected[0]) == len(ids)


def test_maps_may_lie_elsewhere_and_are_part_of_the_corpus(tmp_path):
    reader = write(tmp_path, [image()], [annotation()])
    inputs = inputs_of(reader)
    before = reader.witness(), reader.witness(inputs)
    assert set(before[0]) == {"panoptic_val.json", "label maps"}
    assert set(before[1]) == {"panoptic_val.json", "7.png"}
    (tmp_path / "panoptic_val").rename(tmp_path / "maps")
    moved = reader_of(tmp_path, panoptic=f"{tmp_path}/maps")
    assert (moved.witness(), moved.witness(inputs)) == before
    assert len(read_all(pickle.loads(pickle.dumps(moved)))[0]) == 1
    (tmp_path / "maps" / "7.png").unlink()
    assert moved.witness() != before[0] and moved.witness(inputs)["7.png"] == "missing"


def test_a_head_has_the_first_images(tmp_path):
    reader = write(tmp_path, [image(one) for one in (9, 8, 7)], [annotation(7)])
    head = reader.head(2)
    keys = [item.key for item in head.items if isinstance(item, Input)]
    assert keys == ["7", "8"] and head.more


def synthetic(root: str, **fields: Any) -> tuple[ShapesConfig, Reader]:
    config = ShapesConfig(
        out=root, format="panoptic", num_images=6, seed=4, world=WorldConfig.square(48), **fields
    )
    write_shapes(config)
    source = f"{root}/annotations/panoptic_train.json"
    return config, build_reader("panoptic", source=source, images=f"{root}/train", dataset="s")


def check_synthetic(config: ShapesConfig, rows: list[dict[str, Any]]) -> None:
    """What was written is read back: each mask bit for bit, with its label and flags, and no other."""
    assert len(rows) == config.num_images
    for row in rows:
        scene = make_scene(config.seed, int(row["image_id"]) - 1, config.world)
        expected = {
            masks.encode(shape.mask): (shape.kind, ["crowd"] if crowd else [])
            for shape, crowd in zip(scene.objects, crowds(scene, config.crowd_share), strict=True)
        }
        assert {mask["rle"]: (mask["label"], mask["flags"]) for mask in row["masks"]} == expected
        assert read_size_hw(row["image_uri"]) == (row["height"], row["width"]) == scene.size_hw


def test_the_synthetic_corpus_is_read_back_as_it_was_written(tmp_path):
    config, reader = synthetic(str(tmp_path), crowd_share=0.4)
    rows, rejects = read_all(reader)
    assert not rejects
    assert any(mask["flags"] for row in rows for mask in row["masks"])
    check_synthetic(config, rows)


@pytest.mark.slow
def test_a_corpus_on_s3_is_read_as_on_a_disk(tmp_path, bucket):
    config, there = synthetic(f"{bucket}/shapes", crowd_share=0.4)
    _, here = synthetic(str(tmp_path), crowd_share=0.4)
    inputs = inputs_of(there)
    assert inputs == inputs_of(here)
    assert there.witness() == here.witness() and there.witness(inputs) == here.witness(inputs)
    rows, rejects = read_all(there)
    assert not rejects
    check_synthetic(config, rows)
    storage.delete(f"{bucket}/shapes/annotations/panoptic_train/000000000001.png")
    assert [one["reason"] for one in read_all(there)[1]] == ["label_map_missing"]


NAMES = st.sampled_from(["7.png", "8.png", "../7.png", "", None, 7, "\ud800", "a\0b", "x" * 300, "."])
IDENTITIES = st.sampled_from([7, 8, "7", 7.0, None, [7], True, "\ud800", ""])
SEGMENT = st.one_of(
    st.sampled_from([*SEGMENTS, segment(6), None, "x"]),
    st.fixed_dictionaries(
        {"id": st.sampled_from([300, 5, 0, -3, 2**70, "5", None, True, 1.5])},
        optional={
            "category_id": st.sampled_from([1, "1", 99, None, [], {}, 2**70]),
            "iscrowd": st.sampled_from([0, 1, 2, "x", None, []]),
            "area": st.sampled_from([1, 6, None, "x", [], float("nan")]),
        },
    ),
)
ANY_IMAGE = st.one_of(
    st.sampled_from([image(7), image(8), None, 5, [], {}]),
    st.builds(
        lambda identity, name, height: image(identity, file_name=name, height=height),
        *(IDENTITIES, NAMES, st.sampled_from([HEIGHT, HEIGHT, 0, "6", None, 10**9, 2.5])),
    ),
)
ANY_ANNOTATION = st.one_of(
    st.sampled_from([annotation(7), annotation(8), None, 5, [], {}]),
    st.builds(
        lambda identity, name, segments: annotation(identity, segments, file_name=name),
        *(IDENTITIES, NAMES, st.one_of(st.none(), st.just({}), st.lists(SEGMENT, max_size=5))),
    ),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.lists(ANY_IMAGE, max_size=4),
    annotations=st.lists(ANY_ANNOTATION, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_whatever_a_file_lists_each_mask_is_kept_or_rejected(
    tmp_path, images, annotations, order: random.Random
):
    rows, rejects = read_all(write(tmp_path, images, annotations))
    total = sum(len(row["masks"]) for row in rows) + sum(one["num_masks"] for one in rejects)
    lists = [one["segments_info"] for one in annotations if isinstance(one, dict) and "segments_info" in one]
    assert total == sum(len(found) for found in lists if isinstance(found, list))
    again = read_all(
        write(tmp_path, order.sample(images, len(images)), order.sample(annotations, len(annotations)))
    )
    assert again[0] == rows and len(again[1]) == len(rejects)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_map_of_any_bytes_is_read_or_rejected(tmp_path, data):
    shutil.rmtree(tmp_path / "panoptic_val", ignore_errors=True)
    reader = write(tmp_path, [image()], [annotation()])
    raw = bytearray(map_bytes(tmp_path))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    (tmp_path / "panoptic_val" / "7.png").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    rows, rejects = read_all(reader)
    assert sum(len(row["masks"]) for row in rows) + sum(one["num_masks"] for one in rejects) == 3


def test_as_many_numbers_as_a_map_may_have_are_read(monkeypatch):
    labels = np.arange(1, 13).reshape(3, 4)
    monkeypatch.setattr(label_maps, "MAX_IDS", 12)
    assert len(label_maps.counts_of(labels, "map")) == 12
    monkeypatch.setattr(label_maps, "MAX_IDS", 11)
    with pytest.raises(DataError, match="more than 11 different numbers"):
        label_maps.counts_of(labels, "map")
