"""Thoughts for chats: which replies become samples, why others do not, and what is learnt from them."""

import contextlib
import dataclasses
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs.cold_start import main
from pipelines import cli, shards
from pipelines.chats.corpus import answer_words, load_chat_corpus, rows_of, text_of, turns_of
from pipelines.chats.prompt_selection import load_prompts
from pipelines.chats.prompts import THINKING_SUFFIX, PromptsConfig
from pipelines.chats.source import ChatSource, encode_row, load_images
from pipelines.cold_start.config import PRESETS, ColdStartConfig, TeacherConfig
from pipelines.cold_start.job import cold_start
from pipelines.cold_start.prepare import ColdStart, prepare
from pipelines.cold_start.run import write_thoughts
from pipelines.cold_start.teacher import REPLY_ROW, TeachSamples, turns_for_teacher
from pipelines.cold_start.thoughts import MAX_REPLY_CHARS, Rules, with_thought
from pipelines.sft.prepare import prepare as prepare_training
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.generation import generate
from samtok.mllm.loss import answer_loss
from samtok.mllm.thinking import split_thinking
from samtok.words import format_words, parse_words
from tests.jobs import data_digests, read_manifest
from tests.mllm_evaluations import NUM_CODES, NUM_LEVELS, World, chat_row, strip_row, write_chats
from tests.sft import short

RULES = Rules(num_codes=NUM_CODES, num_levels=NUM_LEVELS, sees_answer=True, min_reward=1.0)
OWN = dataclasses.replace(RULES, sees_answer=False)
CODES = {"red": (3, 9), "green": (60, 1)}
RED, GREEN, OTHER = (format_words(codes, num_codes=NUM_CODES) for codes in ((3, 9), (60, 1), (5, 5)))


def sample(*asked: str, task: str = "gres") -> dict[str, Any]:
    """A chat about an image that nobody opens."""
    row = chat_row("/image.png", {}, {}, asked)
    masks = [
        {"mask_id": name, "image": 0, "codes": list(codes), "label": name, "iou": None, "rle": "04"}
        | {"words": format_words(codes, num_codes=NUM_CODES)}
        for name, codes in CODES.items()
    ]
    for place, name in enumerate(asked):
        named = [name] if name in CODES else []
        text = "".join(format_words(CODES[one], num_codes=NUM_CODES) for one in named) or "No target."
        content = [{"text": text, "image": None}]
        row["messages"][2 * place + 1] |= {"content": content, "mask_ids": named}
    return {**row, "task": task, "masks": masks}


# ---------------------------------------------------------------- one reply


def test_a_reply_becomes_a_thought_before_the_true_answer():
    row = sample("red")
    made = with_thought(row, f"Well. <COT>\nLeft of {GREEN} is {RED}.\n</COT> Bye.", RULES)
    text = text_of(made["messages"][-1])
    assert text == f"<think> Left of {GREEN} is {RED}. </think><answer> {RED} </answer>"
    answer = split_thinking(text).answer
    assert answer is not None and parse_words(answer, num_codes=NUM_CODES) == [CODES["red"]]
    assert made["messages"][-1]["mask_ids"] == ["green", "red", "red"]
    assert answer_words(made)[-1] == parse_words(text, num_codes=NUM_CODES)
    assert text_of(made["messages"][0]) == f"Please segment red in this image. {THINKING_SUFFIX}"
    assert THINKING_SUFFIX not in text_of(row["messages"][0]) and made["masks"] == row["masks"]


def test_words_that_the_sample_does_not_have_become_masks_without_outlines():
    made = with_thought(sample("blue"), f"<COT>Neither {OTHER} nor {OTHER} is blue.</COT>", RULES)
    assert made["messages"][-1]["mask_ids"] == ["said-5-5", "said-5-5"]
    assert made["masks"][-1] == {
        **{"mask_id": "said-5-5", "image": 0, "codes": [5, 5], "words": OTHER},
        **{"label": None, "iou": None, "rle": None},
    }
    assert len(made["masks"]) == 3 and len(answer_words(made)[-1]) == 2


def test_earlier_turns_are_kept_and_later_ones_left_out():
    row = sample("green", "red")
    row["messages"].append({"role": "user", "content": [{"text": "Thanks.", "image": None}], "mask_ids": []})
    made = with_thought(row, "<COT>It is red.</COT>", RULES)
    assert [message["role"] for message in made["messages"]] == ["user", "assistant"] * 2
    assert made["messages"][:2] == row["messages"][:2]
    assert text_of(made["messages"][2]).endswith(THINKING_SUFFIX)


