"""The REFER reader: pickles that cannot run code, splits, targets of all kinds, and that nothing is lost."""

import json
import pickle
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.ingestion import safe_pickle
from pipelines.ingestion.refer import ReferReader, selects
from pipelines.ingestion.synthetic.config import ExpressionsConfig, ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.shapes import WorldConfig, make_scene
from tests.readers import build_reader, read_all

HEIGHT, WIDTH = 6, 8
SQUARE = np.zeros((HEIGHT, WIDTH), bool)
SQUARE[1:4, 2:7] = True
RLE = {"size": [HEIGHT, WIDTH], "counts": masks.encode(SQUARE)}


def image(identity=5, name="COCO_train2014_5.jpg"):
    return {"id": identity, "file_name": name, "height": HEIGHT, "width": WIDTH}


def thing(identity, image_id=5, segmentation=RLE):
    return {"id": identity, "image_id": image_id, "category_id": 1, "segmentation": segmentation}


def sentence(sent_id, text="the ring", raw="The ring!"):
    return {"sent_id": sent_id, "sent": text, "raw": raw, "tokens": text.split()}


def ref(ref_id=7, ann_id=1, *, image_id=5, split="val", sentences=None, **fields):
    said = [sentence(10 * ref_id)] if sentences is None else sentences
    body = {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": said}
    return {**body, "file_name": "COCO_train2014_5_1.jpg", "category_id": 1, "sent_ids": [], **fields}


def reader_of(folder, refs, *, things=None, images=None, split="val", dump=json.dumps, **options):
    objects = [thing(1), thing(2)] if things is None else things
    corpus = {
        "images": [image()] if images is None else images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "ring"}],
    }
    (folder / "instances.json").write_text(json.dumps(corpus))
    raw = dump(refs)
    (folder / "refs").write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return ReferReader(name="r", split=split, source=f"{folder}/refs", images=str(folder), **options)


def said(rows):
    return [
        (made["annotation_id"], made["text"], made["mask_ids"]) for r in rows for made in r["annotations"]
    ]


def reasons(rejects):
    return sorted(
        (entry["reason"], entry["row_id"], entry["mask_id"], entry["num_masks"]) for entry in rejects
    )


# --- rows -------------------------------------------------------------------------------------------------


def test_every_sentence_is_an_annotation_and_the_row_has_all_objects_of_its_image(tmp_path):
    two = [sentence(71, "left one"), sentence(70, "the ring")]
    rows, rejects = read_all(reader_of(tmp_path, [ref(sentences=two)], images=[image(), image(6, "b.jpg")]))
    (row,) = rows
    assert not rejects
    assert said(rows) == [("7-70", "the ring", ["1"]), ("7-71", "left one", ["1"])]
    assert row["annotations"][0] == {
        "annotation_id": "7-70",
        "task": "referring",
        "mask_ids": ["1"],
        "text": "the ring",
        "tags": [],
        "payload": None,
    }
    assert [(mask["mask_id"], mask["label"], mask["rle"]) for mask in row["masks"]] == [
        (name, "ring", RLE["counts"]) for name in ("1", "2")
    ]
    assert (row["image_id"], row["split"], row["dataset"]) == ("5", "val", "r")


def test_the_image_is_named_by_its_own_record_and_not_by_the_ref(tmp_path):
    rows, _ = read_all(reader_of(tmp_path, [ref()]))
    assert rows[0]["image_uri"] == str(tmp_path / "COCO_train2014_5.jpg")


def test_sentences_can_be_taken_as_they_were_typed(tmp_path):
    rows, _ = read_all(reader_of(tmp_path, [ref()], sentence="raw"))
    assert said(rows) == [("7-70", "The ring!", ["1"])]


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({"ann_id": 2}, ["2"]),
        ({"ann_id": [2]}, ["2"]),
        ({"ann_id": [2, 1, 2]}, ["2", "1"]),
        ({"ann_id": [-1]}, []),
        ({"ann_id": [-1], "no_target": True, "category_id": [-1]}, []),
        ({"ann_id": [], "no_target": True}, []),
        ({"ann_id": [1], "no_target": False}, ["1"]),
        ({"ann_id": (1, 2)}, ["1", "2"]),
    ],
)
def test_targets_may_be_one_several_or_none(tmp_path, fields, targets):
    rows, rejects = read_all(reader_of(tmp_path, [ref(**fields)], dump=pickle.dumps))
    assert said(rows) == [("7-70", "the ring", targets)] and not rejects


