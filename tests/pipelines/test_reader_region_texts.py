"""Readers of regions with texts beside DAM's JSON: GroundingSuite-Eval, MDVP-Bench, DLC-Bench, GAR."""

import base64
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingestion import arrow_cells, image_source, parquet_cells
from pipelines.ingestion.reader import Reader
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.shapes import WorldConfig, description, make_scene
from tests.label_maps import inputs_of, reasons
from tests.readers import ANY, build_reader, read_all
from tests.region_texts import HEIGHT, WIDTH, picture, rle, said

WORLD = WorldConfig.square(48)

# --- regions ----------------------------------------------------------------------------------------------


def grounding(idx: Any = 0, **fields: Any) -> dict[str, Any]:
    return {
        "idx": idx,
        "image_path": "unlabeled2017/000000000009.jpg",
        "class_id": 3,
        "label": "dog",
        "caption": "the two dogs",
        "box": [0.5, 1, 2, 3.25],
        "segmentation": rle(0),
        **fields,
    }


def mdvp(column: int = 0, **fields: Any) -> dict[str, Any]:
    body = {"image_path": "android/images/x.png", "mask_rle": rle(column), "dataset_name": "android"}
    return {**body, "question": "What is it?", "caption": "A button.", **fields}


def regions_reader(folder: Path, text: str) -> Reader:
    (folder / "records.json").write_text(text)
    return build_reader("regions", source=f"{folder}/records.json", images=str(folder), dataset="r")


def lines(*entries: Any) -> str:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def test_expressions_of_grounding_suite_have_their_target_and_kind(tmp_path):
    entries = [grounding(10, caption="a cat", class_id=9, label=None, box="x"), grounding(9)]
    (row,), rejects = read_all(regions_reader(tmp_path, lines(*entries)))
    assert not rejects and row["image_id"] == "unlabeled2017/000000000009.jpg"
    assert [(mask["mask_id"], mask["label"]) for mask in row["masks"]] == [("9", "dog"), ("10", None)]
    assert said(row) == [
        ("referring", ["9"], "the two dogs", ["multi-object"], {"box_xyxy": [0.5, 1, 2, 3.25]}),
        ("referring", ["10"], "a cat", [], {}),
    ]


def test_regions_of_mdvp_are_numbered_and_keep_their_question(tmp_path):
    entries = [mdvp(1), mdvp(0), mdvp(0, image_path="web/images/y.png", caption="A link.")]
    rows, rejects = read_all(regions_reader(tmp_path, json.dumps(entries)))
    assert not rejects and [row["image_id"] for row in rows] == ["android/images/x.png", "web/images/y.png"]
    assert {mask["rle"] for mask in rows[0]["masks"]} == {rle(0)["counts"], rle(1)["counts"]}
    told = ("region_caption", ["1"], "A button.", ["android"], {"question": "What is it?"})
    assert said(rows[0])[0] == told and said(rows[0])[1][1] == ["2"]


def test_masks_of_the_packed_dlc_bench_are_asked_about_without_an_answer(tmp_path):
    samples = [
        {"segmentation": rle(0), "class_name": "dog", "ann_id": 7},
        {"segmentation": rle(1), "class_name": "cat"},
        5,
    ]
    body = [{"image_name": "a.jpg", "mask_samples": samples}]
    (row,), rejects = read_all(regions_reader(tmp_path, json.dumps(body)))
    assert sorted(mask["label"] for mask in row["masks"]) == ["cat", "dog"]
    assert [(one["reason"], one["num_masks"]) for one in rejects] == [("segmentation_type", 1)]
    assert [(task, text) for task, _, text, *_ in said(row)] == [("region_caption", None)] * 3
    assert "7" in {mask["mask_id"] for mask in row["masks"]}


def test_records_that_cannot_be_used_are_told_with_their_place(tmp_path):
    text = lines(
        grounding(1),
        grounding(2, image_path="../a.jpg"),
        grounding(3, caption=""),
        grounding(4, image_path=None),
        grounding(5, segmentation=rle(0, (3, 3))),
        grounding(1, segmentation=rle(4), caption="b"),
        {"image_name": "a.jpg", "mask_samples": 3},
        {"images": 1},
        7,
    )
    text += '{"idx": 1, "cut'
    rows, rejects = read_all(regions_reader(tmp_path, text))
    assert [(len(row["masks"]), len(row["annotations"])) for row in rows] == [(1, 3)]
    assert reasons(rejects) == [
        ("annotation_text", "unlabeled2017/000000000009.jpg", "annotation 3-1", 0),
        ("duplicate_annotation_id", "unlabeled2017/000000000009.jpg", "1", 1),
        ("image_path", "#4", "", 1),
        ("json", "#10", "", 0),
        ("region_record", "#7", "", 0),
        ("region_record", "#8", "", 0),
        ("region_record", "#9", "", 0),
        ("rle_size", "unlabeled2017/000000000009.jpg", "5", 1),
        ("unsafe_path", "../a.jpg", "", 1),
    ]


