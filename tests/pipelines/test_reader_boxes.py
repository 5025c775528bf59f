"""Boxes without masks: V3Det, Visual7W, InViG and Cops-Ref keep them with a flag, and nothing is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.ingestion.reader import Input, Reader
from samtok.errors import ConfigError, DataError
from tests.folders import HEIGHT, PICTURE, WIDTH, put
from tests.label_maps import inputs_of, reasons
from tests.readers import build_reader, read_all


def boxes_of(row: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    assert all(mask["rle"] is None for mask in row["masks"])
    return {mask["mask_id"]: (mask["box_xyxy"], mask["label"], mask["flags"]) for mask in row["masks"]}


def said(row: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {
        made["annotation_id"]: (made["text"] or json.loads(made["payload"])["turns"], made["mask_ids"])
        for made in row["annotations"]
    }


# ---------------------------------------------------------------- V3Det


def test_v3det_is_coco_layout_with_boxes_and_without_ids(tmp_path):
    body = {
        "images": [{"id": 3, "file_name": "images/n07745046/21_c.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"image_id": 3, "category_id": 9, "bbox": [1, 2, 5, 6], "iscrowd": 0, "area": 30},
            {"image_id": 3, "category_id": 9, "bbox": [1, 2, 0, 6], "iscrowd": 1, "area": 0},
        ],
        "categories": [{"id": 9, "name": "quince", "name_zh": "x", "cat_info": "y", "novel": False}],
    }
    (tmp_path / "v3det.json").write_text(json.dumps(body))
    (row,), rejects = read_all(build_reader("coco", source=f"{tmp_path}/v3det.json", images=str(tmp_path)))
    assert rejects == [] and row["image_uri"] == f"{tmp_path}/images/n07745046/21_c.jpg"
    assert boxes_of(row) == {
        "1": ([1, 2, 6, 8], "quince", ["box_only"]),
        "2": (None, "quince", ["crowd", "empty", "box_only"]),
    }


# ---------------------------------------------------------------- Visual7W


def box(
    box_id: Any, x: Any = 2, y: Any = 3, width: Any = 4, height: Any = 5, **fields: Any
) -> dict[str, Any]:
    return {"box_id": box_id, "name": "cup", "x": x, "y": y, "width": width, "height": height, **fields}


def pair(qa_id: Any, answer: Any, question: Any = "Which holds water?") -> dict[str, Any]:
    choices = {"multiple_choices": [7, 8, 9], "type": "which"}
    return {"qa_id": qa_id, "question": question, "answer": answer, **choices}


def image(*pairs: Any, name: Any = "v7w_1.jpg", split: Any = "val") -> dict[str, Any]:
    return {"image_id": 1, "filename": name, "split": split, "qa_pairs": [*pairs]}


def visual7w(folder: Path, boxes: Any, images: Any, **options: Any) -> Reader:
    body = {"dataset": "visual7w", "boxes": boxes, "images": images}
    put(folder, {"a/v7w_1.jpg": PICTURE, "v7w.json": json.dumps(body).encode()})
    place = {"source": f"{folder}/v7w.json", "images": f"{folder}/a", "dataset": "v", "split": "val"}
    return build_reader("visual7w", **{**place, **options})


def test_a_question_points_at_its_box_cut_to_the_image(tmp_path):
    boxes = [box(1, -1, -1), box(2, WIDTH - 2, HEIGHT - 3, 90, 90, name=5), box(3), box(4)]
    images = [image(pair(10, 1), pair(11, 2, "Which?"), pair(12, 1)), image(pair(13, 3), split="train")]
    (row,), rejects = read_all(visual7w(tmp_path, boxes, images))
    assert rejects == [] and (row["height"], row["width"]) == (HEIGHT, WIDTH)
    assert boxes_of(row) == {
        "1": ([0, 0, 3, 4], "cup", ["box_only"]),
        "2": ([WIDTH - 2, HEIGHT - 3, WIDTH, HEIGHT], None, ["box_only"]),
    }
    first = ("Which holds water?", ["1"])
    assert said(row) == {"10": first, "11": ("Which?", ["2"]), "12": first}


def test_boxes_and_questions_at_fault_are_counted(tmp_path):
    boxes = [box(1), box(2, 99, 99), box(3, width=0), box(4, x="2"), box(5), box(5, 3), box(None), 7]
    pairs = [pair(10, 1), pair(11, 2), pair(12, 3), pair(13, 4), pair(14, 5), pair(15, 77), pair(16, None)]
    pairs += [pair(17, 1, ""), pair(18, 1, None), 3, pair(10, 2), pair(None, 1), pair(20, 1), pair(20, 1)]
    images = [image(*pairs), image(pair(1, 1), name=None), image(pair(2, 1), name="../x.jpg"), 5]
    images += [image(pair(3, 1), name="v7w_9.jpg"), {"split": "val"}]
    (row,), rejects = read_all(visual7w(tmp_path, boxes, images))
    assert (list(boxes_of(row)) == ["1"] and list(said(row)) == ["#12", "11", "12", "13", "20"]) or said(row)
    assert reasons(rejects) == [
        ("annotation_targets", "v7w_1.jpg", "annotation 14", 0),
        ("annotation_targets", "v7w_1.jpg", "annotation 15", 0),
        ("annotation_targets", "v7w_1.jpg", "annotation 16", 0),
        ("annotation_text", "v7w_1.jpg", "annotation #10", 0),
        ("annotation_text", "v7w_1.jpg", "annotation 17", 0),
        ("annotation_text", "v7w_1.jpg", "annotation 18", 0),
        ("bbox", "v7w_1.jpg", "4", 1),
        ("box_outside", "v7w_1.jpg", "2", 1),
        ("box_outside", "v7w_1.jpg", "3", 1),
        ("duplicate_annotation_id", "v7w_1.jpg", "annotation 10", 0),
        ("duplicate_annotation_id", "v7w_1.jpg", "annotation 10", 0),
        ("duplicate_annotation_id", "v7w_1.jpg", "annotation 20", 0),
        ("image_missing", "v7w_9.jpg", "", 1),
        ("image_path", "?", "annotation 1", 0),
        ("image_record", "#4", "", 0),
        ("image_record", "#6", "", 0),
        ("unsafe_path", "../x.jpg", "", 1),
    ]


def test_a_split_and_a_layout_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no image of the split 'test'; it has val \(1\)"):
        list(visual7w(tmp_path, [box(1)], [image(pair(1, 1))], split="test").inputs())
    for boxes, images in (([], [image()]), ({}, [image()]), ([box(1)], None)):
        with pytest.raises(DataError, match="expected an object with both lists"):
            list(visual7w(tmp_path, boxes, images).inputs())
    for raw in (b"", b'{"boxes": [', b"[1]"):
        put(tmp_path, {"v7w.json": raw})
        with pytest.raises(DataError):
            place = {"source": f"{tmp_path}/v7w.json", "images": f"{tmp_path}/a", "split": "val"}
            list(build_reader("visual7w", **place).inputs())


# ---------------------------------------------------------------- InViG


def line(number: Any = 7, name: Any = "a.jpg", size: Any = (HEIGHT, WIDTH), **about: Any) -> dict[str, Any]:
    ann = {"bboxes": [], "ref_exp": "the man", "questions": ["Which?"], "answers": ["Left."], **about}
    ann = {"ref_bboxes": [1, 2, 6, 8], **ann}
    return {"filename": name, "height": size[0], "width": size[1], "id": number, "label": "x", "ann": ann}


def invig(folder: Path, *lines: Any) -> Reader:
    raw = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    put(folder, {"imgs/a.jpg": PICTURE, "anns.jsonl": raw.encode()})
    return build_reader("invig", source=f"{folder}/anns.jsonl", images=f"{folder}/imgs", dataset="i")


def test_a_dialogue_ends_with_its_boxes_in_either_form(tmp_path):
    two = line(8, ref_bboxes=[[1, 2, 6, 8], [-3, 0, 2, 99]], questions=[], answers=[])
    (row,), rejects = read_all(invig(tmp_path, line(), two))
    assert rejects == [] and boxes_of(row) == {
        "7-1": ([1, 2, 6, 8], None, ["box_only"]),
        "8-1": ([1, 2, 6, 8], None, ["box_only"]),
        "8-2": ([0, 0, 2, HEIGHT], None, ["box_only"]),
    }
    turns = [("user", "the man"), ("assistant", "Which?"), ("user", "Left."), ("assistant", "<mask 0>")]
    end = ("assistant", "<mask 0> <mask 1>")
    assert said(row) == {
        "7": ([{"role": who, "text": text} for who, text in turns], ["7-1"]),
        "8": ([{"role": who, "text": text} for who, text in (turns[0], end)], ["8-1", "8-2"]),
    }


FAULTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cut": ('{"filename": "a.j', ("json", "?", "annotation #2", 0)),
    "no object": ([1], ("image_path", "?", "annotation #2", 0)),
    "no image": (line(name=None), ("image_path", "?", "annotation 7", 0)),
    "no boxes": (line(ref_bboxes=[]), ("annotation_targets", "a.jpg", "annotation 7", 0)),
    "boxes of another kind": (line(ref_bboxes="x"), ("annotation_targets", "a.jpg", "annotation 7", 0)),
    "a box twice": (line(ref_bboxes=[[1, 2, 3, 4]] * 2), ("annotation_targets", "a.jpg", "annotation 7", 0)),
    "no answers": (line(answers=None), ("dialogue", "a.jpg", "annotation 7", 0)),
    "too few answers": (line(answers=[]), ("dialogue", "a.jpg", "annotation 7", 0)),
    "an empty answer": (line(answers=[" "]), ("annotation_text", "a.jpg", "annotation 7", 0)),
    "a mark of ours": (line(ref_exp="<mask 0>"), ("dialogue", "a.jpg", "annotation 7", 0)),
    "three numbers": (line(ref_bboxes=[1, 2, 3]), ("bbox", "a.jpg", "7-1", 1)),
    "not finite": (line(ref_bboxes=[1, 2, float("nan"), 4]), ("bbox", "a.jpg", "7-1", 1)),
    "a box outside": (line(ref_bboxes=[90, 2, 95, 4]), ("box_outside", "a.jpg", "7-1", 1)),
    "a box the wrong way": (line(ref_bboxes=[6, 8, 1, 2]), ("box_outside", "a.jpg", "7-1", 1)),
    "no size": (line(name="b.jpg", size=(0, 5)), ("image_size", "b.jpg", "", 1)),
    "a place above": (line(name="../a.jpg"), ("unsafe_path", "../a.jpg", "", 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_line_at_fault_is_one_reject_and_the_others_stay(tmp_path, fault):
    bad, expected = FAULTS[fault]
    rows, rejects = read_all(invig(tmp_path, line(9), bad))
    assert reasons(rejects) == [expected]
    assert [row["image_id"] for row in rows] == ["a.jpg"] and "9-1" in boxes_of(rows[0])


def test_ids_that_repeat_and_sizes_that_differ_are_rejected(tmp_path):
    lines = [line(), line(), line(8), line(8, ref_exp="other"), line(9, "c.jpg"), line(10, "c.jpg", (9, 9))]
    (row,), rejects = read_all(invig(tmp_path, *lines))
    assert list(boxes_of(row)) == ["7-1"]
    assert reasons(rejects) == [
        ("duplicate_annotation_id", "a.jpg", "annotation 7", 0),
        ("duplicate_annotation_id", "a.jpg", "annotation 8", 0),
        ("duplicate_annotation_id", "a.jpg", "annotation 8", 0),
        ("image_size", "c.jpg", "", 2),
    ]


# ---------------------------------------------------------------- Cops-Ref


def cops(box: Any = (1, 2, 20, 6), image_id: Any = 5, **fields: Any) -> dict[str, Any]:
    kept = {"image_id": image_id, "box": box, "expression": "the cup", "split": "val", "logic": "and"}
    return {**kept, **fields}


def copsref(folder: Path, *refs: Any, **options: Any) -> Reader:
    put(folder, {"vg/5.jpg": PICTURE, "data.json": json.dumps({"refs": refs, "more": {}}).encode()})
    place = {"source": f"{folder}/data.json", "images": f"{folder}/vg", "dataset": "c", "split": "val"}
    return build_reader("copsref", **{**place, **options})


def test_refs_name_their_box_in_the_order_that_is_said(tmp_path):
    refs = [
        None,
        cops(),
        cops(None),
        cops(split="train"),
        cops([0, 0, 99, 4]),
        cops([1, 2, 3]),
        cops(image_id=6),
    ]
    refs += [cops(expression=None), cops(image_id=None), cops(split=None), cops(["1", 2, 3, 4])]
    (row,), rejects = read_all(copsref(tmp_path, *refs, *[cops([1, 1, 9, 8])] * 60))
    found = boxes_of(row)
    assert found["2"] == ([1, 2, 21, 8], None, ["box_only"]) and len(found) == 62
    assert found["5"] == ([0, 0, WIDTH, 4], None, ["box_only"])
    assert said(row)["2"] == ("the cup", ["2"])
    assert reasons(rejects) == [
        ("annotation_record", "5.jpg", "annotation 10", 0),
        ("annotation_record", "?", "annotation 1", 0),
        ("annotation_record", "?", "annotation 9", 0),
        ("annotation_targets", "5.jpg", "annotation 3", 0),
        ("annotation_targets", "5.jpg", "annotation 6", 0),
        ("annotation_text", "5.jpg", "annotation 8", 0),
        ("bbox", "5.jpg", "11", 1),
        ("image_missing", "6.jpg", "", 1),
    ]


def test_the_wrong_order_of_boxes_is_refused_with_the_right_one(tmp_path):
    refs = [cops([1, 2, 6, 25]), cops([1, 2, 3, 4])]
    with pytest.raises(
        ConfigError, match="of 2 boxes .* 1 leave .* is xywh, and 0 .* set --corpus.box-order to xyhw"
    ):
        list(copsref(tmp_path, *refs).inputs())
    (row,), _ = read_all(copsref(tmp_path, *refs, box_order="xyhw"))
    assert boxes_of(row)["1"][0] == [1, 2, 26, 8]


def test_a_file_without_refs_or_of_other_splits_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no refs of the split 'test'; it has val \(1\)"):
        list(copsref(tmp_path, cops(), split="test").inputs())
    for raw in (b"", b"[]", b'{"refs": 5}', b'{"refs": [{"box"'):
        reader = copsref(tmp_path)
        put(tmp_path, {"data.json": raw})
        with pytest.raises(DataError):
            list(reader.inputs())


# ---------------------------------------------------------------- all of them


VALUES = st.sampled_from([None, True, 0, -1, 2.5, 1e300, float("nan"), 2**80, "", "x", "\ud800", [], {}, 1])
BOX = st.one_of(VALUES, st.lists(st.one_of(VALUES, st.integers(-5, 40)), max_size=5))
LINE = st.one_of(
    VALUES,
    st.builds(
        lambda number, name, size, about: line(number, name, size, **about),
        VALUES,
        st.sampled_from(["a.jpg", "b.jpg", "", None, "../a.jpg"]),
        st.tuples(VALUES, VALUES) | st.just((HEIGHT, WIDTH)),
        st.fixed_dictionaries(
            {},
            optional={
                "ref_bboxes": st.one_of(BOX, st.lists(BOX, max_size=3)),
                "ref_exp": VALUES,
                "questions": st.one_of(VALUES, st.lists(VALUES, max_size=2)),
                "answers": st.one_of(VALUES, st.lists(VALUES, max_size=2)),
            },
        ),
    ),
)


@pytest.mark.slow
@pytest.mark.numerics
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, max_size=4))
def test_any_lines_of_invig_are_read_or_rejected(tmp_path, lines):
    texts = [one if isinstance(one, dict) else json.dumps(one) for one in lines]
    rows, rejects = read_all(invig(tmp_path, line("last"), *texts))
    lost = [one for one in rejects if (one["mask_id"] or "").startswith("annotation ")]
    images = [one for one in rejects if one["mask_id"] is None]  # each with one line or more
    kept = sum(len(row["annotations"]) for row in rows)
    assert kept + len(lost) + len(images) <= len(lines) + 1
    assert images or kept + len(lost) == len(lines) + 1


@pytest.mark.slow
@pytest.mark.numerics
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(VALUES, st.builds(box, VALUES, VALUES, VALUES, VALUES, VALUES)), max_size=4),
    st.lists(st.one_of(VALUES, st.builds(pair, VALUES, VALUES, VALUES)), max_size=4),
    st.lists(VALUES, max_size=2),
)
def test_any_entries_of_visual7w_are_read_or_rejected(tmp_path, boxes, pairs, others):
    images = [image(*pairs), *others, image(pair("last", "last"))]
    rows, rejects = read_all(visual7w(tmp_path, [*boxes, box("last")], images))
    lost = [one for one in rejects if (one["mask_id"] or "").startswith("annotation ")]
    assert sum(len(row["annotations"]) for row in rows) + len(lost) == len(pairs) + 1


@pytest.mark.slow
@pytest.mark.numerics
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(VALUES, st.builds(cops, BOX, VALUES, split=VALUES, expression=VALUES)), max_size=5))
def test_any_refs_of_copsref_are_read_or_rejected(tmp_path, refs):
    rows, rejects = read_all(copsref(tmp_path, *refs, cops([1, 1, 2, 2])))
    (row,) = (row for row in rows if row["image_id"] == "5.jpg")
    assert [made["annotation_id"] for made in row["annotations"]] == [str(len(refs) + 1)]
    others = [ref for ref in refs if isinstance(ref, dict) and isinstance(ref.get("split"), str)]
    assert len(rejects) == len(refs) - len(others)


def test_a_head_and_a_witness_are_those_of_the_file(tmp_path):
    reader = invig(tmp_path, line(1, "a.jpg"), line(2, "b.jpg"), line(3, "c.jpg"))
    head = reader.head(2)
    assert [item.key for item in head.items if isinstance(item, Input)] == ["a.jpg", "b.jpg"] and head.more
    assert set(reader.witness()) == {"anns.jsonl"} and len(inputs_of(reader)) == 3


@pytest.mark.slow
def test_a_corpus_on_s3_is_read_as_on_a_disk(tmp_path, bucket):
    def readers(root: str) -> list[Reader]:
        body = {"boxes": [box(1)], "images": [image(pair(1, 1))]}
        files = {"v7w.json": json.dumps(body).encode(), "a/v7w_1.jpg": PICTURE}
        put(root, {**files, "i.jsonl": json.dumps(line(name="v7w_1.jpg")).encode()})
        place = {"images": f"{root}/a", "split": "val", "dataset": "b"}
        sources = {"visual7w": "v7w.json", "invig": "i.jsonl"}
        return [build_reader(kind, source=f"{root}/{name}", **place) for kind, name in sources.items()]

    for there, here in zip(readers(f"{bucket}/boxes"), readers(str(tmp_path)), strict=True):
        assert inputs_of(there) == inputs_of(here) and there.witness() == here.witness()
        found, expected = read_all(there), read_all(here)
        for row in found[0]:
            row["image_uri"] = row["image_uri"].replace(f"{bucket}/boxes", str(tmp_path))
        assert found == expected and len(found[0]) == 1