def test_a_teacher_that_does_not_see_the_answer_must_find_it():
    for reply in (f"<COT>a</COT> <answer> It is {RED}. </answer>", f"<COT>a</COT>It is {RED}."):
        made = with_thought(sample("red"), reply, OWN)
        assert text_of(made["messages"][-1]) == f"<think> a </think><answer> It is {RED}. </answer>"
        assert made["messages"][-1]["mask_ids"] == ["red"]
    half = dataclasses.replace(OWN, min_reward=0.5)
    made = with_thought(sample("red"), f"<COT>a</COT>{OTHER} {RED}", half)
    assert made["messages"][-1]["mask_ids"] == ["said-5-5", "red"]
    none = with_thought(sample("blue"), "<COT>a</COT>Nothing is blue.", OWN)
    assert none["messages"][-1]["mask_ids"] == []


def test_equal_words_of_two_true_masks_name_both():
    row = sample("red")
    row["masks"].append({**row["masks"][0], "mask_id": "twin"})
    row["messages"][1] |= {"mask_ids": ["twin", "red"], "content": [{"text": RED + RED, "image": None}]}
    made = with_thought(row, f"<COT>{RED}</COT>{RED} and {RED}", OWN)
    assert made["messages"][-1]["mask_ids"] == ["twin", "twin", "red"]
    row["messages"][1]["mask_ids"] = ["red", "red"]  # the truth may name one mask twice
    made = with_thought(row, f"<COT>{RED}</COT>", RULES)
    assert made["messages"][-1]["mask_ids"] == ["red", "red", "red"]


@pytest.mark.parametrize(
    ("reply", "rules", "reason"),
    [
        ("It is left.", RULES, "no_cot"),
        ("<COT> </COT>", RULES, "no_cot"),
        ("<COT>never closed", RULES, "no_cot"),
        ("<COT>a <tool_call>zoom</tool_call></COT>", RULES, "tool_call"),
        ("<COT>a</COT></tool_call>", RULES, "tool_call"),
        ("<COT>a</think> b</COT>", RULES, "tags"),
        ("<COT>a <COT>b</COT>", RULES, "tags"),
        (f"<COT>a</COT><think>b</think>{RED}<answer>", OWN, "no_own_answer"),
        (f"<COT>a <answer> {RED} </answer></COT>", RULES, "tags"),
        ("<COT><|mt_start|><|mt_0003|><|mt_end|></COT>", RULES, "malformed_words"),
        ("<COT>a<|im_end|></COT>", RULES, "control_token"),
        ("<COT>an <image></COT>", RULES, "control_token"),
        ("<COT>half \ud83d</COT>", RULES, "text_encoding"),
        ("<COT>a</COT>", OWN, "no_own_answer"),
        (f"<COT>a</COT>{GREEN}", OWN, "low_reward"),
        (f"<COT>{RED}</COT>No target.", OWN, "low_reward"),
        (f"<COT>a</COT>{RED}{RED}", OWN, "low_reward"),
        (f"<COT>a</COT>{RED}<|mt_start|>", OWN, "low_reward"),
    ],
)
def test_a_reply_that_cannot_be_used_has_a_reason(reply, rules, reason):
    with pytest.raises(DataError) as error:
        with_thought(sample("red"), reply, rules)
    assert error.value.reason == reason


@pytest.mark.parametrize("piece", [" ", "<COT>", "<answer>", RED])
def test_a_reply_of_the_longest_kind_is_read_in_linear_time_and_a_longer_one_is_refused(piece):
    text = f"<COT>{piece * ((MAX_REPLY_CHARS - 100) // len(piece))}"
    before = time.process_time()
    for reply in (text, f"{text}</COT><answer>{RED}</answer>"):
        with contextlib.suppress(DataError):
            with_thought(sample("red"), reply, OWN)
    assert time.process_time() - before < 5
    with pytest.raises(DataError, match="100001 characters, expected at most 100000") as caught:
        with_thought(sample("red"), "a" * (MAX_REPLY_CHARS + 1), RULES)
    assert caught.value.reason == "reply_too_long"