@pytest.mark.parametrize("fields", [{"ann_id": []}, {"ann_id": [1, -1]}, {"ann_id": None}, {"ann_id": [[1]]}])
def test_targets_that_mean_nothing_are_rejected(tmp_path, fields):
    rows, rejects = read_all(reader_of(tmp_path, [ref(**fields), ref(8)]))
    assert said(rows) == [("8-80", "the ring", ["1"])]
    assert reasons(rejects) == [("annotation_targets", "5", "annotation of ref 7", 0)]


def test_no_target_with_a_target_is_a_contradiction(tmp_path):
    _, rejects = read_all(reader_of(tmp_path, [ref(ann_id=[1], no_target=True), ref(8)]))
    assert reasons(rejects) == [("annotation_targets", "5", "annotation of ref 7", 0)]


def test_tags_of_a_ref_go_to_its_annotations(tmp_path):
    rows, _ = read_all(reader_of(tmp_path, [ref(tags=["single", "shape_only"])]))
    assert rows[0]["annotations"][0]["tags"] == ["single", "shape_only"]


def test_a_list_of_rle_is_one_mask_as_in_refclef(tmp_path):
    other = np.zeros_like(SQUARE)
    other[0, 0] = True
    parts = [RLE, {"size": [HEIGHT, WIDTH], "counts": masks.encode(other)}]
    rows, _ = read_all(reader_of(tmp_path, [ref()], things=[thing(1, segmentation=parts)]))
    assert rows[0]["masks"][0]["rle"] == masks.encode(SQUARE | other)


# --- what is lost -----------------------------------------------------------------------------------------


def test_an_expression_stays_when_its_target_is_rejected_missing_or_of_another_image(tmp_path):
    broken = thing(1, segmentation={"size": [9, 9], "counts": "abc"})
    things = [broken, thing(2), thing(3, image_id=6), thing(4, image_id=99)]
    refs = [ref(7, 1), ref(8, [2, 3]), ref(9, 4), ref(11, 77)]
    rows, rejects = read_all(reader_of(tmp_path, refs, things=things, images=[image(), image(6, "b.jpg")]))
    assert [targets for _, _, targets in said(rows)] == [["1"], ["2", "3"], ["4"], ["77"]]
    assert reasons(rejects) == [
        ("rle_size", "5", "1", 1),
        ("unknown_image", "99", "4", 1),
        ("unknown_mask", "5", "3", 0),
        ("unknown_mask", "5", "4", 0),
        ("unknown_mask", "5", "77", 0),
    ]


def test_refs_that_cannot_be_used_are_rejects_of_no_mask(tmp_path):
    bad_sentence = [sentence(1, ""), {"sent": "a"}, sentence(2, "good"), sentence(3, 5 * "x"), sentence(3)]
    refs = [
        ref(1, sentences=bad_sentence),
        ref(2, image_id=None),
        ref(3, split=None),
        ref(4, sentences=[]),
        ref(5, tags="single"),
        ref(6, image_id=404),
        {"split": "val", "image_id": 5},
        17,
        ref(9),
        ref(9),
        ref(10, 1),
        ref(10, 2),
        ref(None, sentences=[sentence(1)]),
    ]
    rows, rejects = read_all(reader_of(tmp_path, refs))
    assert said(rows) == [("1-2", "good", ["1"]), ("9-90", "the ring", ["1"])]
    assert reasons(rejects) == [
        ("annotation_id", "5", "annotation 1-#1", 0),
        ("annotation_id", "5", "annotation of ref #12", 0),
        ("annotation_id", "5", "annotation of ref #6", 0),
        ("annotation_id", "?", "annotation of ref #7", 0),
        ("annotation_split", "5", "annotation of ref 3", 0),
        ("annotation_tags", "5", "annotation of ref 5", 0),
        ("annotation_text", "5", "annotation 1-1", 0),
        ("annotation_text", "5", "annotation of ref 4", 0),
        ("duplicate_annotation_id", "5", "annotation 1-3", 0),
        ("duplicate_annotation_id", "5", "annotation 1-3", 0),
        ("duplicate_annotation_id", "5", "annotation of ref 10", 0),
        ("duplicate_annotation_id", "5", "annotation of ref 10", 0),
        ("duplicate_annotation_id", "5", "annotation of ref 9", 0),
        ("image_id", "?", "annotation of ref 2", 0),
        ("unknown_image", "404", "annotation 6-60", 0),
    ]


