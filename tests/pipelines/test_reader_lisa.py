"""LISA++: questions joined with objects of COCO by their ids, siblings with answers, and what is lost."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import storage
from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.reader import Input, Reader
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.shapes import WorldConfig, make_scene
from tests.folders import HEIGHT, SQUARE_RLE, WIDTH
from tests.label_maps import inputs_of, reasons
from tests.readers import build_reader, read_all

RLE = {"size": [HEIGHT, WIDTH], "counts": SQUARE_RLE}
NAME = "000000000005.jpg"


def asked(*ids: Any, name: Any = NAME, **fields: Any) -> dict[str, Any]:
    points = {str(one): {"label name": "box", "polygon": [[1, 1, 2, 2, 3, 1]]} for one in ids}
    return {
        "English Question": "What holds water?",
        "img_path": name,
        "ID": [*ids],
        "points": points,
        **fields,
    }


def talk(output: Any, name: Any = NAME) -> dict[str, Any]:
    return {"img_pth": name, "info": "x", "output": output}


def answered(answer: Any, question: Any = "Where is it?", name: Any = NAME) -> dict[str, Any]:
    return {"image_path": name, "info": [], "English Question": question, "English Answer": answer}


def image(image_id: int = 5) -> dict[str, Any]:
    return {"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": HEIGHT, "width": WIDTH}


def thing(identity: Any, image_id: int = 5, segmentation: Any = RLE) -> dict[str, Any]:
    return {"id": identity, "image_id": image_id, "category_id": 1, "segmentation": segmentation}


IMAGES = [image(5), image(6), image(7)]
THINGS = [thing(1), thing(2), thing(3), thing(4, 6), thing(9, 7)]


def write(folder: Path, entries: Any, things: Any = THINGS, images: Any = IMAGES, **options: Any) -> Reader:
    raw = entries if isinstance(entries, str) else json.dumps(entries)
    (folder / "data.json").write_text(raw)
    body = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "box"}]}
    (folder / "instances_train2017.json").write_text(json.dumps(body))
    place = {"source": f"{folder}/data.json", "images": f"{folder}/train2017", "dataset": "l"}
    return build_reader("lisa", **{**place, **options})


def said(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (made["annotation_id"], made["task"], made["text"] or json.loads(made["payload"]), made["mask_ids"])
        for row in rows
        for made in row["annotations"]
    ]


def test_a_question_means_the_objects_with_its_ids_and_a_row_has_no_others(tmp_path):
    entries = [asked("3", "1"), asked("4", name="train2017/000000000006.jpg"), asked(1, 1.0, "01")]
    rows, rejects = read_all(write(tmp_path, entries))
    assert rejects == [] and [row["image_id"] for row in rows] == ["5", "6"]
    assert said(rows) == [
        ("1", "referring", "What holds water?", ["3", "1"]),
        ("3", "referring", "What holds water?", ["1"]),
        ("2", "referring", "What holds water?", ["4"]),
    ]
    assert [[mask["mask_id"] for mask in row["masks"]] for row in rows] == [["1", "3"], ["4"]]
    assert all(mask["rle"] == SQUARE_RLE and mask["label"] == "box" for mask in rows[0]["masks"])
    assert rows[0]["image_uri"] == f"{tmp_path}/train2017/{NAME}"


def test_conversations_name_their_masks_in_each_published_way(tmp_path):
    output = "<person>: What is on the <3|big table>?\n<robot>: 《1|a cup》 and plate <2>.\n"
    longer = output + "<person>: And left of 《3|》? <robot>:Nothing."
    rows, rejects = read_all(write(tmp_path, [talk(output), talk(longer)]))
    question = "What is on the big table <mask 0>?"
    answer = "a cup <mask 1> and plate <mask 2>."
    turns = [("user", question), ("assistant", answer), ("user", "And left of <mask 0>?")]
    turns.append(("assistant", "Nothing."))
    assert rejects == [] and said(rows) == [
        ("1", "region_qa", {"question": question, "answer": answer}, ["3", "1", "2"]),
        ("2", "dialogue", {"turns": [{"role": who, "text": text} for who, text in turns]}, ["3", "1", "2"]),
    ]


def test_answers_and_captions_are_read_where_they_name_objects(tmp_path):
    rows, rejects = read_all(write(tmp_path, [answered("The <2|cup>."), answered("A cup.")]))
    payload = {"question": "Where is it?", "answer": "The cup <mask 0>."}
    assert said(rows) == [("1", "region_qa", payload, ["2"])]
    assert reasons(rejects) == [("annotation_targets", "5", "annotation 2", 0)]
    assert "no text names an object" in rejects[0]["message"]


def test_ids_of_no_object_of_the_image_are_told_and_the_others_stay(tmp_path):
    broken = thing(2, segmentation={"size": [9, 9], "counts": "abc"})
    things = [thing(1), broken, thing(3), thing(3, segmentation=[]), thing(4, 6), thing(8, 99)]
    things += [thing(30, segmentation=[[1, 2]]), {"image_id": 5}]
    rows, rejects = read_all(write(tmp_path, [asked(1, 2, 3, 4, 77, 8), asked(4)], things))
    assert [made["mask_ids"] for made in rows[0]["annotations"]] == [["1", "2", "3", "4", "77", "8"], ["4"]]
    assert [mask["mask_id"] for mask in rows[0]["masks"]] == ["1"]
    assert reasons(rejects) == [
        ("duplicate_annotation_id", "5", "3", 1),
        ("duplicate_annotation_id", "5", "3", 1),
        ("rle_size", "5", "2", 1),
        ("unknown_image", "99", "8", 1),
        ("unknown_mask", "5", "3", 0),
        ("unknown_mask", "5", "4", 0),
        ("unknown_mask", "5", "77", 0),
        ("unknown_mask", "5", "8", 0),
    ]


FAULTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "no object": (7, ("image_id", "?")),
    "no image": (asked(1, name=None), ("image_id", "?")),
    "an image without a number": (asked(1, name="../../etc/passwd"), ("image_id", "?")),
    "an image of another kind": (asked(1, name=["a"]), ("image_id", "?")),
    "an image that is not there": (asked(1, name="000000000404.jpg"), ("unknown_image", "404")),
    "no ids": (asked(), ("annotation_targets", "5")),
    "ids of another kind": (asked(1, None), ("annotation_targets", "5")),
    "ids that are no numbers": (asked("x1"), ("annotation_targets", "5")),
    "an endless id": (asked("9" * 5000), ("annotation_targets", "5")),
    "no question": (asked(1, **{"English Question": None}), ("annotation_text", "5")),
    "half a character": (asked(1, **{"English Question": "\ud800"}), ("annotation_text", "5")),
    "no turns": (talk("hello <1|a>"), ("dialogue", "5")),
    "something before the turns": (talk("so <person>: <1|a> <robot>: b"), ("dialogue", "5")),
    "no answer": (talk("<person>: <1|a>"), ("dialogue", "5")),
    "an answer first": (talk("<robot>: <1|a> <person>: b"), ("dialogue", "5")),
    "an empty turn": (talk("<person>: <1|a> <robot>: "), ("annotation_text", "5")),
    "turns of another kind": (talk([1]), ("dialogue", "5")),
    "a mark of ours": (talk("<person>: <mask 0> <robot>: <1|a>"), ("dialogue", "5")),
    "an answer of another kind": (answered(None), ("annotation_text", "5")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_entry_at_fault_is_one_reject_of_no_mask_and_the_others_stay(tmp_path, fault):
    bad, (reason, image_id) = FAULTS[fault]
    rows, rejects = read_all(write(tmp_path, [bad, asked(2)]))
    assert [made[0] for made in said(rows)] == ["2"] and len(rows[0]["masks"]) == 1
    assert reasons(rejects) == [(reason, image_id, "annotation 1", 0)]


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        ("", DataError, "has 0 entries, none of which names an image"),
        ("[]", DataError, "has 0 entries"),
        ('{"images": [], "annotations": []}', DataError, "1 entries, none of which names an image"),
        ('[{"img_path": "a.jpg"}, 5]', None, ""),
        ('[{"img_path": "a.jpg"', ConfigError, "is a JSON list that does not end: it was cut off"),
        ('{"a":\n 5}', ConfigError, "expected one object per line"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, raw, error, message):
    reader = write(tmp_path, raw)
    if error is None:
        assert [one["reason"] for one in read_all(reader)[1]] == ["image_id", "image_id"]
        return
    with pytest.raises(error, match=message):
        list(reader.inputs())


def test_the_objects_may_lie_elsewhere_and_must_be_there(tmp_path):
    write(tmp_path, [asked(1)])
    (tmp_path / "more").mkdir()
    (tmp_path / "instances_train2017.json").rename(tmp_path / "more" / "objects.json")
    place = {"source": f"{tmp_path}/data.json", "images": str(tmp_path)}
    reader = build_reader("lisa", instances=f"{tmp_path}/more/objects.json", **place)
    assert len(read_all(reader)[0]) == 1 and set(reader.witness()) == {"data.json", "objects.json"}
    with pytest.raises(storage.NotFoundError, match=r"instances_train2017\.json"):
        list(build_reader("lisa", **place).inputs())


def test_a_head_has_the_first_images_or_counts_those_of_a_large_file(tmp_path, monkeypatch):
    reader = write(tmp_path, [asked(1), asked(4, name="000000000006.jpg"), asked(9, name="000000000007.jpg")])
    head = reader.head(2)
    assert [item.key for item in head.items if isinstance(item, Input)] == ["5", "6"] and head.more
    monkeypatch.setattr(type(reader), "max_head_bytes", 10)
    assert reader.head(2).unlisted == 2


ENTRY = st.one_of(
    st.sampled_from([None, 5, [], {}, "x"]),
    st.fixed_dictionaries(
        {},
        optional={
            "img_path": st.sampled_from([NAME, "000000000006.jpg", "x", None, 7, "\ud800", "../5.jpg"]),
            "img_pth": st.sampled_from([NAME, None]),
            "ID": st.sampled_from([["1"], [1, 2], ["77"], [], None, "3", [True], [2**70], [1.5], {}]),
            "English Question": st.sampled_from(["a", "", None, 5, "<1|x>", "《2|x"]),
            "English Answer": st.sampled_from(["<1|x>", "b", None, []]),
            "output": st.sampled_from(["<person>: <1> <robot>: 《2|b》", "<robot>:", "", None, 3]),
        },
    ),
)


@pytest.mark.slow
@pytest.mark.numerics
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(ENTRY, max_size=5), order=st.randoms(use_true_random=False))
def test_each_entry_is_an_annotation_or_a_reject_whatever_it_holds(tmp_path, entries, order: random.Random):
    entries = [*entries, asked(3)]
    rows, rejects = read_all(write(tmp_path, entries))
    told = [int(made[0]) for made in said(rows)]
    lost = [entry["mask_id"] for entry in rejects if (entry["mask_id"] or "").startswith("annotation ")]
    assert sorted([*told, *(int(name.split()[1]) for name in lost)]) == list(range(1, len(entries) + 1))
    shuffled = order.sample(entries, len(entries))
    again = read_all(write(tmp_path, shuffled, order.sample(THINGS, len(THINGS))))
    assert [row["masks"] for row in again[0]] == [row["masks"] for row in rows]
    texts = [sorted(json.dumps(made[1:]) for made in said(found)) for found in (rows, again[0])]
    assert texts[0] == texts[1]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_of_any_bytes_is_read_or_refused(tmp_path, data):
    reader = write(tmp_path, [asked(1), talk("<person>: <1|a> <robot>: b")])
    for name in ("data.json", "instances_train2017.json"):
        raw = bytearray((tmp_path / name).read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
            raw[place] = data.draw(st.integers(0, 255))
        (tmp_path / name).write_bytes(raw)
    try:
        read_all(reader)
    except (ConfigError, DataError):
        return


# ---------------------------------------------------------------- the synthetic corpus


WORLD = WorldConfig.square(48)


def synthetic(root: str) -> tuple[ShapesConfig, Reader]:
    config = ShapesConfig(out=root, format="lisa", num_images=6, seed=4, world=WORLD)
    write_shapes(config)
    return config, build_reader("lisa", source=f"{root}/data.json", images=f"{root}/train", dataset="s")


def test_the_synthetic_corpus_is_read_back_as_it_was_written(tmp_path):
    config, reader = synthetic(str(tmp_path))
    rows, rejects = read_all(reader)
    entries = json.loads((tmp_path / "data.json").read_bytes())
    assert rejects == [] and sum(len(row["annotations"]) for row in rows) == len(entries) > 6
    for row in rows:
        scene = make_scene(config.seed, int(row["image_id"]) - 1, config.world)
        expected = {
            str(100 * int(row["image_id"]) + number): (masks.encode(shape.mask), shape.kind)
            for number, shape in enumerate(scene.objects, start=1)
        }
        found = {mask["mask_id"]: (mask["rle"], mask["label"]) for mask in row["masks"]}
        assert found.items() <= expected.items()
        assert set(found) == {name for made in row["annotations"] for name in made["mask_ids"]}
        for made in row["annotations"]:
            entry = entries[int(made["annotation_id"]) - 1]
            assert (made["text"], made["mask_ids"]) == (entry["English Question"], entry["ID"])
        assert read_size_hw(row["image_uri"]) == (row["height"], row["width"])


@pytest.mark.slow
def test_a_corpus_on_s3_is_read_as_on_a_disk(tmp_path, bucket):
    _, there = synthetic(f"{bucket}/lisa")
    _, here = synthetic(str(tmp_path))
    assert inputs_of(there) == inputs_of(here) and there.witness() == here.witness()
    found, expected = read_all(there), read_all(here)
    for row in found[0]:
        row["image_uri"] = row["image_uri"].replace(f"{bucket}/lisa", str(tmp_path))
    assert found == expected