def test_the_thought_of_a_caption_names_a_mask():
    with pytest.raises(DataError) as error:
        with_thought(sample("red", task="gcg"), f"<COT>a</COT>{RED}", RULES)
    assert error.value.reason == "no_word_in_thought"
    assert with_thought(sample("red", task="gcg"), f"<COT>{GREEN}</COT>", RULES)


# ---------------------------------------------------------------- a file of replies


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """Chats of three images with a tiny model."""
    return World(tmp_path_factory.mktemp("cold") / "world", 3)


def write_replies(path: Path, lines: list[dict[str, Any] | str]) -> str:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return str(path)


def config_of(world: World, out: Path, replies: str | None, **changed: Any) -> ColdStartConfig:
    teacher = TeacherConfig(replies=replies, sees_answer=changed.pop("sees_answer", True))
    values = {"tracking": "off", "report_samples": 0, "teacher": teacher, **changed}
    return ColdStartConfig(chats=world.chat, out=str(out), **values)


def write(job: ColdStart, teacher: dict[str, Any] | None = None) -> dict[str, Any]:
    return write_thoughts(job, job.thoughts_plan(teacher))


def rejects_of(out: Path) -> list[dict[str, Any]]:
    files = [record["rejects"]["file"] for record in read_manifest(out)["shards"]]
    return [entry for file in files for entry in pq.read_table(out / file).to_pylist()]


@pytest.fixture(scope="module")
def thoughts(world, tmp_path_factory) -> Path:
    """A corpus from replies of all kinds, by the job in this process."""
    home = tmp_path_factory.mktemp("cold")
    first = world.rows[0]["messages"][1]["content"][0]["text"]
    replies: list[dict[str, Any] | str] = [
        {"sample_id": row["sample_id"], "reply": f"<COT>One sees {first} here.</COT>"}
        for row in world.rows[:8]
    ]
    replies += [
        {"sample_id": world.rows[0]["sample_id"], "reply": "<COT>Again.</COT>"},
        {"sample_id": "elsewhere", "reply": "<COT>a</COT>"},
        {"sample_id": world.rows[8]["sample_id"], "reply": "I cannot."},
        "",
        "{broken",
        {"sample_id": 3, "reply": "a"},
        '{"sample_id": "\\ud83d", "reply": "a"}',
        "[]",
    ]
    flags = ["--chats", world.chat, "--teacher.replies", write_replies(home / "replies.jsonl", replies)]
    flags += [
        "--out",
        str(home / "thoughts"),
        "--report-samples",
        "3",
        "--shard-rows",
        "64",
        "--max-reject-rate",
        "0.5",
    ]
    assert main([*flags, "--tracking", "off"]) == 0
    return home / "thoughts"


def test_every_reply_is_a_sample_or_a_reject_with_a_reason(world, thoughts):
    totals = read_manifest(thoughts)["totals"]
    assert totals["rows_in"] == totals["items_in"] == 15 == totals["samples_out"] + totals["rows_rejected"]
    assert totals["samples_out"] == totals["gres/samples_out"] == 8
    assert totals["gres/items_in"] == 10 and totals["gres/items_rejected"] == 2
    entries = rejects_of(thoughts)
    counted = {"duplicate": 1, "unknown_sample": 1, "no_cot": 1, "json": 1, "record": 3}
    assert Counter(entry["reason"] for entry in entries) == counted
    assert {entry["stage"] for entry in entries} == {"think"}
    lines = [entry["row_id"] for entry in entries if entry["reason"] in ("json", "record")]
    assert lines == ["line-00000013", "line-00000014", "line-00000015", "line-00000016"]


def test_the_thoughts_read_back_to_exactly_the_true_words(world, thoughts):
    truth = {row["sample_id"]: answer_words(row)[-1] for row in world.rows}
    rows = list(rows_of(load_chat_corpus(str(thoughts))))
    assert [row["sample_id"] for row in rows] == [row["sample_id"] for row in world.rows[:8]]
    for row in rows:
        said = split_thinking(text_of(row["messages"][-1]))
        assert said.think is not None and said.answer is not None
        assert parse_words(said.answer, num_codes=NUM_CODES) == truth[row["sample_id"]]
        assert len(parse_words(said.think, num_codes=NUM_CODES)) == 1
        assert text_of(row["messages"][-2]).endswith(f" {THINKING_SUFFIX}")
        assert answer_words(row)[-1] == parse_words(text_of(row["messages"][-1]), num_codes=NUM_CODES)


