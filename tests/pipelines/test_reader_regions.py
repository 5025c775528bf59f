"""The readers of masks with texts (DAM, Osprey): grouping by image, ids, masks in texts, nothing is lost."""

import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import WorldConfig, description, make_scene
from tests.readers import build_reader, read_all


def rle(column, size=(6, 8)):
    mask = np.zeros(size, bool)
    mask[1:3, column] = True
    return {"size": list(size), "counts": masks.encode(mask)}


def region(ann_id=1, caption="a red ring", mask=None, **place):
    where = place or {"image": "train/5.jpg"}
    return {"caption": caption, "mask_rle": rle(0) if mask is None else mask, "ann_id": ann_id, **where}


def reader_of(folder, corpus):
    (folder / "annotations.json").write_text(json.dumps(corpus))
    place = {"source": f"{folder}/annotations.json", "images": str(folder)}
    return build_reader("dam", **place, split="train", dataset="d")


def said(row):
    return [(made["annotation_id"], made["mask_ids"], made["text"]) for made in row["annotations"]]


def reasons(rejects):
    return sorted((one["reason"], one["row_id"], one["mask_id"], one["num_masks"]) for one in rejects)


def test_entries_of_an_image_are_one_row_whatever_list_they_are_in(tmp_path):
    corpus = {
        "x": [region(1), region(2, "two stars", rle(1))],
        "y": [region(10, "sky", rle(2)), region(3, img_id=77)],
        "z": [],
    }
    rows, rejects = read_all(reader_of(tmp_path, corpus))
    assert not rejects and [row["image_id"] for row in rows] == ["77.jpg", "train/5.jpg"]
    assert rows[1]["image_uri"] == f"{tmp_path}/train/5.jpg" and rows[0]["image_uri"] == f"{tmp_path}/77.jpg"
    assert said(rows[1]) == [
        ("1-1", ["1"], "a red ring"),
        ("2-1", ["2"], "two stars"),
        ("10-1", ["10"], "sky"),
    ]
    assert [mask["rle"] for mask in rows[1]["masks"]] == [rle(i)["counts"] for i in range(3)]
    assert (rows[1]["height"], rows[1]["width"]) == (6, 8)


def test_several_captions_of_a_mask_are_an_annotation_each(tmp_path):
    (row,), rejects = read_all(reader_of(tmp_path, {"x": [region(1, "b"), region(1, "a")]}))
    assert not rejects and len(row["masks"]) == 1
    assert said(row) == [("1-1", ["1"], "a"), ("1-2", ["1"], "b")]


def test_an_id_of_differing_masks_loses_the_mask_and_keeps_the_captions(tmp_path):
    (row,), rejects = read_all(reader_of(tmp_path, {"x": [region(1), region(1, mask=rle(3)), region(2)]}))
    assert reasons(rejects) == [("duplicate_annotation_id", "train/5.jpg", "1", 1)]
    assert [mask["mask_id"] for mask in row["masks"]] == ["2"] and len(row["annotations"]) == 3


def test_the_size_of_an_image_is_that_of_most_masks(tmp_path):
    entries = [region(1, mask=rle(0, (9, 9))), region(2), region(3), region(4, mask="x"), region(5, mask={})]
    (row,), rejects = read_all(reader_of(tmp_path, {"x": entries}))
    assert (row["height"], row["width"]) == (6, 8)
    assert reasons(rejects) == [
        ("rle_size", "train/5.jpg", "1", 1),
        ("segmentation_type", "train/5.jpg", "4", 1),
    ]
    assert [(mask["mask_id"], mask["flags"]) for mask in row["masks"]][-1] == ("5", ["empty"])


def test_what_cannot_be_used_is_rejected_with_its_place(tmp_path):
    entries = [
        region(None),
        region(1, img_id=None),
        7,
        region(2, ""),
        region(3, image="../a.jpg"),
        region(4, image="b.jpg", mask={"counts": "0"}),
    ]
    rows, rejects = read_all(reader_of(tmp_path, {"x": entries}))
    assert [(row["image_id"], len(row["masks"]), said(row)) for row in rows] == [("train/5.jpg", 1, [])]
    assert reasons([one for one in rejects if one["mask_id"]]) == [
        ("annotation_id", "?", "x#1", 1),
        ("annotation_id", "?", "x#2", 1),
        ("annotation_id", "train/5.jpg", "x#0", 1),
        ("annotation_text", "train/5.jpg", "annotation 2-1", 0),
    ]
    assert reasons([one for one in rejects if not one["mask_id"]]) == [
        ("image_size", "b.jpg", None, 1),
        ("unsafe_path", "../a.jpg", None, 1),
    ]