def test_files_without_any_region_are_refused_and_empty_ones_are_empty(tmp_path):
    with pytest.raises(DataError, match="no record of .* has a layout of masks with texts; the first: .*DLC"):
        list(regions_reader(tmp_path, lines({"caption": "a"})).inputs())
    with pytest.raises(ConfigError, match="it was cut off"):
        list(regions_reader(tmp_path, json.dumps([mdvp()])[:-9]).inputs())
    assert read_all(regions_reader(tmp_path, "")) == ([], [])
    assert read_all(regions_reader(tmp_path, "[]")) == ([], [])


VALUES = st.sampled_from([None, "", "a", 3, [], {}, {"size": [6, 8], "counts": "!"}, "\ud800", rle(1), 1.5])
RECORD = st.builds(
    lambda body, changes: {**body, **changes},
    st.sampled_from(
        [
            grounding(1),
            grounding(2),
            mdvp(),
            {"image_name": "a.jpg", "mask_samples": [{"segmentation": rle(0)}]},
        ]
    ),
    st.dictionaries(
        st.sampled_from(
            ["idx", "image_path", "caption", "segmentation", "mask_rle", "mask_samples", "label"]
        ),
        VALUES,
        max_size=2,
    ),
)


@ANY
@given(entries=st.lists(st.one_of(RECORD, VALUES), max_size=6), order=st.randoms(use_true_random=False))
def test_any_records_are_read_or_rejected_whatever_their_order(tmp_path, entries, order: random.Random):
    def read(body: list[Any]) -> Any:
        try:
            return read_all(regions_reader(tmp_path, json.dumps(body)))
        except DataError as error:
            assert error.reason == "region_layout"
            return [], []

    rows, rejects = read(entries)
    again = read(order.sample(entries, len(entries)))
    assert again[0] == rows and len(again[1]) == len(rejects)


# --- DLC-Bench --------------------------------------------------------------------------------------------

QUESTION = {"question": "Is it blue?", "choices": [["Yes", 1], ["No", -1], ["?", 0.5]], "type": "positive"}


def write_dlc(folder: Path, questions: Any, names: Any) -> Reader:
    image = {"id": 5, "file_name": "objects365_v2_00000005.jpg", "height": HEIGHT, "width": WIDTH}
    more = {"isfake": 0, "size": "S", "bbox": [0.5, 1, 2, 3], "category_id": 2, "image_id": 5, "iscrowd": 0}
    found = [{"id": number, "segmentation": rle(number), **more} for number in (1, 2)]
    categories = [{"id": 2, "name": "Dog"}]
    body = {"images": [image], "annotations": found, "categories": categories}
    for name, content in {"annotations": body, "qa": questions, "class_names": names}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return build_reader("dlc", source=f"{folder}/annotations.json", images=str(folder / "images"))


def test_regions_of_dlc_bench_have_the_questions_about_their_description(tmp_path):
    negative = {**QUESTION, "type": "negative", "subtype": "salient negative"}
    reader = write_dlc(tmp_path, {"1": [QUESTION, negative], "2": [negative]}, {"1": "dog", "2": "puppy"})
    (row,), rejects = read_all(pickle.loads(pickle.dumps(reader)))
    assert not rejects and [mask["rle"] for mask in row["masks"]] == [rle(1)["counts"], rle(2)["counts"]]
    assert [mask["label"] for mask in row["masks"]] == ["Dog", "Dog"]
    assert said(row) == [
        ("region_caption", ["1"], None, [], {"class_name": "dog", "questions": [QUESTION, negative]}),
        ("region_caption", ["2"], None, [], {"class_name": "puppy", "questions": [negative]}),
    ]
    assert sorted(reader.witness()) == ["annotations.json", "class_names.json", "qa.json"]