def test_the_corpus_is_one_of_the_same_tokenizer_and_can_be_looked_at(world, thoughts):
    corpus = load_chat_corpus(str(thoughts))
    assert (corpus.num_codes, corpus.num_levels) == (NUM_CODES, NUM_LEVELS)
    assert corpus.weights_sha256 == world.sha256
    page = (thoughts / "report/index.html").read_text()
    assert "<code>duplicate</code>" in page and page.count("data:image/jpeg") == 3
    config = json.loads((thoughts / "config.json").read_text())
    assert config["chats"] == world.chat


def test_a_tiny_model_trains_on_the_thoughts(world, thoughts):
    task = prepare_training(short(world, thoughts / "unused", chats=(str(thoughts),), steps=1))
    assert len(task.corpora[0]) == 8
    adapter = load_adapter(world.model)
    model = adapter.load_model(world.model)
    chats = [encode_row(adapter, task.corpora[0].row(index), max_tokens=4096) for index in range(4)]
    learnt = adapter.text_of(chats[0].input_ids[chats[0].labels >= 0].tolist())
    assert learnt == text_of(task.corpora[0].row(0)["messages"][-1])
    batch, optimizer = adapter.collate(chats), torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = answer_loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_thoughts_are_neither_prompts_nor_thought_about_again(world, thoughts, tmp_path):
    with pytest.raises(ConfigError, match="is of jobs/cold_start.py, so its answers have thoughts in them"):
        load_prompts([str(thoughts)], PromptsConfig(), seed=0)
    replies = write_replies(tmp_path / "replies.jsonl", [])
    config = dataclasses.replace(config_of(world, tmp_path / "out", replies), chats=str(thoughts))
    with pytest.raises(ConfigError, match="has thoughts already"):
        prepare(config)


def test_a_run_that_was_cut_ends_with_the_same_bytes(world, tmp_path):
    lines = [{"sample_id": f"{n}", "reply": "?"} for n in range(70)]
    lines += [{"sample_id": row["sample_id"], "reply": "<COT>a</COT>"} for row in world.rows]
    replies = write_replies(tmp_path / "replies.jsonl", lines)
    whole, cut = (config_of(world, tmp_path / name, replies, shard_rows=64) for name in ("whole", "cut"))
    expected = write(prepare(whole))
    assert len(expected["shards"]) == 2 and expected["totals"]["samples_out"] == 12
    write(prepare(cut))
    for name in ("_MANIFEST.json", "commits/shard-00001.json", expected["shards"][1]["data"]["file"]):
        (tmp_path / "cut" / name).unlink()
    assert data_digests(write(prepare(cut))) == data_digests(expected)
    with pytest.raises(ConfigError, match="min_reward: planned 1.0, now 0.5"):
        write(prepare(dataclasses.replace(cut, min_reward=0.5)))
    write_replies(tmp_path / "replies.jsonl", lines[:-1])
    with pytest.raises(ConfigError, match="replies: planned"):
        write(prepare(cut))


def test_only_samples_of_the_tasks_and_within_the_limit_are_known(world, tmp_path):
    rows = [{**row, "task": "gcg" if n % 2 else "gres"} for n, row in enumerate(world.rows)]
    chats = write_chats(tmp_path / "chats", rows, weights_sha256=world.sha256)
    lines = [{"sample_id": row["sample_id"], "reply": "<COT>a</COT>"} for row in rows]
    replies = write_replies(tmp_path / "replies.jsonl", lines)
    config = dataclasses.replace(config_of(world, tmp_path / "out", replies), chats=chats)
    job = prepare(dataclasses.replace(config, tasks=("gres",), limit=7))
    assert list(job.places) == [row["sample_id"] for row in rows[:7:2]]
    manifest = write(job)
    assert manifest["totals"]["samples_out"] == 4
    assert manifest["shards"][0]["reject_reasons"] == {"think/unknown_sample": 8}
    with pytest.raises(DataError, match="has no samples of the tasks psg"):
        assert prepare(dataclasses.replace(config, tasks=("psg",))).places


