"""Chats for other projects and of theirs: what is written is read back, and what cannot be is refused."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.compose_dialogues import main
from pipelines.chats.corpus import load_chat_corpus, rows_of, text_of, turns_of
from pipelines.dialogues.compose import TASKS, Settings, compose_row
from pipelines.dialogues.exchange import from_record
from pipelines.dialogues.exports import to_record
from pipelines.dialogues.style import STYLES
from pipelines.ingestion.image_source import read_image_bytes
from pipelines.mllm_evaluation.rows import inputs_of
from samtok.errors import DataError
from samtok.mllm.chat import IGNORE
from samtok.words import format_words
from tests.code_rows import NUM_CODES, NUM_LEVELS, random_row, write_words
from tests.jobs import read_manifest
from tests.tiny_mllm import build, loaded

SIZE: dict[str, Any] = {"num_codes": NUM_CODES, "num_levels": NUM_LEVELS}
READ = {**SIZE, "size_hw": lambda name: (200, 100)}
FORMATS = ("ms-swift", "llava", "openai")  # that say every chat as JSON
WORD, OTHER = (format_words(codes, num_codes=NUM_CODES) for codes in ((1, 2), (3, 4)))


def run(*flags: str) -> int:
    return main([*flags, "--tracking", "off", "--report-samples", "0"])


def spoken(row: dict) -> list[tuple]:
    """Returns what a chat says: role, parts and the codes of its masks, message by message."""
    codes = {mask["mask_id"]: (mask["image"], *mask["codes"]) for mask in row["masks"]}
    return [
        (
            message["role"],
            [part["image"] if part["text"] is None else part["text"] for part in message["content"]],
            [codes[mask_id] for mask_id in message["mask_ids"]],
        )
        for message in row["messages"]
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(FORMATS), st.integers(1, 3))
def test_a_chat_survives_the_way_out_and_back(made, kind, turns):
    row = random_row(random.Random(made))
    settings = Settings(**SIZE, tasks=dict.fromkeys(TASKS, 1.0), styles=STYLES, turns_per_sample=turns)
    for sample in compose_row(row, settings).samples:
        line = json.dumps(to_record(sample, kind))
        back = from_record(json.loads(line), **READ)
        assert back["images"] == [image["uri"] for image in sample["images"]]
        assert spoken(back) == spoken(sample)


texts = st.lists(st.sampled_from(["a", "\n", " ", "<image", "image>", "|>", WORD]), max_size=6).map("".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3), texts.filter(bool), st.sampled_from(FORMATS))
def test_any_text_around_images_survives_or_is_refused(parts, answer, kind):
    content = []
    for number, text in enumerate(parts):
        content += [{"text": None, "image": number}, *([{"text": text, "image": None}] if text else [])]
    row = {
        "sample_id": "s",
        "images": [{"uri": f"{number}.png"} for number in range(len(parts))],
        "messages": [
            {"role": "user", "content": content, "mask_ids": []},
            {"role": "assistant", "content": [{"text": answer, "image": None}], "mask_ids": []},
        ],
    }
    if any("<image>" in text for text in (*parts, answer)):
        with pytest.raises(DataError, match="would be read as an image"):
            to_record(row, kind)
        return
    back = from_record(to_record(row, kind), **READ)
    assert [message["content"] for message in back["messages"]] == [m["content"] for m in row["messages"]]


def test_a_word_belongs_to_the_image_that_was_shown_last():
    record = {
        "image": ["whole.png", "crop.png"],
        "conversations": [
            {"from": "human", "value": f"<image>\nThis region {WORD}. Closer: <image>\n, {WORD}."},
            {"from": "gpt", "value": f"A cat, {WORD} beside {OTHER}."},
        ],
    }
    back = from_record(record, **READ)
    assert [(mask["image"], mask["codes"]) for mask in back["masks"]] == [
        (0, [1, 2]),
        (1, [1, 2]),
        (1, [3, 4]),
    ]
    assert [message["mask_ids"] for message in back["messages"]] == [["w0", "w1"], ["w1", "w2"]]


def swift(*said: tuple[str, object], **more: object) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in said], "images": ["a.png"], **more}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "record"),
        ({}, "record"),
        ({"messages": [], "conversations": []}, "record"),
        (swift(("user", "<image>hi"), ("assistant", 3)), "record"),
        (swift(("user", "<image>hi"), ("assistant", "x"), images=[1]), "record"),
        (swift(), "role"),
        (swift(("user", "<image>hi")), "role"),
        (swift(("tool", "<image>hi"), ("assistant", "x")), "role"),
        (swift(("user", "hi"), ("assistant", "x")), "placeholder"),
        (swift(("user", "<image><image>hi"), ("assistant", "x")), "placeholder"),
        (swift(("user", "hi"), ("assistant", "<image>")), "placeholder"),
        (swift(("user", "<image>hi"), ("assistant", WORD[:-10])), "malformed_words"),
        (swift(("user", "<image>hi"), ("assistant", "<|mt_start|><|mt_9999|><|mt_end|>")), "malformed_words"),
        (swift(("user", "<image>hi<|im_end|>"), ("assistant", "x")), "control_token"),
        (swift(("user", "<image>hi<audio>"), ("assistant", "x")), "placeholder"),
        (swift(("user", "<image>Find the <ref-object>"), ("assistant", "<bbox>")), "placeholder"),
        (swift(("user", "<image>hi"), ("assistant", "x"), image="b.png"), "record"),
        (swift(("user", "<image>hi"), ("assistant", "x"), images=[{"path": "a.png"}]), "record"),
        (swift(("user", "<image>hi"), ("assistant", "x"), system=["Be brief."]), "record"),
        (swift(("system", "a"), ("user", "<image>hi"), ("assistant", "x"), system="b"), "role"),
        (swift(("user", "<image>hi"), ("tool_call", "{}"), ("assistant", "x")), "role"),
    ],
)
def test_records_of_another_shape_are_refused_with_a_reason(record, reason):
    with pytest.raises(DataError) as caught:
        from_record(record, **READ)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "field",
    [
        {"label": False},
        {"rejected_response": "No."},
        {"rejected_messages": [{"role": "assistant", "content": "No."}]},
        {"videos": ["v.mp4"]},
        {"audios": ["v.wav"]},
        {"tools": "[]"},
        {"history": [["a", "b"]]},
        {"a_field_of_tomorrow": 0},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_field_that_would_be_left_unread_is_refused_by_its_name(field):
    (name,) = field
    record = swift(("user", "<image>hi"), ("assistant", "x"), **field)
    with pytest.raises(DataError, match=f"the field '{name}' of the record .*--chats.ignore") as caught:
        from_record(record, **READ)
    assert caught.value.reason == "field"
    from_record(record, **READ, ignore=(name,))
    from_record({**record, name: []}, **READ)  # says nothing
    del record[name]
    record["messages"][1] |= field
    with pytest.raises(DataError, match=f"the field '{name}' of a message"):
        from_record(record, **READ, ignore=(name,))


def test_images_may_have_either_name_and_a_system_stands_first():
    said = {"conversations": [{"from": "human", "value": "<image>Who?"}, {"from": "gpt", "value": "Two."}]}
    for more in ({"image": "a.png"}, {"images": ["a.png"]}, {"image": ["a.png"], "images": []}):
        back = from_record({**said, **more, "system": "Answer in French."}, **READ)
        assert back["images"] == ["a.png"]
        assert [message["role"] for message in back["messages"]] == ["system", "user", "assistant"]
        assert text_of(back["messages"][0]) == "Answer in French."
    record = swift(("user", "<image>Who?"), ("assistant", "x"), image="a.png", images=None)
    assert from_record(record, **READ)["images"] == ["a.png"]


@pytest.mark.slow
@pytest.mark.numerics
def test_an_answer_without_a_loss_is_read_and_not_learnt(tmp_path):
    said = [("user", "One?"), ("assistant", "A draft."), ("user", "Two?"), ("assistant", "Good.")]
    record = swift(*said, images=[], system="Be brief.")
    record["messages"][1]["loss"] = False
    record["messages"][3]["loss"] = True
    (source := tmp_path / "one.jsonl").write_text(json.dumps(record))
    assert run("--chats.source", str(source), "--out", str(tmp_path / "chats")) == 0
    (row,) = rows_of(load_chat_corpus(str(tmp_path / "chats")))
    assert [turn.learnt for turn in turns_of(row)] == [True, True, False, True, True]
    adapter = loaded(build(tmp_path / "tiny"))
    labels = adapter.encode(turns_of(row), []).labels
    assert adapter.text_of(labels[labels != IGNORE].tolist()) == "Good."
    again = from_record(to_record(row, "ms-swift"), **READ)
    assert again["unlearnt"] == [2] and again["messages"] == row["messages"]
    with pytest.raises(DataError, match="cannot say"):
        to_record(row, "llava")
    asked = evaluated({**row, "dataset": "d", "images": [{"uri": "a.png", "height": 2, "width": 2}]})
    assert [question["turn"] for question in asked] == [4]
    for place, loss in ((0, True), (1, 0), (1, "false"), (3, False)):
        wrong = json.loads(json.dumps(record))
        wrong["messages"][place]["loss"] = loss
        with pytest.raises(DataError) as caught:
            from_record(wrong, **READ)
        assert caught.value.reason == "loss"


def evaluated(row: dict) -> list[dict]:
    """Returns the questions that an evaluation asks of a chat."""
    (item,) = inputs_of([row], tasks=[row["task"]], turns="all")
    return json.loads(item.payload)["questions"]


def grounded(objects: object, text: str = "<ref-object> at <bbox>, <bbox>") -> dict:
    """A chat with objects; its images have 200 x 100 pixels."""
    return swift(("user", "<image>Find the <ref-object>."), ("assistant", text), objects=objects)


def test_objects_stand_in_the_text_as_ms_swift_writes_them():
    objects = {"ref": ["sheep", "One"], "bbox": [[10, 20, 99.5, 200], [50, 100]]}
    for found in (objects, {**objects, "bbox_type": "real", "image_id": [0, 0]}):
        back = from_record(grounded(found), **READ)
        assert text_of(back["messages"][0]) == "Find the sheep."
        assert text_of(back["messages"][1]) == "One at [(100,100),(995,1000)], [(500,500)]"
    norm = {**objects, "bbox": [[0.1, 0.1, 0.995, 1], [0.5, 0.5]], "bbox_type": "norm1"}
    assert text_of(from_record(grounded(norm), **READ)["messages"][1]) == text_of(back["messages"][1])


@pytest.mark.parametrize(
    "objects",
    [
        '[{"caption": "sheep", "bbox": [1, 2, 3, 4]}]',
        [1],
        {"ref": ["a"], "bbox": [[1, 2], [3, 4]]},
        {"ref": ["a", "b", "c"], "bbox": [[1, 2], [3, 4]]},
        {"ref": ["a", "b"], "bbox": [[1, 2]]},
        {"ref": ["a", 1], "bbox": [[1, 2], [3, 4]]},
        {"ref": ["a", "<image>"], "bbox": [[1, 2], [3, 4]]},
        {"ref": ["a", "b"], "bbox": [[1, 2], [3, 4]], "image_id": [0, 1]},
        {"ref": ["a", "b"], "bbox": [[1, 2], [3, 4]], "image_id": [0]},
        {"ref": ["a", "b"], "bbox": [[1, 2], [3, 4, 5]]},
        {"ref": ["a", "b"], "bbox": [[1, 2], [3, "4"]]},
        {"ref": ["a", "b"], "bbox": [[1, 2], [3, float("nan")]]},
        {"ref": ["a", "b"], "bbox": [[1, 2], [101, 4]]},
        {"ref": ["a", "b"], "bbox": [[1, 2], [3, 4]], "bbox_type": "norm1"},
        {"ref": ["a", "b"], "bbox": [[1, 2], [3, 4]], "bbox_type": "norm_1000"},
        {"ref": ["a", "b"], "bbox": [[1, 2], [3, 4]], "label": ["x", "y"]},
    ],
)
def test_objects_of_another_shape_are_refused(objects):
    with pytest.raises(DataError, match="the field objects cannot be read") as caught:
        from_record(grounded(objects), **READ)
    assert caught.value.reason == "objects"


def test_a_phrase_that_holds_a_placeholder_is_refused():
    with pytest.raises(DataError) as caught:
        from_record(grounded({"ref": ["a", "<bbox>"], "bbox": [[1, 2], [3, 4]]}), **READ)
    assert caught.value.reason == "placeholder"


@pytest.fixture
def pictures(tmp_path: Path) -> list[dict]:
    """Rows whose images exist."""
    rows = [random_row(random.Random(seed), f"i{seed}") for seed in range(6)]
    for row in rows:
        row["image_uri"] = str(tmp_path / f"{row['image_id']}.png")
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(row["image_uri"])
    return rows


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("kind", [*FORMATS, "easyr1", "verl"])
def test_a_corpus_is_exported_and_imported(tmp_path, pictures, kind):
    words, out, back = (str(tmp_path / name) for name in ("words", "chats", "back"))
    write_words(words, pictures)
    assert run("--words", words, "--out", out, "--tasks", "gres,region_qa,psg", "--export", kind) == 0
    files = sorted(Path(out, "export", kind).iterdir())
    assert len(files) == 2
    source = Path(out, "export", kind)
    if kind in FORMATS:
        source = tmp_path / "all.jsonl"
        source.write_bytes(b"".join(file.read_bytes() for file in files))
    size = ("--chats.num-codes", str(NUM_CODES))
    assert run("--chats.source", str(source), *size, "--out", back, "--shard-rows", "64") == 0
    before, after = (list(rows_of(load_chat_corpus(uri))) for uri in (out, back))
    assert list(map(spoken, before)) == list(map(spoken, after)) and len(after) > 10
    assert {row["task"] for row in after} == {"dialogue"}
    assert load_chat_corpus(back).weights_sha256 is None
    if kind in FORMATS:
        assert [row["images"] for row in before] == [row["images"] for row in after]
        return
    for one, other in zip(before, after, strict=True):  # Parquet has the images and the masks in it
        assert outlines(other) == outlines(one)
        assert [image["height"] for image in other["images"]] == [image["height"] for image in one["images"]]
        for image, again in zip(one["images"], other["images"], strict=True):
            assert read_image_bytes(again["uri"]) == Path(image["uri"]).read_bytes()
            assert ".parquet#row:" in again["uri"]


def outlines(row: dict) -> list[list[str]]:
    """Returns the RLEs of the words of the last answer."""
    found = {mask["mask_id"]: mask["rle"] for mask in row["masks"]}
    return [found[mask_id] for mask_id in row["messages"][-1]["mask_ids"]]


def test_lines_that_cannot_be_imported_are_listed_and_the_others_kept(tmp_path, pictures):
    good = swift(("user", "<image>hi"), ("assistant", f"It is {WORD}."), images=["i1.png"])
    lines = [
        json.dumps(good),
        "{",
        json.dumps({**good, "images": ["gone.png"]}),
        json.dumps({**good, "images": ["../i1.png"]}),
        json.dumps({**good, "label": True}),
        json.dumps(swift(("user", "hi"), ("assistant", "x"), images=[])),
    ]
    (source := tmp_path / "some.jsonl").write_text("\n".join(lines))
    out = tmp_path / "chats"
    flags = ("--chats.source", str(source), "--chats.images", str(tmp_path), "--chats.num-codes", "64")
    assert run(*flags, "--out", str(out), "--max-reject-rate", "0.5") == 3
    first, last = rows_of(load_chat_corpus(str(out)))
    assert text_of(first["messages"][1]) == f"It is {WORD}." and first["images"][0]["height"] == 2
    assert last["images"] == []
    (shard,) = read_manifest(out)["shards"]
    rejects = pq.read_table(out / shard["rejects"]["file"]).to_pylist()
    assert [(entry["row_id"], entry["reason"]) for entry in rejects] == [
        ("line-00000002", "json"),
        ("line-00000003", "image_missing"),
        ("line-00000004", "unsafe_path"),
        ("line-00000005", "field"),
    ]


@pytest.mark.parametrize(("limit", "count"), [((), 70), (("--limit", "66"), 66)])
def test_a_file_is_cut_into_shards_at_its_lines(tmp_path, limit, count):
    lines = [json.dumps(swift(("user", f"{n} é"), ("assistant", "x"), images=[])) for n in range(70)]
    (source := tmp_path / "long.jsonl").write_text("\n".join(lines) + "\n")
    out = str(tmp_path / "chats")
    assert run("--chats.source", str(source), "--out", out, "--shard-rows", "64", *limit) == 0
    corpus = load_chat_corpus(out)
    assert [shard.rows for shard in corpus.shards] == [64, count - 64]
    found = {row["sample_id"]: text_of(row["messages"][0]) for row in rows_of(corpus)}
    assert found == {f"imported/train/line-{n + 1:08d}": f"{n} é" for n in range(count)}


def test_a_json_list_is_imported_like_lines(tmp_path):
    """In the form of the authors' mask_generation_gres209k.json."""
    pixels = np.zeros((8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    said = '```json\n[{"mask_2d": "<|mt_start|><|mt_0012|><|mt_0301|><|mt_end|>", "label": "man"}]\n```'
    turns = [{"from": "human", "value": "<image>\nThe man."}, {"from": "gpt", "value": said}]
    body = [{"image": "a.png", "conversations": turns}, {}, {"image": "gone.png", "conversations": turns}]
    (source := tmp_path / "list.json").write_text(json.dumps(body, indent=1))
    out = tmp_path / "chats"
    more = ("--chats.images", str(tmp_path), "--max-reject-rate", "1")
    assert run("--chats.source", str(source), "--out", str(out), *more) == 0
    (row,) = rows_of(load_chat_corpus(str(out)))
    assert row["sample_id"] == "imported/train/entry-00000001"
    assert [mask["codes"] for mask in row["masks"]] == [[12, 45]]
