"""The PSG reader: masks out of label maps, relations by index, splits, and that nothing is lost."""

import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.shapes import WorldConfig, make_scene, relations
from tests import readers
from tests.readers import build_reader

HEIGHT, WIDTH = 6, 8
IDS = np.zeros((HEIGHT, WIDTH), np.int64)
IDS[1:3, 1:4] = 300  # needs green
IDS[4, 2:7] = 70_000  # needs blue
IDS[0, 7] = 5
AREAS = {300: 6, 70_000: 5, 5: 1}


def segment(identity, category_id=0, **fields):
    area = AREAS.get(identity, 1)
    return {"id": identity, "category_id": category_id, "isthing": 1, "iscrowd": 0, "area": area, **fields}


SEGMENTS = [segment(300), segment(70_000, 2), segment(5, 1, iscrowd=1)]


def entry(image_id="7", segments=SEGMENTS, triplets=((0, 1, 1),), **fields):
    boxes = [{"bbox": [0, 0, 2, 2], "category_id": 0} for _ in segments]
    size = {"height": HEIGHT, "width": WIDTH}
    names = {"file_name": f"train2017/{image_id}.jpg", "pan_seg_file_name": f"panoptic/{image_id}.png"}
    body = {**names, **size, "image_id": image_id, "segments_info": list(segments), "annotations": boxes}
    return {**body, "relations": [list(one) for one in triplets], **fields}


def write_map(path, ids=IDS):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(channels).save(path)


def reader_of(folder, entries, *, split="all", test_image_ids=(), options=None, **changes):
    classes = {
        "thing_classes": ["ring", "star"],
        "stuff_classes": ["sky"],
        "predicate_classes": ["over", "in"],
    }
    corpus = {"data": list(entries), **classes, "test_image_ids": list(test_image_ids), **changes}
    (folder / "psg.json").write_text(json.dumps(corpus))
    for one in ("7", "8", "9"):
        if not (folder / "annotations" / "panoptic" / f"{one}.png").exists():
            write_map(folder / "annotations" / "panoptic" / f"{one}.png")
    place = {"source": f"{folder}/psg.json", "images": str(folder)}
    return build_reader("psg", **place, split=split, dataset="p", **(options or {}))


def read_all(reader):
    """As for every reader; and triplets point at masks."""
    rows, rejects = readers.read_all(reader)
    for made in (made for row in rows for made in row["annotations"]):
        for subject, _, target in json.loads(made["payload"])["triplets"]:
            assert max(subject, target) < len(made["mask_ids"])
    return rows, rejects


def graph(row):
    (made,) = row["annotations"]
    ids = made["mask_ids"]
    return [(ids[s], predicate, ids[o]) for s, predicate, o in json.loads(made["payload"])["triplets"]]


def reasons(rejects):
    return sorted((one["reason"], one["row_id"], one["mask_id"], one["num_masks"]) for one in rejects)


def test_segments_become_masks_with_labels_of_things_then_stuff(tmp_path):
    (row,), rejects = read_all(reader_of(tmp_path, [entry()]))
    found = {mask["mask_id"]: (mask["rle"], mask["label"], mask["flags"]) for mask in row["masks"]}
    assert not rejects and found == {
        "300": (masks.encode(IDS == 300), "ring", []),
        "70000": (masks.encode(IDS == 70_000), "sky", []),
        "5": (masks.encode(IDS == 5), "star", ["crowd"]),
    }
    assert row["image_uri"] == f"{tmp_path}/train2017/7.jpg"


def test_relations_name_subject_predicate_and_object_by_index_from_zero(tmp_path):
    triplets = [(2, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 0)]
    (row,), rejects = read_all(reader_of(tmp_path, [entry(triplets=triplets)]))
    assert not rejects and row["annotations"][0]["mask_ids"] == ["300", "70000", "5"]
    assert graph(row) == [("300", "in", "70000"), ("300", "over", "70000"), ("5", "in", "300")]


def test_an_image_without_relations_is_a_row_without_a_graph(tmp_path):
    rows, rejects = read_all(reader_of(tmp_path, [entry(triplets=()), entry("8", relations=None)]))
    assert [len(row["masks"]) for row in rows] == [3, 3] and not rejects
    assert [row["annotations"] for row in rows] == [[], []]


@pytest.mark.parametrize("bad", [[0, 3, 0], [0, 1, 2], [-1, 0, 0], [0, 1], "over", [True, 1, 0], [0.0, 1, 0]])
def test_what_is_no_relation_is_rejected_and_the_others_stay(tmp_path, bad):
    (row,), rejects = read_all(reader_of(tmp_path, [entry(relations=[bad, [0, 1, 0]])]))
    assert reasons(rejects) == [("relation", "7", "annotation graph relation 0", 0)]
    assert graph(row) == [("300", "over", "70000")]


def test_segments_that_do_not_fit_their_map_are_rejected_and_stay_in_the_graph(tmp_path):
    segments = [
        segment(300, area=7),
        segment(70_000, 9),
        segment(6),
        segment(5),
        segment(5),
        "x",
    ]
    (row,), rejects = read_all(reader_of(tmp_path, [entry(segments=segments, triplets=[(0, 3, 0)])]))
    assert row["masks"] == [] and graph(row) == [("300", "over", "#3")]
    assert reasons(rejects) == [
        ("category_id", "7", "70000", 1),
        ("segment_area", "7", "300", 1),
        ("segment_id", "7", "#3", 1),
        ("segment_id", "7", "#4", 1),
        ("segment_id", "7", "#5", 1),
        ("segment_missing", "7", "6", 1),
    ]