def test_too_many_rejects_and_nothing_left_are_errors(world, tmp_path, capsys):
    ids = [row["sample_id"] for row in world.rows]
    replies = write_replies(
        tmp_path / "half.jsonl",
        [{"sample_id": ids[0], "reply": "<COT>a</COT>"}, {"sample_id": ids[1], "reply": "a"}],
    )
    config = config_of(world, tmp_path / "half", replies, max_reject_rate=0.4)
    assert cold_start(config) == 3
    message = "50.0% of the replies cannot be used; --max-reject-rate allows 40.0%"
    assert message in capsys.readouterr().err
    assert cold_start(dataclasses.replace(config, min_reward=0.5, max_reject_rate=0.0)) == 2
    assert json.loads((tmp_path / "half/config.json").read_text())["min_reward"] == 1.0  # of the first run
    flags = ["--chats", world.chat, "--out", str(tmp_path / "none"), "--tracking", "off"]
    flags += ["--teacher.replies", write_replies(tmp_path / "none.jsonl", [])]
    assert main(flags) == 3
    assert read_manifest(tmp_path / "none")["totals"]["samples_out"] == 0


# ---------------------------------------------------------------- a teacher model


def taught(world: World, out: Path, **changed: Any) -> tuple[Any, Any]:
    teacher = TeacherConfig(model=world.model, max_new_tokens=6, batch_size=2, shard_rows=3, **changed)
    job = prepare(config_of(world, out, None, teacher=teacher, limit=5))
    return job, job.teacher_plan()


def teach(job: Any, plan: Any, shard: int) -> dict[str, Any]:
    return TeachSamples(job.source, job.config, job.model_sha256)(plan, shard)


def test_a_teacher_sees_the_image_the_question_and_the_answer_only_if_it_may(world):
    row = world.rows[1]
    answer = text_of(row["messages"][1])
    words = {"num_codes": NUM_CODES, "num_levels": NUM_LEVELS}
    (shown,) = turns_for_teacher(row, sees_answer=True, **words)
    (hidden,) = turns_for_teacher(row, sees_answer=False, **words)
    for turn in (shown, hidden):
        assert turn.parts[:2] == (0, "Please segment both in this image.") and "<COT>" in turn.text
        assert THINKING_SUFFIX not in turn.text
    assert f"The right answer is: {answer}\n" in shown.text
    assert answer not in hidden.text and "<answer>" in hidden.text


def test_a_teacher_that_thinks_is_asked_as_in_reinforcement_learning(world):
    row = world.rows[1]
    asked = {"sees_answer": False, "num_codes": NUM_CODES, "num_levels": NUM_LEVELS, "thinks": True}
    (turn,) = turns_for_teacher(row, **asked)
    assert turn.text.endswith(THINKING_SUFFIX) and "<COT>" not in turn.text
    rules = dataclasses.replace(OWN, thinks=True)
    reply = f"<think> It is {RED}. </think><answer> {RED} </answer>"
    found = with_thought(sample("red"), reply, rules)
    assert text_of(found["messages"][-1]) == reply
    with pytest.raises(DataError) as error:
        with_thought(sample("red"), f"<COT>a</COT><answer>{RED}</answer>", rules)
    assert error.value.reason == "no_cot"
    with pytest.raises(ConfigError, match=r"--teacher\.thinks has the teacher find the answers"):
        ColdStartConfig(chats="a", out="b", teacher=TeacherConfig(model="m", thinks=True))


def test_a_teacher_writes_what_the_model_generates_and_says_what_it_cannot_see(world, tmp_path):
    gone = tmp_path / "gone.png"
    rows = [dict(row) for row in world.rows[:5]]
    rows[2] = strip_row(tmp_path, (1, 2))
    rows[4] = {**rows[4], "images": [{**rows[4]["images"][0], "uri": str(gone)}]}
    chats = write_chats(tmp_path / "chats", rows, weights_sha256=world.sha256)
    job, plan = taught(world, tmp_path / "out")
    job = dataclasses.replace(job, source=ChatSource(load_chat_corpus(chats)))
    done = [teach(job, plan, shard) for shard in range(2)]
    found = [row for one in done for row in one["rows"].to_pylist()]
    assert [row["sample_id"] for row in found] == [row["sample_id"] for row in rows]
    assert found[4]["reply"] is None and found[4]["reason"] == "image_missing"
    assert found[2]["reply"] is None and found[2]["reason"] == "processor"
    assert done[1]["summary"]["counts"]["samples_rejected"] == 1 and done[0]["rows"].schema == REPLY_ROW
    adapter = load_adapter(world.model)
    turns = turns_for_teacher(rows[3], sees_answer=True, num_codes=NUM_CODES, num_levels=NUM_LEVELS)
    prompt = adapter.encode_prompt(turns, load_images(rows[3]))
    (ids,) = generate(adapter.load_model(world.model), adapter, [prompt], max_new_tokens=6)
    assert (found[3]["reply"], found[3]["num_tokens"]) == (adapter.text_of(ids), len(ids))