def test_images_of_other_splits_give_neither_rows_nor_rejects(tmp_path):
    things = [thing(1), thing(2, image_id=6, segmentation=[[1, 2]]), thing(2, image_id=6)]
    refs = [ref(7), ref(8, 2, image_id=6, split="train")]
    rows, rejects = read_all(reader_of(tmp_path, refs, things=things, images=[image(), image(6, "b.jpg")]))
    assert [row["image_id"] for row in rows] == ["5"] and not rejects


def test_an_image_without_a_size_loses_its_masks_and_expressions_as_one_row(tmp_path):
    _, rejects = read_all(reader_of(tmp_path, [ref()], images=[{"id": 5, "file_name": "a.jpg"}]))
    assert reasons(rejects) == [("image_size", "5", None, 2)]


# --- splits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        ("train", ["train"]),
        ("val", ["val"]),
        ("test", ["test", "testA", "testB", "testC", "testAB", "testBC"]),
        ("testA", ["testA", "testAB"]),
        ("testB", ["testB", "testAB", "testBC"]),
        ("testC", ["testC", "testBC"]),
        ("testAB", ["testAB"]),
    ],
)
def test_splits_follow_the_official_rule(wanted, taken):
    names = ["train", "val", "test", "testA", "testB", "testC", "testAB", "testBC"]
    assert [name for name in names if selects(wanted, name)] == taken


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    reader = reader_of(tmp_path, [ref(1), ref(2), ref(3, split="train")], split="testA")
    with pytest.raises(ConfigError, match=r"no refs of the split 'testA'; it has train \(1\), val \(2\)"):
        list(reader.inputs())


# --- pickles ----------------------------------------------------------------------------------------------

PYTHON_2 = (  # pickle.dumps of Python 2, protocol 0: byte strings, here with an e acute in latin1
    b"(lp0\n(dp1\nS'ref_id'\np2\nI7\nsS'ann_id'\np3\nI1\nsS'image_id'\np4\nI5\nsS'split'\np5\nS'val'\np6\nsS'sentences'\n"
    b"p7\n(lp8\n(dp9\nS'sent_id'\np10\nL70L\nsS'sent'\np11\nS'caf\\xe9'\np12\nsasa."
)


def test_a_pickle_of_python_2_is_read_with_its_byte_strings_as_text(tmp_path):
    rows, rejects = read_all(reader_of(tmp_path, None, dump=lambda _: PYTHON_2))
    assert said(rows) == [("7-70", "café", ["1"])] and not rejects


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_all_protocols_give_what_json_gives(tmp_path, protocol):
    refs = [ref(), ref(8, [1, 2])]
    plain = read_all(reader_of(tmp_path, refs))
    assert read_all(reader_of(tmp_path, refs, dump=lambda value: pickle.dumps(value, protocol))) == plain


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_and_the_function_named(tmp_path, protocol):
    raw = pickle.dumps([ref(), Evil(str(tmp_path / "run"))], protocol)
    reader = reader_of(tmp_path, None, dump=lambda _: raw)
    with pytest.raises(DataError, match=r"refs asks for (io|_io|builtins|__builtin__)\.open") as caught:
        list(reader.inputs())
    assert caught.value.reason == "pickle_global" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.int64(3), r"numpy\S*scalar"),
        (Fraction(1, 2), r"fractions\.Fraction"),
        (np.zeros(2), "_reconstruct"),
    ],
)
def test_values_that_need_a_class_are_refused_by_its_name(value, name):
    with pytest.raises(DataError, match=f"x asks for .*{name}.*convert it to JSON"):
        safe_pickle.load_plain(pickle.dumps([value], 2), "x")


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refs", "message"),
    [({"images": []}, "holds a dict, expected a list of refs"), ("[1, 2", "is not JSON")],
)
def test_a_file_of_another_kind_is_refused(tmp_path, refs, message):
    reader = reader_of(
        tmp_path, refs, dump=lambda value: value if isinstance(value, str) else json.dumps(value)
    )
    with pytest.raises(DataError, match=message):
        list(reader.inputs())


def test_a_file_of_refs_beyond_the_limit_is_refused(tmp_path):
    with pytest.raises(DataError, match="has over 20 bytes"):
        list(reader_of(tmp_path, [ref()], max_refs_bytes=20).inputs())


