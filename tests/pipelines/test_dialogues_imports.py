"""Chats from Parquet files of EasyR1 and verl: words against masks, images in the file or beside it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.compose_dialogues import main
from pipelines import storage
from pipelines.chats.corpus import answer_words, load_chat_corpus, rows_of, text_of
from pipelines.ingestion.image_source import read_image
from samtok import masks
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import WorldConfig, make_scene
from samtok.words import format_words
from tests.jobs import read_manifest
from tests.pipelines.test_reader_parquet import png, rle, write
from tests.readers import build_reader, read_all

SIZE = ("--chats.num-codes", "256")
WORDS = [format_words(codes, num_codes=256) for codes in ((1, 2), (3, 4))]


def run(source: str | Path, out: str | Path, *flags: str) -> int:
    more = () if "--chats.num-codes" in flags else SIZE
    end = ("--tracking", "off", "--report-samples", "0", "--max-reject-rate", "1")
    return main(["--chats.source", str(source), "--out", str(out), *more, *flags, *end])


def rows_in(out: str | Path) -> list[dict[str, Any]]:
    return list(rows_of(load_chat_corpus(str(out))))


def reasons_in(out: str | Path) -> list[str]:
    found = []
    for shard in read_manifest(out)["shards"]:
        found += pq.read_table(Path(out) / shard["rejects"]["file"])["reason"].to_pylist()
    return found


def mixed(scene: Any, answer: str, found: list[Any] | None, **changed: Any) -> dict[str, Any]:
    """Returns a row in the form of mix_gres8k_ver4k_train.parquet."""
    image = {"bytes": png(scene.image), "path": "/old/a.png"}
    row = {"images": [image], "problem": ["<image>\nSegment it."], "answer": answer, "source": "gres"}
    return {**row, "masks": found, **changed}


def test_rows_of_the_authors_become_chats_with_the_masks_of_their_words(tmp_path):
    scene = make_scene(0, 0, WorldConfig.square(48))
    one, other = (rle(thing.mask) for thing in scene.objects[:2])
    twice = f"{WORDS[0]} and {WORDS[0]}"
    thought = f"<think>Not {WORDS[1]}.</think><answer>{WORDS[0]}</answer>"
    rows = [
        mixed(scene, f"It is {WORDS[0]}, {WORDS[1]}.", [one, other]),
        mixed(scene, "No target.", []),
        mixed(scene, twice, [one, other]),
        mixed(scene, twice, [one, one]),
        mixed(scene, WORDS[0], [one, other]),
        mixed(scene, WORDS[0], [{**one, "size": [47, 48]}]),
        mixed(scene, WORDS[0], None),
        mixed(scene, thought, [other, one]),
        mixed(scene, "x", [], problem=["no placeholder"]),
        mixed(scene, "x", [], images=[]),
    ]
    out = tmp_path / "chats"
    assert run(write(tmp_path / "mix.parquet", rows), out, "--shard-rows", "64") == 0
    assert reasons_in(out) == ["words_and_masks", "rle_size", "placeholder"]
    found = rows_in(out)
    assert [row["sample_id"][-2:] for row in found] == ["00", "01", "02", "03", "06", "07", "08"]
    counts = [[mask["rle"] for mask in row["masks"]] for row in found]
    first, second = one["counts"], other["counts"]
    assert counts == [[first, second], [], [first, second], [first], [None], [second, first], []]
    assert [len(answer_words(row)[-1]) for row in found] == [2, 0, 2, 2, 1, 2, 0]
    assert [part["image"] for part in found[-1]["messages"][0]["content"]] == [0, None]
    (image,) = found[0]["images"]
    pixels = read_image(image["uri"], expected_hw=(image["height"], image["width"]))
    assert (pixels == scene.image).all()


def test_images_beside_the_file_are_found_by_the_names_of_their_dead_paths(tmp_path):
    """As in gres8k_train.parquet: no bytes, and absolute paths of another machine."""
    scene = make_scene(0, 0, WorldConfig.square(48))
    rows = [
        mixed(scene, "No target.", [], images=[{"bytes": b"", "path": f"/old/train2014/{name}.png"}])
        for name in ("a", "gone")
    ]
    source = write(tmp_path / "gres8k.parquet", rows)
    (folder := tmp_path / "images").mkdir()
    Image.fromarray(scene.image).save(folder / "a.png")
    assert run(source, tmp_path / "none") == 3  # items in, and none out
    assert run(source, tmp_path / "found", "--chats.images", str(folder)) == 0
    assert [row["images"][0]["uri"] for row in rows_in(tmp_path / "found")] == [str(folder / "a.png")]
    assert reasons_in(tmp_path / "found") == ["image_missing"]


def test_several_images_and_turns_of_verl_are_read(tmp_path):
    scenes = [make_scene(0, number, WorldConfig.square(48)) for number in range(2)]
    found = [rle(scene.objects[0].mask) for scene in scenes]
    row = {
        "data_source": "mine",
        "prompt": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "<image>One?"},
            {"role": "assistant", "content": WORDS[0]},
            {"role": "user", "content": "<image>Two?"},
        ],
        "images": [{"bytes": png(scene.image), "path": None} for scene in scenes],
        "reward_model": {"style": "rule", "ground_truth": WORDS[1]},
        "extra_info": {"masks": found},
    }
    broken = {**row, "reward_model": {"style": "rule", "ground_truth": None}}
    write(tmp_path / "verl" / "a.parquet", [row, broken])
    assert run(tmp_path / "verl", tmp_path / "out") == 0
    (chat,) = rows_in(tmp_path / "out")
    assert reasons_in(tmp_path / "out") == ["parquet_value"]
    assert [message["role"] for message in chat["messages"]][:2] == ["system", "user"]
    assert [(mask["image"], mask["rle"]) for mask in chat["masks"]] == [
        (number, one["counts"]) for number, one in enumerate(found)
    ]
    for image, scene in zip(chat["images"], scenes, strict=True):
        assert (read_image(image["uri"], expected_hw=(48, 48)) == scene.image).all()


@pytest.mark.slow
@pytest.mark.numerics
def test_words_are_compared_with_the_masks_that_rows_have(tmp_path):
    tokenizer = MaskTokenizer.from_pretrained("tiny")
    levels, num_codes = tokenizer.num_levels, tokenizer.config.quantizer.num_codes
    scene = make_scene(0, 0, WorldConfig.square(128))
    truth = [thing.mask for thing in scene.objects]
    result = tokenizer.reconstruct(scene.image, truth)
    said = [format_words(tuple(codes), num_codes=num_codes) for codes in result.codes.tolist()]
    wrong = format_words(((result.codes[0, 0] + num_codes // 2) % num_codes, 0), num_codes=num_codes)
    rows = [
        mixed(scene, " ".join(said), [rle(mask) for mask in truth]),
        mixed(scene, wrong, [rle(truth[0])]),
        mixed(scene, "No target.", []),
        mixed(scene, said[0], None),
    ]
    source = write(tmp_path / "words.parquet", rows)
    same = ("--chats.tokenizer", "tiny", "--chats.num-codes", str(num_codes))
    assert run(source, tmp_path / "all", *same, "--chats.num-levels", str(levels)) == 0
    first, other, *_ = rows_in(tmp_path / "all")
    assert [mask["iou"] for mask in first["masks"]] == pytest.approx(list(result.iou), abs=1e-6)
    assert other["masks"][0]["iou"] < min(result.iou)
    manifest = read_manifest(tmp_path / "all")
    assert manifest["fingerprint"]["weights_sha256"] and manifest["fingerprint"]["tokenizer"] == "tiny"
    least = str((other["masks"][0]["iou"] + min(result.iou)) / 2)
    assert run(source, tmp_path / "good", *same, "--min-iou", least) == 0
    assert [row["sample_id"][-1] for row in rows_in(tmp_path / "good")] == ["0", "2"]
    assert reasons_in(tmp_path / "good") == ["low_iou", "no_iou"]
    totals = read_manifest(tmp_path / "good")["totals"]
    assert (totals["items_in"], totals["items_filtered"], totals["items_rejected"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--chats.tokenizer", "tiny", "--chats.num-codes", "7"), "--chats.num-codes"),
        (("--chats.tokenizer", "tony"), "--chats.tokenizer"),
        (("--min-iou", "0.5"), "--min-iou needs --chats.tokenizer"),
    ],
)
def test_a_tokenizer_of_other_words_is_refused(tmp_path, capsys, flags, said):
    scene = make_scene(0, 0, WorldConfig.square(48))
    source = write(tmp_path / "a.parquet", [mixed(scene, "x", [])])
    assert run(source, tmp_path / "out", *flags) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_what_is_no_parquet_of_chats_is_refused(tmp_path, capsys, content):
    source = tmp_path / "a.parquet"
    if content is None:
        pq.write_table(pa.table({"x": [1]}), source)
    else:
        source.write_bytes(content)
    assert run(source, tmp_path / "out") == 2
    assert f"--chats.source: {source}" in capsys.readouterr().err


def test_boxes_stand_in_the_place_of_words(tmp_path):
    scene = make_scene(0, 0, WorldConfig.square(48))
    one, other = (rle(thing.mask) for thing in scene.objects[:2])
    rows = [mixed(scene, f"{WORDS[1]}, {WORDS[0]}", [one, other]), mixed(scene, WORDS[0], None)]
    out = tmp_path / "chats"
    source = write(tmp_path / "mix.parquet", rows)
    assert run(source, out, "--export", "ms-swift-boxes") == 0
    (line,) = (out / "export" / "ms-swift-boxes" / "shard-00000.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["messages"][1]["content"] == "<bbox>, <bbox>"
    boxes = [masks.box_xyxy(one["counts"], height=48, width=48) for one in (one, other)]
    assert record["objects"]["bbox"] == [[a, b, c + 1, d + 1] for a, b, c, d in boxes if (a, b, c, d)]
    back = tmp_path / "back"
    assert run(tmp_path / "chats/export/ms-swift-boxes/shard-00000.jsonl", back) == 0
    (chat,) = rows_in(back)
    thousandths = [[int(n / 48 * 1000) for n in box] for box in record["objects"]["bbox"]]
    said = ", ".join(f"[({a},{b}),({c},{d})]" for a, b, c, d in thousandths)
    assert text_of(chat["messages"][1]) == said


def test_an_export_that_can_say_nothing_is_an_error_and_less_is_counted(tmp_path, capsys):
    scene = make_scene(0, 0, WorldConfig.square(48))
    source = write(tmp_path / "mix.parquet", [mixed(scene, WORDS[0], None)])
    assert run(source, tmp_path / "out", "--export", "ms-swift-boxes") == 3
    assert "can say none of the chats" in capsys.readouterr().err
    rows = [mixed(scene, WORDS[0], None), mixed(scene, "No target.", [])]
    assert run(write(tmp_path / "two.parquet", rows), tmp_path / "two", "--export", "ms-swift-boxes") == 0
    assert "1 chats, not 1: 1 no_mask" in capsys.readouterr().out


def test_rows_on_s3_are_read_as_on_a_disk(tmp_path, bucket):
    scene = make_scene(0, 0, WorldConfig.square(48))
    rows = [mixed(scene, WORDS[0], [rle(thing.mask)]) for thing in scene.objects[:3]]
    source = write(tmp_path / "mix.parquet", rows)
    remote = f"{bucket}/mix.parquet"
    storage.write_bytes(remote, Path(source).read_bytes())
    for place, out in ((source, str(tmp_path / "chats")), (remote, f"{bucket}/chats")):
        assert run(place, out) == 0
    here, there = rows_in(tmp_path / "chats"), rows_in(f"{bucket}/chats")
    for one, other in zip(here, there, strict=True):
        assert other["images"][0]["uri"] == one["images"][0]["uri"].replace(source, remote)
        assert {**one, "images": [], "image_id": ""} == {**other, "images": [], "image_id": ""}


def test_a_damaged_row_group_costs_its_rows_and_no_others(tmp_path):
    scene = make_scene(0, 0, WorldConfig.square(48))
    rows = [mixed(scene, "No target.", [], problem=[f"<image>Segment {number}."]) for number in range(6)]
    source = Path(write(tmp_path / "mix.parquet", rows, row_group_size=3))
    group = pq.ParquetFile(source).metadata.row_group(1)
    (column,) = [
        group.column(n) for n in range(group.num_columns) if "problem" in group.column(n).path_in_schema
    ]
    data = bytearray(source.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 12] = b"\xff" * 12
    source.write_bytes(data)
    out = tmp_path / "chats"
    assert run(source, out) == 0
    assert [row["sample_id"][-1] for row in rows_in(out)] == ["0", "1", "2"]
    assert reasons_in(out) == ["parquet_layout"] * 3
    listed, rejects = read_all(build_reader("parquet", source=str(source)))
    assert [row["image_id"][-1] for row in listed] == ["0", "1", "2"]
    assert [(entry["row_id"][-1], entry["reason"]) for entry in rejects] == [
        (number, "parquet_layout") for number in "345"
    ]