def test_questions_that_cannot_be_used_are_told_and_the_region_stays(tmp_path):
    bad = [
        QUESTION,
        3,
        {**QUESTION, "choices": [["a"]]},
        {**QUESTION, "type": []},
        {**QUESTION, "question": ""},
    ]
    (row,), rejects = read_all(write_dlc(tmp_path, {"1": bad, "9": [QUESTION]}, {"1": 4}))
    assert [made["payload"] is not None for made in row["annotations"]] == [True, True]
    assert said(row)[0][-1] == {"questions": [QUESTION]}
    assert reasons(rejects) == [
        ("annotation_text", "5", "annotation 1 question 5", 0),
        ("question", "5", "annotation 1 question 2", 0),
        ("question", "5", "annotation 1 question 3", 0),
        ("question", "5", "annotation 1 question 4", 0),
        ("question", "5", "annotation 2", 0),
        ("unknown_mask", "?", "annotation 9", 0),
    ]
    with pytest.raises(DataError, match=r"qa.json holds a list, expected an object by the ids"):
        list(write_dlc(tmp_path, [], {}).inputs())


# --- GAR --------------------------------------------------------------------------------------------------

TALK = [{"from": "human", "value": "<image>\nWhat is <Prompt1>?"}, {"from": "gpt", "value": "Not <Prompt0>."}]


def gar(**fields: Any) -> dict[str, Any]:
    body = {"image": {"bytes": picture(), "path": "a.png"}, "mask_rle": [rle(0), rle(1)]}
    return {**body, "conversations": TALK, **fields}


def write_gar(path: Path, rows: list[dict[str, Any]], *, batch: int = 2) -> Reader:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=batch)
    return build_reader("gar", source=str(path.parent), dataset="g")


def test_rows_of_gar_name_their_masks_from_0(tmp_path):
    reader = write_gar(tmp_path / "data-00000-of-00001.arrow", [gar(), gar(), gar(conversations=TALK * 2)])
    assert reader.parts() == ("data-00000-of-00001.arrow#0", "data-00000-of-00001.arrow#1")
    rows, rejects = read_all(reader)
    assert not rejects and [row["image_id"][-8:] for row in rows] == ["00000000", "00000001", "00000002"]
    asked = {"question": "What is <mask 0>?", "answer": "Not <mask 1>."}
    assert said(rows[0]) == [("region_qa", ["2", "1"], None, [], asked)]
    assert [mask["rle"] for mask in rows[1]["masks"]] == [rle(0)["counts"], rle(1)["counts"]]
    assert said(rows[2])[0][0] == "dialogue" and len(said(rows[2])[0][-1]["turns"]) == 4
    pixels = image_source.read_image(rows[2]["image_uri"], expected_hw=(HEIGHT, WIDTH))
    assert pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"mask_rle": None}, ["whole"]),
        ({"mask_rle": rle(2)}, [rle(2)["counts"]]),
        ({"mask_rle": json.dumps(rle(2))}, [rle(2)["counts"]]),
        ({"mask_rle": json.dumps([rle(2)])}, [rle(2)["counts"]]),
        ({"mask_rle": [json.dumps(rle(3))]}, [rle(3)["counts"]]),
        ({"mask_rle": []}, []),
        ({"image": picture()}, [rle(0)["counts"], rle(1)["counts"]]),
        (
            {"image": "data:image/png;base64," + base64.b64encode(picture()).decode(), "mask_rle": None},
            ["whole"],
        ),
    ],
)
def test_every_form_of_masks_and_images_of_gar_is_read(tmp_path, fields, found):
    (row,), _ = read_all(write_gar(tmp_path / "a.arrow", [gar(**fields)]))
    size = {"height": HEIGHT, "width": WIDTH}
    counts = [mask["rle"] for mask in row["masks"]]
    whole = [masks.area(one, **size) == HEIGHT * WIDTH for one in counts]
    assert ["whole" if full else one for one, full in zip(counts, whole, strict=True)] == found


def test_a_prompt_without_a_mask_is_rejected_and_pictures_elsewhere_are_told(tmp_path):
    rows, rejects = read_all(write_gar(tmp_path / "a.arrow", [gar(mask_rle=[rle(0)])]))
    assert [(len(row["masks"]), row["annotations"]) for row in rows] == [(1, [])]
    assert [(one["reason"], one["num_masks"]) for one in rejects] == [("unknown_region", 0)]
    elsewhere = [gar(image={"bytes": None, "path": "a.png"}, mask_rle=None)]
    rows, rejects = read_all(write_gar(tmp_path / "b/b.arrow", elsewhere))
    assert not rows and reasons(rejects) == [("image_cell", "b-00000000", "", 1)]
    assert "its path is 'a.png'" in rejects[0]["message"]