def test_pixels_of_no_segment_are_told(tmp_path):
    (row,), rejects = read_all(reader_of(tmp_path, [entry(segments=SEGMENTS[:2])]))
    assert len(row["masks"]) == 2 and reasons(rejects) == [("unknown_segment", "7", "5", 0)]


def test_an_image_whose_map_is_missing_broken_or_of_another_size_is_lost_with_its_masks(tmp_path):
    write_map(tmp_path / "annotations" / "panoptic" / "8.png", IDS.T)
    (tmp_path / "annotations" / "panoptic" / "9.png").write_bytes(b"no image")
    entries = [entry("5"), entry("8"), entry("9"), entry("4", pan_seg_file_name="../7.png")]
    entries += [entry("3", height=None), entry("2", file_name=None)]
    rows, rejects = read_all(reader_of(tmp_path, entries))
    assert not rows
    assert [(reason, row_id, count) for reason, row_id, _, count in reasons(rejects)] == [
        ("image_format", "9", 3),
        ("image_path", "2", 3),
        ("image_size", "3", 3),
        ("label_map_missing", "5", 3),
        ("label_map_size", "8", 3),
        ("unsafe_path", "4", 3),
    ]


def test_records_without_id_and_repeated_ones_are_rejected(tmp_path):
    entries = [entry(), entry("8"), entry("8"), entry("9"), entry("9", triplets=()), entry(None), 4]
    rows, rejects = read_all(reader_of(tmp_path, entries))
    assert [row["image_id"] for row in rows] == ["7", "8"]
    assert reasons(rejects) == [
        ("duplicate_image_id", "8", None, 3),
        ("duplicate_image_id", "9", None, 3),
        ("duplicate_image_id", "9", None, 3),
        ("image_record", "#5", None, 3),
        ("image_record", "#6", None, 0),
    ]


@pytest.mark.parametrize(
    ("split", "taken"), [("train", ["7", "9"]), ("val", ["8"]), ("test", ["8"]), ("all", ["7", "8", "9"])]
)
def test_splits_go_by_the_list_of_test_images(tmp_path, split, taken):
    reader = reader_of(tmp_path, [entry(one) for one in "789"], split=split, test_image_ids=[8])
    assert [item.key for item in reader.inputs()] == taken


def test_a_split_without_images_and_a_file_of_another_layout_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no image of the split 'val' among 1"):
        list(reader_of(tmp_path, [entry()], split="val").inputs())
    with pytest.raises(DataError, match="predicate_classes is None, expected a list of names"):
        list(reader_of(tmp_path, [entry()], predicate_classes=None).inputs())
    with pytest.raises(DataError, match="expected an object with the list data"):
        list(reader_of(tmp_path, [], data={}).inputs())


def test_maps_may_lie_elsewhere_and_are_part_of_the_corpus(tmp_path):
    reader = reader_of(tmp_path, [entry()])
    before = reader.witness()
    (tmp_path / "annotations").rename(tmp_path / "maps")
    moved = build_reader(
        "psg",
        source=f"{tmp_path}/psg.json",
        images=str(tmp_path),
        split="all",
        dataset="p",
        panoptic=f"{tmp_path}/maps",
    )
    assert moved.witness() == before and set(before) == {"psg.json", "label maps"}
    assert len(read_all(pickle.loads(pickle.dumps(moved)))[0]) == 1
    (tmp_path / "maps" / "panoptic" / "9.png").unlink()
    assert moved.witness() != before


RELATIONS = st.lists(st.sampled_from([[0, 1, 0], [1, 0, 1], [0, 9, 0], None, [1, 0, 5]]), max_size=4)
SETS = st.lists(st.sampled_from([*SEGMENTS, segment(5, area=3), segment(9), None]), max_size=5)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.tuples(st.sampled_from(["7", "8", 9, None]), SETS, RELATIONS), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_masks_in_are_masks_kept_or_rejected_whatever_the_order(tmp_path, parts, order: random.Random):
    entries = [entry(one, segments, relations=found) for one, segments, found in parts] + [entry("x")]
    rows, rejects = read_all(reader_of(tmp_path, entries))
    total = sum(len(row["masks"]) for row in rows) + sum(one["num_masks"] for one in rejects)
    assert total == sum(len(one["segments_info"]) for one in entries)
    assert len(rows) + sum(one["mask_id"] is None for one in rejects) == len(entries)
    again = read_all(reader_of(tmp_path, order.sample(entries, len(entries))))
    assert again[0] == rows and len(again[1]) == len(rejects)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_synthetic_corpus_is_served_with_all_relations_that_hold(tmp_path, split):
    world = WorldConfig.square(48)
    write_shapes(
        ShapesConfig(out=str(tmp_path), format="psg", num_images=10, seed=4, world=world, split=split)
    )
    reader = build_reader(
        "psg", source=f"{tmp_path}/psg.json", images=str(tmp_path), split=split, dataset="s"
    )
    rows, rejects = read_all(reader)
    assert len(rows) == 10 and not rejects
    for row in rows:
        scene = make_scene(4, int(row["image_id"]) - 1, world)
        by_rle = {mask["rle"]: mask for mask in row["masks"]}
        found = [by_rle[masks.encode(shape.mask)] for shape in scene.objects]
        assert [mask["label"] for mask in found] == [shape.kind for shape in scene.objects]
        expected = {(found[i]["mask_id"], word, found[j]["mask_id"]) for i, word, j in relations(scene)}
        assert (set(graph(row)) if row["annotations"] else set()) == expected
        assert read_size_hw(row["image_uri"]) == (48, 48)