def test_what_a_teacher_wrote_becomes_samples_and_rejects(world, tmp_path):
    job, plan = taught(world, tmp_path / "out")
    first = [{"sample_id": row["sample_id"], "reply": "<COT>a</COT>", "num_tokens": 3} for row in world.rows]
    first[1] |= {"reply": None, "reason": "image_missing", "message": "there is no image"}
    for shard, part in enumerate((first[:3], first[3:5])):
        counts = {"rows_in": len(part), "rows_out": len(part)}
        rows, none = (pq_table(one) for one in (part, []))
        shards.commit(plan, shard, rows=rows, rejects=none, summary={"counts": counts})
    manifest = write(job, shards.finish(plan))
    assert (manifest["totals"]["rows_in"], manifest["totals"]["samples_out"]) == (5, 4)
    assert manifest["shards"][0]["reject_reasons"] == {"think/image_missing": 1}
    assert manifest["fingerprint"]["teacher_sha256"] == job.model_sha256


def pq_table(rows: list[dict[str, Any]]) -> Any:
    from pipelines import schema

    return schema.table(rows, REPLY_ROW)


def test_sampled_thoughts_follow_from_the_seed(world, tmp_path):
    job, plan = taught(world, tmp_path / "out", temperature=1.0)
    assert teach(job, plan, 0)["rows"] == teach(job, plan, 0)["rows"]
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, seed=1))
    with pytest.raises(ConfigError, match="seed: planned 0, now 1"):
        other.teacher_plan()


def test_a_teacher_of_other_words_or_other_weights_is_refused(world, tmp_path):
    wide = world.build(tmp_path / "wide", num_codes=128)
    foreign = world.build(tmp_path / "foreign", sha256="b" * 64)
    for model, message in (
        (wide, "words of 2 x 128 codes, --chats .* of 2 x 64"),
        (foreign, "different mask tokenizers"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(config_of(world, tmp_path / "out", None, teacher=TeacherConfig(model=model)))
    job, plan = taught(world, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no longer those that the run was planned with"):
        teach(dataclasses.replace(job, model_sha256="b" * 64), plan, 0)


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ("gress",)}, "--tasks must be some of .* got gress"),
        ({"min_reward": 1.1}, r"--min-reward must be in \[0, 1\]"),
        ({"shard_rows": 100}, "--shard-rows must be a multiple of 64"),
    ],
)
def test_flags_that_cannot_work_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        ColdStartConfig(chats="a", out="b", **changed)


def test_presets_are_whole_and_a_teacher_is_asked_for(world, tmp_path, capsys):
    flags = ["--chats", world.chat, "--out", str(tmp_path / "out"), "--tracking", "off"]
    authors = cli.parse(ColdStartConfig, PRESETS, ["--preset", "authors", *flags], doc="")
    assert authors.min_reward == 1.0 and authors.tasks == ("gres", "gcg") and authors.teacher.sees_answer
    for teacher in ([], ["--teacher.model", "a", "--teacher.replies", "b"], ["--teacher.replies", "none"]):
        assert main([*flags, *teacher]) == 2
    replies = write_replies(tmp_path / "r.jsonl", [{"sample_id": world.rows[0]["sample_id"], "reply": "a"}])
    assert main([*flags, "--teacher.replies", replies, "--dry-run"]) == 0
    assert "plan      1 replies to 12 samples" in capsys.readouterr().out
    assert main([*flags, "--teacher.model", world.model, "--teacher.shard-rows", "5", "--dry-run"]) == 0
    assert "plan      12 samples for the teacher in 3 shards" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_dialogue_that_is_written_is_the_one_that_is_asked(world):
    """A model is fine-tuned on exactly the tokens that reinforcement learning begins with."""
    made = with_thought(world.rows[3], "<COT>a</COT>", RULES)
    source = load_prompts([world.chat], PromptsConfig(thinking=True), seed=0)
    assert tuple(turns_of(made)[:-1]) == source.prompt(3).turns
