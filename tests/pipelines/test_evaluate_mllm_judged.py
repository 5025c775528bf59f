"""Descriptions of regions are judged: by a real server, whose judgements stay beside the answers."""

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.dialogues.compose import Settings, compose_row
from pipelines.judging.config import JudgeConfig
from pipelines.mllm_evaluation import of_judged, outcome, scores
from pipelines.mllm_evaluation.benchmarks import headlines
from pipelines.mllm_evaluation.prepare import Evaluation, prepare
from pipelines.mllm_evaluation.rows import inputs_of
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.mllm import zoom
from samtok.words import format_words
from tests.chat_servers import ChatStub, Said, chat_server, text
from tests.code_rows import NUM_CODES, NUM_LEVELS, annotation, code_mask, code_row
from tests.mllm_evaluations import Scripted, World, config_of, stage_of, write_chats

FOUR = (
    "1. Subject Correspondence: {0}\n2. Appearance Description: {0}\n3. Temporal Description: {0}\n"
    "4. Hallucination Detection: {0}"
)
QUESTIONS = [
    {"question": "Is it red?", "choices": [["Yes", 1], ["No", -1]], "type": "positive", "subtype": "x"},
    {"question": "Is it blue?", "choices": [["No", 1], ["Yes", -1]], "type": "negative", "subtype": "x"},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"), 2)


def described(world: World, truths: list[str], **meta: Any) -> list[dict[str, Any]]:
    """Returns chats that ask for the description of a region, one of each image."""
    rows = []
    for number, (row, truth) in enumerate(zip(world.rows[::4], truths, strict=True)):
        question = {"text": f"Describe {number}.", "image": None}
        messages = [
            {"role": "user", "content": [{"text": None, "image": 0}, question], "mask_ids": []},
            {"role": "assistant", "content": [{"text": truth, "image": None}], "mask_ids": []},
        ]
        rows.append(
            {**row, "task": "region_caption", "tags": [], "messages": messages, "meta": json.dumps(meta)}
        )
    return rows


def answered(
    world: World, rows: list[dict[str, Any]], benchmark: str, out: str, server: ChatStub | None = None
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Returns the answers of a model that says "a thing"."""
    chats = write_chats(world.home / f"chats-{out}", rows, weights_sha256=world.sha256)
    judge = JudgeConfig() if server is None else JudgeConfig(kind="http", url=server.url)
    job = prepare(config_of(world, chats=chats, benchmark=benchmark, judge=judge, out=str(world.home / out)))
    stage = stage_of(job)
    stage.engine = Scripted(stage.engine, [], lambda _: "a thing")
    return job, stage.answer(inputs_of(rows, tasks=job.asked.tasks, turns=job.asked.turns))[0].to_pylist()


def evaluated(
    world: World, rows: list[dict[str, Any]], server: ChatStub | None, benchmark: str, out: str
) -> dict[str, Any]:
    """Returns the metrics of a model that says "a thing", judged by a server or by nobody."""
    job, table = answered(world, rows, benchmark, out, server)
    scoring, found = outcome.judged(job, table)
    metrics = scores.metrics_of(table, benchmark=benchmark, readings=job.readings, scoring=scoring)
    return {**metrics, "judge": None if found is None else found.summary()}


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    return headlines(metrics["benchmark"], metrics["modes"]["strict"]["model"])


def test_descriptions_are_compared_with_true_ones_by_a_judge(world):
    rows = described(world, ["a red thing", "a blue thing"])

    def judged(prompt: str, _: int) -> Said:
        assert "a thing" in prompt
        return text(FOUR.format("4" if "a red thing" in prompt else "2"))

    with chat_server(judged) as server:
        found = evaluated(world, rows, server, "videorefer", "video")
        again = evaluated(world, rows, server, "videorefer", "video")
    assert numbers(found) == {"Avg": 3, "SC": 3, "AD": 3, "TD": 3, "HD": 3}
    assert (found["judge"]["answered"], again["judge"]["replayed"], sum(server.answered.values())) == (
        2,
        2,
        2,
    )
    assert len((world.home / "video/judgements.jsonl").read_text().splitlines()) == 2
    assert set(headlines("videorefer", found["modes"]["strict"]["no_target"]).values()) == {
        "needs --judge.kind"
    }


def test_without_a_judge_there_are_answers_and_no_numbers(world):
    found = evaluated(world, described(world, ["a", "b"]), None, "videorefer", "none")
    assert numbers(found)["Avg"] == "needs --judge.kind" and found["counts"]["scored"] == 2
    replay = JudgeConfig(kind="replay", record=str(world.home / "no.jsonl"))
    with pytest.raises(ConfigError, match=r"record .*no\.jsonl does not exist"):
        prepare(config_of(world, benchmark="videorefer", tasks=("gres",), judge=replay))
    with pytest.raises(ConfigError, match=r"--judge\.kind is for --benchmark dlc, videorefer, mdvp"):
        config_of(world, benchmark="gres", judge=JudgeConfig(kind="http", url="http://127.0.0.1:9"))


def test_regions_without_a_true_caption_are_asked_where_questions_judge_them():
    payload = {"class_name": "thing", "questions": QUESTIONS}
    made = annotation("a", "region_caption", ["m"], payload=payload)
    row = code_row([code_mask("m", (1, 2))], [made, annotation("b", "region_caption", ["m"])])
    settings = Settings(num_codes=NUM_CODES, num_levels=NUM_LEVELS, tasks={"region_caption": 1.0})
    done = compose_row(row, settings)
    (sample,) = done.samples
    assert [one["reason"] for one in done.rejects] == ["empty_text"]  # b has neither
    meta = json.loads(sample["meta"])
    assert (meta["unlearnt"], meta["about"]) == ([1], [payload])
    (item,) = inputs_of([sample], tasks=["region_caption"], turns="last")
    (question,) = json.loads(item.payload)["questions"]
    assert json.loads(question["about"]) == payload and question["truth"] == ""


def test_dlc_bench_is_scored_by_the_judges_answers_to_its_questions(world):
    pytest.importorskip("inflect")
    meta = {"unlearnt": [1], "about": [{"class_name": "dog", "questions": QUESTIONS}]}
    rows = described(world, ["", ""], **meta)
    with chat_server(lambda prompt, _: text("Yes" if "blue" not in prompt else "No")) as server:
        found = evaluated(world, rows, server, "dlc", "dlc")
    assert numbers(found) == {"Avg": 1, "Pos": 1, "Neg": 1}
    assert found["judge"]["asked"] == 6


def test_chats_of_other_regions_have_nothing_to_be_judged_by(world):
    with (
        chat_server(lambda *_: text("Yes")) as server,
        pytest.raises(DataError, match="no question of the chats has what judges"),
    ):
        evaluated(world, described(world, ["a", "b"]), server, "dlc", "other")


def marked(world: World) -> list[dict[str, Any]]:
    """Returns chats of MDVP-Bench: two regions of an image of the web, one of a natural image."""
    rows = []
    for row, phase, names in (
        (world.rows[0], "web", ("red", "green")),
        (world.rows[4], "natural", ("red",)),
    ):
        for name in names:
            chat, _ = described(world, [f"{name} truth", ""], about=[{"question": "What is in the boxes?"}])
            asked = [{**chat["messages"][0], "mask_ids": [name]}, chat["messages"][1]]
            place = {key: row[key] for key in ("image_id", "images", "masks")}
            own = {"sample_id": f"{row['image_id']}/{name}", "tags": [f"{phase}_box"], "messages": asked}
            rows.append({**chat, **place, **own})
    return rows


def test_mdvp_bench_shows_a_judge_the_image_with_its_boxes(world):
    def scored(prompt: str, _: int) -> Said:
        assert "What is in the boxes?" in prompt
        web = "<Region 1>: red truth\n<Region 2>: green truth" in prompt
        assert web == ("<Region 2>: a thing" in prompt)
        return text("8 4\nfor reasons" if web else "5 10")

    with chat_server(scored) as server:
        found = evaluated(world, marked(world), server, "mdvp", "mdvp")
        (shown, _) = [body["messages"][-1]["content"][1]["image_url"]["url"] for body in server.bodies]
    strict = found["modes"]["strict"]["model"]["mdvp"]
    assert numbers(found) == {"natural": 2, "ocr": None, "multi-panel": None, "screenshot": None}
    assert strict["phases"]["web"] | {"scored": 1} == {
        "score": 0.5,
        "truth_mean": 8,
        "predicted_mean": 4,
        "scored": 1,
    }
    assert (strict["asked"], strict["without_phase"], list(found["modes"])) == (2, 0, ["strict"])
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))).convert("RGB"))
    assert (picture == (0, 255, 0)).all(-1).sum() > 20  # the boxes, which no image has


def test_an_image_that_is_gone_before_judging_is_a_failed_judgement(world, tmp_path):
    rows = marked(world)
    gone = tmp_path / "gone.png"
    gone.write_bytes(Path(rows[2]["images"][0]["uri"]).read_bytes())
    rows[2]["images"] = [{**rows[2]["images"][0], "uri": str(gone)}]
    job, table = answered(world, rows, "mdvp", "mdvp-gone")
    gone.unlink()
    asks = of_judged.mdvp_asks(table, job.scoring)
    assert [ask.name for ask in asks] == [f"toy/{rows[0]['image_id']}"]
    scoring = dataclasses.replace(job.scoring, is_whole=True, replies={asks[0].name: "8 4"})
    found = of_judged.mdvp(table, "strict", scoring)["mdvp"]
    assert (found["asked"], found["judged"], found["failed"]) == (2, 1, 1)


def test_chats_of_other_regions_are_no_mdvp_bench(world):
    with (
        chat_server(lambda *_: text("1 1")) as server,
        pytest.raises(DataError, match="no question of the chats has a tag that begins with one of natural"),
    ):
        evaluated(world, described(world, ["a", "b"]), server, "mdvp", "no-mdvp")


def test_the_questions_of_a_dataset_come_along_with_its_captions():
    payload = {"question": "What is marked?", "box_xyxy": [1, 2, 3, 4], "other": 1}
    made = annotation("a", "region_caption", ["m"], payload=payload, text="a dog")
    row = code_row([code_mask("m", (1, 2))], [made])
    settings = Settings(num_codes=NUM_CODES, num_levels=NUM_LEVELS, tasks={"region_caption": 1.0})
    (sample,) = compose_row(row, settings).samples
    (item,) = inputs_of([sample], tasks=["region_caption"], turns="last")
    (question,) = json.loads(item.payload)["questions"]
    assert json.loads(question["about"]) == {name: payload[name] for name in ("question", "box_xyxy")}


def test_a_small_region_is_shown_a_second_time_with_its_word_there(world):
    rows = marked(world)
    chats = write_chats(world.home / "chats-zoom", rows, weights_sha256=world.sha256)
    job = prepare(
        config_of(world, chats=chats, benchmark="mdvp", zoom_below=0.05, out=str(world.home / "zoom"))
    )
    stage = stage_of(job)
    seen: list[tuple[Any, Any]] = []
    encode = stage.adapter.encode_prompt

    def listened(turns: Any, images: Any) -> Any:
        seen.append((turns[-1].parts, images))
        return encode(turns, images)

    stage.adapter.encode_prompt = listened
    stage.engine = Scripted(stage.engine, [], lambda _: "a thing")
    table = stage.answer(inputs_of(rows, tasks=job.asked.tasks, turns=job.asked.turns))[0].to_pylist()
    small = []
    for row, (parts, images) in zip(table, seen, strict=True):
        x0, y0, x1, y1 = row["asked_box_xyxy"]
        small.append((x1 - x0) * (y1 - y0) < 0.05 * row["height"] * row["width"])
        if not small[-1]:
            assert len(images) == 1 and len(parts) == 2
            continue
        mask = masks.decode(row["asked_rle"], height=row["height"], width=row["width"])
        found = zoom.cut_out(images[0], mask, below=0.05)
        assert found is not None and (images[1] == found.image).all()
        codes = stage.tokenizer.encode(found.image, [found.mask])[0]
        words = format_words(codes, num_codes=stage.tokenizer.num_codes)
        assert parts[2:] == (" Zoom in with the perspective as ", 1, f", {words}.")
    assert set(small) == {True, False}
    with pytest.raises(ConfigError, match=r"--zoom-below is for --benchmark dlc"):
        config_of(world, benchmark="gres", zoom_below=0.3)


def test_a_question_may_name_masks_of_several_images_and_some_that_its_row_lacks(world):
    (row,) = marked(world)[:1]
    images = [*row["images"], *row["images"]]
    masks_of_two = [row["masks"][0], {**row["masks"][1], "image": 1}]
    question = {**row["messages"][0], "mask_ids": ["red", "green", "gone"]}
    chat = {**row, "images": images, "masks": masks_of_two, "messages": [question, row["messages"][1]]}
    (item,) = inputs_of([chat], tasks=["region_caption"], turns="last")
    (found,) = json.loads(item.payload)["questions"]
    assert found["asked_rle"] == row["masks"][0]["rle"]
