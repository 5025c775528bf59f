"""SegLLM's conversations: brackets, rounds and their links, masks by ids in files of other datasets."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import storage
from pipelines.ingestion import mask_files
from pipelines.ingestion.reader import Reader
from pipelines.ingestion.segllm import SegllmReader
from pipelines.ingestion.segllm_rounds import NO_TARGET, rounds_of
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from pipelines.ingestion.synthetic.scenes import crowds
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.shapes import WorldConfig, make_scene, relations
from tests.label_maps import inputs_of, reasons
from tests.readers import build_reader, read_all

HEIGHT, WIDTH = 6, 8
WORLD = WorldConfig.square(48)
IMAGE = "train2014/COCO_train2014_000000000009.jpg"


def rle(column: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    mask = np.zeros(size, bool)
    mask[1:3, column] = True
    return {"size": list(size), "counts": masks.encode(mask)}


def talk(*texts: str) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text, "ind": i} for i, text in enumerate(texts)]
    return {"task": "segmentation", "base": "mr", "conversations": turns}


def decode(mask_id: Any, dataset: str = "refcoco", image: str = IMAGE) -> str:
    return f"[MASK-DECODE:{image}|{dataset}|{mask_id}]"


def encode(mask_id: Any, kind: str = "MASK", dataset: str = "refcoco", image: str = IMAGE) -> str:
    return f"[{kind}-ENCODE:{image}|{dataset}|{mask_id}]"


ASK = f"[IMAGE256:{IMAGE}] Where is the dog?"
TWO_ROUNDS = talk(
    ASK,
    f"It is {decode(1)}.",
    f"And the cat next to {encode(1)}{encode(1, 'BOX')}?",
    f"{decode(2)}.",
)


def write_instances(folder: Path, more: Any = (), *, name: str = "instances.json") -> None:
    images = [{"id": 9, "height": HEIGHT, "width": WIDTH, "file_name": "x.jpg"}]
    images += [{"id": 7, "height": HEIGHT, "width": WIDTH, "file_name": "y.jpg"}]
    shape = {"image_id": 9, "category_id": 1, "iscrowd": 0}
    found = [{"id": number, "segmentation": rle(number), **shape} for number in (1, 2, 3)]
    found[2] |= {"segmentation": [[0, 0, 4, 0, 4, 3, 0, 3]], "iscrowd": 1, "note": "\u00fc"}
    body = {"annotations": [*found, *more], "categories": [{"id": 1, "name": "dog"}], "images": images}
    (folder / name).write_text(json.dumps(body, ensure_ascii=False))


def write(folder: Path, *conversations: Any, image: str = IMAGE, **files: Any) -> SegllmReader:
    """Writes a corpus; ``files`` are objects by id, of their datasets."""
    place = folder / "images" / image
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(place)
    if not (folder / "instances.json").exists():
        write_instances(folder)
    (folder / "mr.json").write_text(json.dumps(conversations))
    named = [f"refcoco={folder}/instances.json"]
    for word, content in files.items():
        if isinstance(content, dict):
            (folder / f"{word}.json").write_text(json.dumps(content))
        named.append(f"{word}={content if isinstance(content, str) else f'{folder}/{word}.json'}")
    return reader_of(folder, tuple(named))


def reader_of(folder: Path | str, named: tuple[str, ...], file: str = "mr.json") -> Any:
    place = {"source": f"{folder}/{file}", "images": f"{folder}/images", "dataset": "s"}
    return build_reader("segllm", mask_files=named, **place)


def payload(row: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return json.loads(row["annotations"][index]["payload"])


# --- conversations ----------------------------------------------------------------------------------------


def test_rounds_keep_their_order_and_refer_to_earlier_ones():
    found = rounds_of(TWO_ROUNDS)
    assert found.image == IMAGE and [key.text for key in found.masks] == ["refcoco:1", "refcoco:2"]
    texts = ["Where is the dog?", "It is <mask 0>.", "And the cat next to <mask 0>?", "<mask 1>."]
    assert found.turns == [
        {"role": role, "text": text} for role, text in zip(["user", "assistant"] * 2, texts, strict=True)
    ]
    links = [{"mask": 0, "round": 0, "form": form} for form in ("mask", "box")]
    assert found.rounds == [{"targets": [0], "references": []}, {"targets": [1], "references": links}]


@pytest.mark.parametrize("mask_id", ["", "'", "none"])
def test_an_id_of_no_mask_is_an_answer_without_target(mask_id):
    found = rounds_of(talk(ASK, decode(mask_id)))
    assert found.turns[1]["text"] == NO_TARGET and found.masks == []
    assert found.rounds == [{"targets": [], "references": []}]
    assert rounds_of(talk(ASK, f"Nothing{decode(mask_id)}.")).turns[1]["text"] == "Nothing."


@pytest.mark.parametrize("references", [["1"], ["1", "3"]])
def test_the_form_with_colons_has_a_task_and_references(references):
    bracket = f"[MASK-DECODE:{':'.join(['spatial', *references, '2', IMAGE, 'refcoco'])}]"
    found = rounds_of(talk(ASK, f"{decode(1)}, {decode(3)}.", "What is beside?", f"It is {bracket}."))
    assert found.turns[3]["text"] == "It is <mask 2>."
    links = [{"mask": mask, "round": 0, "form": "answer"} for mask in range(len(references))]
    assert found.rounds[1] == {"targets": [2], "references": links, "task": "spatial"}


def test_a_reference_to_what_was_never_answered_has_no_round():
    found = rounds_of(talk(f"{ASK} Not {encode('1-a')}.", decode("9_b", "pascal")))
    assert found.rounds[0]["references"] == [{"mask": 0, "round": None, "form": "mask"}]
    assert [key.text for key in found.masks] == ["refcoco:1-a", "pascal:9_b"]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ((ASK, "[MASK-DECODE:a|refcoco]"), "bracket"),
        ((ASK, "[MASK-DECODE:a|b|c|d]"), "bracket"),
        ((ASK, "[MASK-DECODE:a:b:c:d]"), "bracket"),
        ((ASK, "[MASK-DECODE:|refcoco|1]"), "bracket"),
        ((ASK, "[MASK-DECODE:"), "bracket"),
        ((ASK, "[BOX-DECODE:a|refcoco|1]"), "bracket"),
        ((ASK, encode(1)), "bracket"),
        ((ASK + decode(1), "Here."), "bracket"),
        (("[IMAGE256: ]a", decode(1)), "bracket"),
        ((ASK + encode("none"), decode(1)), "bracket"),
        ((ASK, decode("x")), "mask_id"),
        ((ASK, decode("1.5")), "mask_id"),
        ((ASK, decode("9" * 30)), "mask_id"),
        ((ASK, decode(1, image="b.jpg")), "several_images"),
        (("Where?", "There."), "no_image"),
        ((f"[IMAGE256:{IMAGE}]", decode(1)), "annotation_text"),
        ((ASK, decode(1), "More?"), "dialogue"),
        ((ASK, "<mask 0>"), "dialogue"),
        ((), "dialogue"),
    ],
)
def test_any_other_bracket_is_refused(texts, reason):
    with pytest.raises(DataError) as caught:
        rounds_of(talk(*texts))
    assert caught.value.reason == reason


# --- masks by id ------------------------------------------------------------------------------------------


def test_conversations_of_an_image_are_one_row_with_the_masks_that_they_name(tmp_path):
    reader = write(tmp_path, talk(ASK, f"{decode(3)}."), TWO_ROUNDS)
    (row,), rejects = read_all(pickle.loads(pickle.dumps(reader)))
    assert not rejects and row["image_id"] == IMAGE and (row["height"], row["width"]) == (HEIGHT, WIDTH)
    found = {mask["mask_id"]: (mask["rle"], mask["label"], mask["flags"]) for mask in row["masks"]}
    polygon = masks.to_counts([[0, 0, 4, 0, 4, 3, 0, 3]], height=HEIGHT, width=WIDTH)
    assert found == {
        "refcoco:1": (rle(1)["counts"], "dog", []),
        "refcoco:2": (rle(2)["counts"], "dog", []),
        "refcoco:3": (polygon, "dog", ["crowd"]),
    }
    assert [made["mask_ids"] for made in row["annotations"]] == [["refcoco:1", "refcoco:2"], ["refcoco:3"]]
    assert payload(row)["rounds"] == rounds_of(TWO_ROUNDS).rounds
    assert sorted(reader.witness()) == ["masks of refcoco", "mr.json"]


def test_masks_of_objects_by_id_are_read(tmp_path):
    named = {"12": rle(0), "3_a": rle(1), "5": {"segmentation": rle(2), "image_dim": [HEIGHT, WIDTH]}}
    answers = [decode(12, "pascal"), decode("3_a", "visual_genome"), decode(5, "description_based_coco")]
    files = dict.fromkeys(("pascal", "visual_genome", "description_based_coco"), named)
    (row,), rejects = read_all(write(tmp_path, talk(ASK, ", ".join(answers)), **files))
    assert not rejects
    assert {mask["mask_id"]: mask["rle"] for mask in row["masks"]} == {
        "pascal:12": rle(0)["counts"],
        "visual_genome:3_a": rle(1)["counts"],
        "description_based_coco:5": rle(2)["counts"],
    }


def test_masks_of_classes_are_cut_out_of_the_map_of_the_image(tmp_path):
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[1:3, 1:4] = 3
    name = "COCO_train2014_000000000009.png"
    for folder in ("ade/train2014", "stuff"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / folder / name)
    places = {"ade20k": f"{tmp_path}/ade", "cocostuff": f"{tmp_path}/stuff"}
    answers = [decode(2, "ade20k"), decode(3, "cocostuff"), decode(0, "cocostuff"), decode(7, "cocostuff")]
    answers.append(decode("a_b", "cocostuff"))
    reader = write(tmp_path, talk(ASK, " ".join(answers)), **places)
    (row,), rejects = read_all(reader)
    found = {mask["mask_id"]: mask for mask in row["masks"]}
    counts = masks.encode(values == 3)
    assert found["ade20k:2"]["rle"] == found["cocostuff:3"]["rle"] == counts
    assert found["cocostuff:0"]["rle"] == masks.encode(values == 0)
    assert found["cocostuff:7"]["flags"] == ["empty"]
    assert reasons(rejects) == [("mask_id", IMAGE, "cocostuff:a_b", 1)]
    (tmp_path / "stuff" / name).unlink()
    (row,), rejects = read_all(reader)
    assert [one["reason"] for one in rejects if one["mask_id"] == "cocostuff:3"] == ["label_map_missing"]


def test_masks_that_cannot_be_used_are_rejected_and_the_conversation_stays(tmp_path):
    more = [
        {"id": 4, "image_id": 7, "segmentation": rle(1)},
        {"id": 5, "image_id": 9, "segmentation": rle(1, (3, 3))},
        {"id": 6, "image_id": 9, "segmentation": rle(1)},
        {"id": 6, "image_id": 9, "segmentation": rle(2)},
        {"id": 2, "image_id": 9, "category_id": 1, "iscrowd": 0, "segmentation": rle(2)},
        {"id": 8, "image_id": 9, "bbox": [1, 1, 2, 2]},
        {"id": None},
        7,
    ]
    write_instances(tmp_path, more)
    reader = write(tmp_path, talk(ASK, " ".join(map(decode, (1, 2, 4, 5, 6, 8, 99)))))
    (row,), rejects = read_all(reader)
    assert [(mask["mask_id"], mask["flags"]) for mask in row["masks"]] == [
        ("refcoco:1", []),
        ("refcoco:2", []),
        ("refcoco:8", ["box_only"]),
    ]
    assert reasons(rejects) == [
        ("duplicate_annotation_id", IMAGE, "refcoco:6", 1),
        ("other_image", IMAGE, "refcoco:4", 1),
        ("rle_size", IMAGE, "refcoco:5", 1),
        ("unknown_mask", IMAGE, "refcoco:99", 1),
    ]
    assert len(row["annotations"][0]["mask_ids"]) == 7


def test_conversations_that_cannot_be_used_are_rejected_with_their_place(tmp_path):
    reader = write(
        tmp_path,
        TWO_ROUNDS,
        TWO_ROUNDS,
        talk(ASK, decode(1, "reason")),
        talk(ASK, decode(1, "lvis")),
        talk(ASK, "[SEG-DECODE:1]"),
        {"conversations": None},
        5,
        talk("[IMAGE256:../a.jpg] A?", decode(1, image="../a.jpg")),
        talk("[IMAGE256:val2014/no.jpg] A?", decode(2, image="val2014/no.jpg")),
    )
    rows, rejects = read_all(reader)
    assert [row["image_id"] for row in rows] == [IMAGE]
    assert reasons(rejects) == [
        ("bracket", "#5", "", 0),
        ("dialogue", "#6", "", 0),
        ("dialogue", "#7", "", 0),
        ("duplicate_conversation", IMAGE, "annotation", 0),
        ("missing_image", "val2014/no.jpg", "", 1),
        ("no_mask_file", "#4", "", 0),
        ("unknown_dataset", "#3", "", 0),
        ("unsafe_path", "../a.jpg", "", 1),
    ]


def test_images_have_the_names_of_segllms_loader(tmp_path):
    names = ("coco/val2014/a.jpg", "VG_100K/b.jpg", "x/new_c.jpg")
    found = ("coco/train2014/a.jpg", "vg/VG_100K/b.jpg", "x/c.jpg")
    for place in found:
        write(tmp_path, image=place)
    texts = [talk(f"[IMAGE256:{name}] A?", decode("none", image=name)) for name in names]
    rows, rejects = read_all(write(tmp_path, *texts))
    assert not rejects and sorted(row["image_uri"] for row in rows) == sorted(
        f"{tmp_path}/images/{place}" for place in found
    )


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (
            lambda folder: (folder / "instances.json").write_text("[]"),
            DataError,
            "holds a list, expected COCO",
        ),
        (lambda folder: (folder / "instances.json").write_text("{}"), DataError, "expected COCO layout for"),
        (lambda folder: (folder / "instances.json").write_text('{"images": [{'), DataError, "is not JSON"),
        (lambda folder: (folder / "mr.json").write_text('[{"a": 1'), ConfigError, "it was cut off"),
        (
            lambda folder: (folder / "mr.json").write_text('{"a": 1}'),
            DataError,
            "no conversation that can be",
        ),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, break_it: Callable[[Path], Any], error, message):
    reader = write(tmp_path, TWO_ROUNDS)
    break_it(tmp_path)
    with pytest.raises(error, match=message):
        list(reader.inputs())


def test_an_empty_file_is_an_empty_corpus(tmp_path):
    assert read_all(write(tmp_path)) == ([], [])


def test_files_of_masks_that_changed_are_noticed(tmp_path):
    reader = write(tmp_path, TWO_ROUNDS)
    (item,) = inputs_of(reader)
    text = (tmp_path / "instances.json").read_text()
    (tmp_path / "instances.json").write_text(text.replace('"id": 1, "seg', '"id": 8, "seg'))
    assert [one["reason"] for one in reader.read(item).rejects] == ["mask_file_changed"]


@pytest.mark.parametrize(
    "named", [("refcoco",), ("refcoco=",), ("voc=a",), ("refcoco=a", "refcoco=b"), ("refcoco=gs://a/b",)]
)
def test_wrong_files_of_masks_are_refused(tmp_path, named):
    with pytest.raises(ConfigError, match="mask-files"):
        reader_of(tmp_path, named)


def test_of_large_files_images_are_counted(tmp_path, monkeypatch):
    reader = write(tmp_path, TWO_ROUNDS, talk(ASK, decode(3)), 5)
    whole = reader.head()
    assert len(whole.items) == 2 and not whole.more
    monkeypatch.setattr(SegllmReader, "max_head_bytes", 10)
    found = reader.head()
    assert (found.more, found.unlisted, len(found.items)) == (True, 1, 1)


# --- the synthetic corpus ---------------------------------------------------------------------------------


def synthetic(out: str, **fields: Any) -> tuple[ShapesConfig, Reader]:
    config = ShapesConfig(out=out, format="segllm", num_images=8, seed=4, world=WORLD, **fields)
    write_shapes(config)
    named = (f"refcoco={out}/instances.json",)
    place = {"source": f"{out}/mr_refcoco_train.json", "images": out, "dataset": "s"}
    return config, build_reader("segllm", mask_files=named, **place)


def check_synthetic(config: ShapesConfig, rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 8
    for row in rows:
        number = int(row["image_id"][-16:-4])
        scene = make_scene(4, number - 1, WORLD)
        ids = [f"refcoco:{number * 100 + i}" for i in range(1, len(scene.objects) + 1)]
        found = {mask["mask_id"]: mask for mask in row["masks"]}
        assert [found[one]["rle"] for one in ids] == [masks.encode(shape.mask) for shape in scene.objects]
        assert [found[one]["label"] for one in ids] == [shape.kind for shape in scene.objects]
        flags = [found[one]["flags"] == ["crowd"] for one in ids]
        assert flags == crowds(scene, config.crowd_share)
        (made,) = row["annotations"]
        assert made["mask_ids"] == ids
        body = json.loads(made["payload"])
        assert body["turns"][0]["text"] == "Segment every object."
        said = set()
        for turn, one in zip(body["turns"][2::2], body["rounds"][1:], strict=True):
            assert {link["form"] for link in one["references"]} == {"mask", "box"}
            assert {link["round"] for link in one["references"]} >= {0} or one["references"][0]["round"] > 0
            thing = one["references"][0]["mask"]
            word = turn["text"].removeprefix("Segment all that is ").removesuffix(f" <mask {thing}>.")
            said |= {(subject, word, thing) for subject in one["targets"]}
        assert said == set(relations(scene))


def test_the_synthetic_rounds_are_read_back_as_they_were_written(tmp_path):
    config, reader = synthetic(str(tmp_path), crowd_share=0.4)
    rows, rejects = read_all(reader)
    assert not rejects
    check_synthetic(config, rows)


@pytest.mark.slow
def test_a_corpus_on_s3_is_read_as_on_a_disk(tmp_path, bucket):
    config, there = synthetic(f"{bucket}/shapes", crowd_share=0.4)
    _, here = synthetic(str(tmp_path), crowd_share=0.4)
    assert inputs_of(there) == inputs_of(here) and there.witness() == here.witness()
    rows, rejects = read_all(there)
    assert not rejects
    check_synthetic(config, rows)
    storage.delete(f"{bucket}/shapes/train/000000000001.jpg")


IDS = st.sampled_from([1, 2, 3, 99, "", "none", "'", "x", "1_a", "-1", "1" * 40, "é"])
BRACKET = st.one_of(
    st.builds(decode, IDS, st.sampled_from(["refcoco", "lvis", "", "x"])),
    st.builds(encode, IDS, st.sampled_from(["MASK", "BOX", "SEG"])),
    st.just(f"[IMAGE256:{IMAGE}]"),
    st.sampled_from(
        ["[MASK-DECODE:", "]", "|", "<mask 0>", "a ", "<image>", "\ud800", f"[IMAGE256:{'x' * 300}]"]
    ),
    st.builds(lambda *parts: f"[MASK-DECODE:{':'.join(map(str, parts))}:{IMAGE}:refcoco]", IDS, IDS, IDS),
)
TEXT = st.lists(BRACKET, max_size=4).map("".join)
CONVERSATION = st.one_of(
    st.sampled_from([TWO_ROUNDS, None, 5, [], {}, {"conversations": [{}, {}]}]),
    st.lists(TEXT, max_size=4).map(lambda texts: talk(*texts)),
    st.lists(TEXT, max_size=3).map(lambda texts: talk(ASK, *texts)),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(CONVERSATION, max_size=5), order=st.randoms(use_true_random=False))
def test_whatever_conversations_say_they_are_read_or_rejected(tmp_path, found, order: random.Random):
    def read(body: list[Any]) -> Any:
        try:
            return read_all(write(tmp_path, *body))
        except DataError as error:
            assert error.reason == "segllm_layout"
            return [], []

    rows, rejects = read(found)
    again = read(order.sample(found, len(found)))
    assert again[0] == rows and len(again[1]) == len(rejects)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_of_masks_of_any_bytes_are_read_or_refused(tmp_path, data):
    write_instances(tmp_path)
    reader = write(tmp_path, TWO_ROUNDS)
    raw = bytearray((tmp_path / "instances.json").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    (tmp_path / "instances.json").write_bytes(raw[: data.draw(st.integers(len(raw) - 3, len(raw)))])
    try:
        rows, rejects = read_all(reader)
    except DataError:
        return
    assert sum(len(row["masks"]) for row in rows) + sum(one["num_masks"] for one in rejects) == 2


def test_places_are_kept_of_wanted_masks_only(tmp_path):
    write_instances(tmp_path)
    found = mask_files.places("refcoco", f"{tmp_path}/instances.json", {"2", "77"})
    assert list(found) == ["2"] and found["2"]["hw"] == [HEIGHT, WIDTH]
    offset, size = found["2"]["at"]
    raw = (tmp_path / "instances.json").read_bytes()[offset : offset + size]
    assert json.loads(raw)["id"] == 2