@pytest.mark.parametrize("corpus", [[], {"x": {}}, {"images": 3}])
def test_a_file_of_another_layout_is_refused(tmp_path, corpus):
    with pytest.raises(DataError, match="expected an object of lists of captioned masks"):
        list(reader_of(tmp_path, corpus).inputs())


ENTRIES = st.builds(
    region,
    st.sampled_from([1, 2, "3", None]),
    st.sampled_from(["a", "b", "", None]),
    st.sampled_from([rle(0), rle(1), rle(0, (5, 5)), {"size": [6, 8], "counts": "!"}, "x"]),
    image=st.sampled_from(["a.jpg", "b.jpg", 3]),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(ENTRIES, max_size=7), order=st.randoms(use_true_random=False))
def test_masks_and_captions_in_are_kept_or_rejected_whatever_the_order(
    tmp_path, entries, order: random.Random
):
    rows, rejects = read_all(reader_of(tmp_path, {"x": entries}))
    usable = [one for one in entries if one["ann_id"] is not None and one["image"] != 3]
    claimed = len({(one["image"], str(one["ann_id"])) for one in usable}) + len(entries) - len(usable)
    assert sum(len(row["masks"]) for row in rows) + sum(one["num_masks"] for one in rejects) == claimed
    again = read_all(reader_of(tmp_path, {"y": order.sample(entries, len(entries))}))
    assert again[0] == rows and len(again[1]) == len(rejects)


def test_the_synthetic_corpus_is_served_with_a_caption_per_shape(tmp_path):
    world = WorldConfig.square(48)
    write_shapes(ShapesConfig(out=str(tmp_path), format="dam", num_images=10, seed=4, world=world))
    reader = build_reader(
        "dam", source=f"{tmp_path}/annotations.json", images=str(tmp_path), split="train", dataset="s"
    )
    rows, rejects = read_all(pickle.loads(pickle.dumps(reader)))
    assert len(rows) == 10 and not rejects
    for row in rows:
        scene = make_scene(4, int(row["image_id"][-16:-4]) - 1, world)
        rles = {mask["mask_id"]: mask["rle"] for mask in row["masks"]}
        found = {rles[made["mask_ids"][0]]: made["text"] for made in row["annotations"]}
        assert found == {masks.encode(shape.mask): description(shape) for shape in scene.objects}


# --- Osprey -----------------------------------------------------------------------------------------------


def osprey(name="a.jpg", *, regions=None, size=(6, 8), **texts):
    found = (
        [{"segmentation": rle(0), "bbox": [0, 0, 1, 1]}, {"segmentation": rle(1)}]
        if regions is None
        else regions
    )
    return {"file_name": name, "height": size[0], "width": size[1], "annotation": found, **texts}


def talk(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def osprey_reader(folder, corpus):
    (folder / "osprey.json").write_text(json.dumps(corpus))
    place = {"source": f"{folder}/osprey.json", "images": str(folder)}
    return build_reader("osprey", **place, split="train", dataset="o")


def texts(row):
    return [
        (made["annotation_id"], made["task"], made["mask_ids"], made["text"] or json.loads(made["payload"]))
        for made in row["annotations"]
    ]


def test_descriptions_questions_and_dialogues_name_their_masks(tmp_path):
    corpus = [
        osprey("a.jpg", description=["<region2>: a red ring", "<region1>:two stars "]),
        osprey("b.jpg", conversations=talk("<image>\nWhat is <region2>?", "A ring.")),
        osprey(
            "c.jpg", conversations=talk("Is <region2> left of <region1>?", "<region1> is.", "Why?", "So.")
        ),
        osprey("d.jpg", conversations=talk("What is it?", "A sky.")),
    ]
    rows, rejects = read_all(osprey_reader(tmp_path, corpus))
    assert not rejects and [len(row["masks"]) for row in rows] == [2, 2, 2, 2]
    assert texts(rows[0]) == [
        ("1-description-1", "region_caption", ["1-2"], "a red ring"),
        ("1-description-2", "region_caption", ["1-1"], "two stars"),
    ]
    asked = {"question": "What is <mask 0>?", "answer": "A ring."}
    assert texts(rows[1]) == [("1-dialogue", "region_qa", ["1-2"], asked)]
    turns = ["Is <mask 0> left of <mask 1>?", "<mask 1> is.", "Why?", "So."]
    roles = ["user", "assistant"] * 2
    told = {"turns": [{"role": role, "text": text} for role, text in zip(roles, turns, strict=True)]}
    assert texts(rows[2]) == [("1-dialogue", "dialogue", ["1-2", "1-1"], told)]
    assert rows[3]["annotations"][0]["mask_ids"] == []


def test_records_of_an_image_are_one_row_with_masks_of_their_own(tmp_path):
    corpus = [osprey(description=["<region1>: b"]), osprey(description=["<region1>: a"])]
    (row,), rejects = read_all(osprey_reader(tmp_path, corpus))
    assert not rejects and [mask["mask_id"] for mask in row["masks"]] == ["1-1", "1-2", "2-1", "2-2"]
    assert [(made["text"], made["mask_ids"]) for made in row["annotations"]] == [
        ("a", ["1-1"]),
        ("b", ["2-1"]),
    ]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"conversations": talk("<region3>?", "A ring.")}, "unknown_region"),
        ({"conversations": talk("<region0>?", "A ring.")}, "unknown_region"),
        ({"conversations": talk("a", "b", "c")}, "dialogue"),
        ({"conversations": []}, "dialogue"),
        ({"conversations": "hello"}, "dialogue"),
        ({"conversations": talk("a", "b")[::-1]}, "dialogue"),
        ({"conversations": [7, 8]}, "dialogue"),
        ({"conversations": talk("what is <mask 0>?", "b")}, "dialogue"),
        ({"conversations": talk("<image>", "b")}, "annotation_text"),
        ({"description": ["a ring"]}, "description"),
        ({"description": "a ring"}, "description"),
        ({"description": ["<region1>: "]}, "annotation_text"),
        ({"description": ["<region9>: a"]}, "unknown_region"),
        ({"description": [None]}, "description"),
    ],
)
def test_texts_that_cannot_be_used_are_rejected_and_the_masks_stay(tmp_path, told, reason):
    (row,), rejects = read_all(osprey_reader(tmp_path, [osprey(**told)]))
    assert row["annotations"] == [] and len(row["masks"]) == 2
    assert [(entry["reason"], entry["num_masks"]) for entry in rejects] == [(reason, 0)]