def test_other_arrow_files_are_refused(tmp_path):
    path = tmp_path / "a.arrow"
    reader = write_gar(path, [gar(), gar(), gar()])
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2):
        arrow_cells.opened.cache_clear()
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="no Arrow stream, or damaged"):
            list(reader.inputs())
    arrow_cells.opened.cache_clear()
    table = pa.table({"image": pa.array(["a", "b"]).dictionary_encode()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(DataError, match="it has dictionaries at byte"):
        list(reader.inputs())
    arrow_cells.opened.cache_clear()
    with pytest.raises(DataError, match="has the columns a, expected images, problem and masks"):
        list(write_gar(path, [{"a": 1}]).inputs())


def test_the_file_format_of_arrow_is_read_as_a_stream(tmp_path):
    table = pa.Table.from_pylist([gar(), gar()])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    assert len(read_all(build_reader("gar", source=f"{tmp_path}/a.arrow"))[0]) == 2


@pytest.mark.slow
@pytest.mark.numerics
@settings(ANY, max_examples=200)
@given(data=st.data())
def test_damaged_arrow_streams_never_crash(tmp_path, data):
    path = tmp_path / "a.arrow"
    reader = write_gar(path, [gar(), gar()], batch=1)
    raw = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    for cached in (arrow_cells.opened, arrow_cells.read_batch):
        cached.cache_clear()
    try:
        read_all(reader)
    except DataError as error:
        assert error.reason in ("arrow_layout", "parquet_layout")


def synthetic_gar(out: str) -> Reader:
    write_shapes(ShapesConfig(out=out, format="gar", num_images=7, images_per_folder=3, seed=4, world=WORLD))
    return build_reader("gar", source=out, dataset="s")


def check_gar(rows: list[dict[str, Any]]) -> None:
    for index, row in enumerate(rows):
        scene = make_scene(4, index, WORLD)
        assert [mask["rle"] for mask in row["masks"]] == [masks.encode(one.mask) for one in scene.objects]
        (made,) = row["annotations"]
        payload = json.loads(made["payload"])
        turns = payload.get("turns") or [{"text": payload["question"]}, {"text": payload["answer"]}]
        answers = [turn["text"] for turn in turns[1::2]]
        assert answers[: len(scene.objects)] == [description(one) for one in scene.objects]
        assert made["mask_ids"] == [mask["mask_id"] for mask in row["masks"]]


def test_the_synthetic_gar_is_read_back_as_it_was_written(tmp_path):
    rows, rejects = read_all(synthetic_gar(str(tmp_path)))
    assert len(rows) == 7 and not rejects
    check_gar(rows)


@pytest.mark.slow
def test_gar_on_s3_is_read_as_on_a_disk(tmp_path, bucket):
    here, there = synthetic_gar(str(tmp_path)), synthetic_gar(f"{bucket}/shapes")
    assert inputs_of(there) == inputs_of(here) and there.witness() == here.witness()
    rows, rejects = read_all(there)
    assert not rejects
    check_gar(rows)
    cell = parquet_cells.parse(rows[0]["image_uri"])
    assert cell and parquet_cells.read(cell)


def test_parquet_files_of_regions_are_read_too(tmp_path):
    captions = [{"ann": {"segmentation": rle(0)}, "caption": "a"}, {"ann": 3}]
    row = {"image": {"bytes": picture(), "path": ""}, "ann": json.dumps(captions)}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (found,), rejects = read_all(build_reader("parquet", source=f"{tmp_path}/a.parquet"))
    assert said(found) == [("region_caption", ["1"], "a", [], {})]
    assert sorted(one["reason"] for one in rejects) == ["annotation_text", "segmentation_type"]
    dam = {"jpg": picture(), "pickle": pickle.dumps([{"mask_rle": rle(2), "caption": "b"}])}
    pq.write_table(pa.Table.from_pylist([dam]), tmp_path / "b.parquet")
    (found,), rejects = read_all(build_reader("parquet", source=f"{tmp_path}/b.parquet"))
    assert not rejects and said(found) == [("region_caption", ["1"], "b", [], {})]