def test_the_objects_may_lie_elsewhere_and_both_files_make_the_corpus(tmp_path):
    reader = reader_of(tmp_path, [ref()])
    before = reader.witness()
    assert set(before) == {"refs", "instances.json"}
    (tmp_path / "more").mkdir()
    moved = tmp_path / "more" / "objects.json"
    (tmp_path / "instances.json").rename(moved)
    elsewhere = build_reader(
        "refer",
        source=f"{tmp_path}/refs",
        images=str(tmp_path),
        split="val",
        dataset="r",
        instances=str(moved),
    )
    assert set(elsewhere.witness().values()) == set(before.values())
    assert len(read_all(elsewhere)[0]) == 1
    assert pickle.loads(pickle.dumps(elsewhere)) == elsewhere


REFS = st.fixed_dictionaries(
    {"ref_id": st.integers(1, 4), "image_id": st.sampled_from([5, 6, 7, None]), "split": st.just("val")},
    optional={
        "ann_id": st.sampled_from([1, 2, 3, [1, 2], [-1], [9], "x", None]),
        "no_target": st.booleans(),
        "tags": st.sampled_from([["a"], None, 3]),
        "sentences": st.lists(
            st.sampled_from([sentence(1), sentence(2, "b"), sentence(2, "c"), {"sent": "d"}, None]),
            max_size=3,
        ),
    },
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(refs=st.lists(REFS | st.none(), max_size=6), seed=st.randoms(use_true_random=False))
def test_sentences_in_are_annotations_or_rejects_whatever_the_order(tmp_path, refs, seed: random.Random):
    things = [thing(1), thing(2, segmentation=[[1, 2]]), thing(3, image_id=6)]
    images = [image(), image(6, "b.jpg")]
    refs = [*refs, ref(20)]
    rows, rejects = read_all(reader_of(tmp_path, refs, things=things, images=images))
    shuffled = [seed.sample(entries, len(entries)) for entries in (refs, things, images)]
    again = read_all(reader_of(tmp_path, shuffled[0], things=shuffled[1], images=shuffled[2]))
    assert again[0] == rows
    counts = [
        sorted((r["reason"], r["row_id"], r["num_masks"]) for r in lost) for lost in (rejects, again[1])
    ]
    assert counts[0] == counts[1]
    told = [f"annotation {made['annotation_id']}" for row in rows for made in row["annotations"]]
    lost = [entry["mask_id"] for entry in rejects if (entry["mask_id"] or "").startswith("annotation ")]
    whole = [name for name in lost if name.startswith("annotation of ref ")]  # all sentences of it
    usable = sum(len(entry["sentences"]) for entry in refs if entry and entry.get("sentences"))
    assert len(told) + len(lost) - len(whole) <= usable <= len(told) + len(lost) - len(whole) + 3 * len(whole)


# --- the synthetic corpus ---------------------------------------------------------------------------------

WORLD = WorldConfig.square(48, max_objects=4)


def write(folder, **fields):
    config = ShapesConfig(
        out=str(folder), format="refer", num_images=20, seed=3, world=WORLD, split="val", **fields
    )
    write_shapes(config)
    return build_reader(
        "refer", source=f"{folder}/grefs.json", images=f"{folder}/val", split="val", dataset="shapes"
    )


def test_the_synthetic_corpus_is_served_with_its_scenes_masks(tmp_path):
    rows, rejects = read_all(write(tmp_path))
    assert len(rows) == 20 and not rejects
    for row in rows:
        scene = make_scene(3, int(row["image_id"]) - 1, WORLD)
        assert [mask["rle"] for mask in row["masks"]] == [masks.encode(shape.mask) for shape in scene.objects]
        for made in row["annotations"]:
            count = len(made["mask_ids"])
            assert made["tags"][0] == ("none", "single", "multi")[min(count, 2)]
            if made["text"].startswith("all "):
                assert count != 1
    tags = {tag for row in rows for made in row["annotations"] for tag in made["tags"]}
    assert tags == {"none", "single", "multi", "shape_only", "colour_only"}


def test_the_share_of_questions_without_a_target_can_be_chosen(tmp_path):
    for none in (0, 3):
        chosen = ExpressionsConfig(single=1, multi=0, none=none, families=("attributes",))
        rows, _ = read_all(write(tmp_path / str(none), expressions=chosen))
        counts = [len(made["mask_ids"]) for row in rows for made in row["annotations"]]
        assert counts.count(0) == 20 * none and set(counts) <= {0, 1} and 15 < counts.count(1) <= 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"single": 0, "multi": 0, "none": 0}, r"in \[1, 99\] together"),
        ({"none": -1}, "--none must be >= 0"),
        ({"single": 99}, r"in \[1, 99\] together"),
        ({"families": ()}, "must not be empty"),
        ({"families": ("places", "places")}, "must have each family once"),
    ],
)
def test_expressions_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ExpressionsConfig(**fields)