def test_osprey_records_and_regions_that_cannot_be_used_are_counted(tmp_path):
    broken = [{"segmentation": rle(0, (3, 3))}, 7, {"segmentation": rle(1)}]
    corpus = [
        osprey("a.jpg", regions=broken, description=["<region1>: a", "<region2>: b"]),
        osprey("b.jpg"),
        osprey("b.jpg", size=(7, 8)),
        osprey("c.jpg", size=(None, 8)),
        osprey("../d.jpg"),
        osprey(None),
        3,
    ]
    rows, rejects = read_all(osprey_reader(tmp_path, corpus))
    assert [(row["image_id"], len(row["masks"]), len(row["annotations"])) for row in rows] == [
        ("a.jpg", 1, 2)
    ]
    assert sorted((one["reason"], one["row_id"], one["num_masks"]) for one in rejects) == [
        ("image_record", "#5", 2),
        ("image_record", "#6", 0),
        ("image_record", "b.jpg", 4),
        ("image_size", "c.jpg", 2),
        ("rle_size", "a.jpg", 1),
        ("segmentation_type", "a.jpg", 1),
        ("unsafe_path", "../d.jpg", 2),
    ]


def test_pictures_of_osprey_may_lack_the_prefix_of_their_name(tmp_path):
    (tmp_path / "000000000009.jpg").write_bytes(b"x")
    names = ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000008.jpg"]
    rows, rejects = read_all(osprey_reader(tmp_path, [osprey(name) for name in names]))
    assert [row["image_uri"] for row in rows] == [f"{tmp_path}/000000000009.jpg"]
    assert [one["reason"] for one in rejects] == ["missing_image"]


def test_an_exact_name_wins_and_another_number_is_told(tmp_path):
    for name in ("1.jpg", "a_1.jpg"):
        (tmp_path / name).write_bytes(b"x")
    rows, rejects = read_all(osprey_reader(tmp_path, [osprey("a_1.jpg"), osprey("b_1.jpg")]))
    assert [row["image_uri"] for row in rows] == [f"{tmp_path}/a_1.jpg", f"{tmp_path}/1.jpg"]
    (told,) = rejects
    assert (told["reason"], told["row_id"], told["num_masks"]) == ("image_fallback", "b_1.jpg", 0)
    assert told["message"] == f"there is no image b_1.jpg, and {tmp_path}/1.jpg is taken for it"


def test_osprey_files_give_the_same_in_any_order_and_others_are_refused(tmp_path):
    corpus = [
        osprey(name, conversations=talk("<region1>?", text)) for name in ("a.jpg", "b.jpg") for text in "xyz"
    ]
    assert read_all(osprey_reader(tmp_path, corpus)) == read_all(osprey_reader(tmp_path, corpus[::-1]))
    with pytest.raises(DataError, match="holds a dict, expected a list of images with annotation"):
        list(osprey_reader(tmp_path, {}).inputs())
