"""Prompts of reinforcement learning: which samples are asked, in which order, and what is asked."""

import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines import schema, shards
from pipelines.chats.prompt_selection import load_prompts
from pipelines.chats.prompts import (
    THINKING_SUFFIX,
    PromptsConfig,
    PromptSource,
    ask_to_think,
    prompt_of,
)
from pipelines.chats.source import rejected
from pipelines.grpo.prepare import silence_pays
from pipelines.ingestion.reader import Input
from pipelines.mllm_evaluation.rows import ANSWER_ROW
from pipelines.planning import plans
from samtok.errors import ConfigError, DataError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.tiny.models import build_tiny
from samtok.mllm.vocab import MaskVocabulary
from tests.grpo import encoded
from tests.mllm_evaluations import NUM_CODES, NUM_LEVELS, chat_row, write_chats, write_image

CODES = {"red": (3, 9), "green": (60, 1)}
ASKED = (["red"], ["both"], ["blue"], ["green", "red"])
"""Questions of every image: one target, two, none, and two rounds."""


def rows_of_images(folder: Path, count: int, *, named: str = "") -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        uri, drawn = write_image(folder, number)
        for asked in ASKED:
            row = chat_row(uri, drawn, CODES, asked, image_id=f"{named}{number}")
            found.append({**row, "task": "multi_round" if len(asked) > 1 else "gres"})
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with two corpora: ``a`` of 40 samples, a quarter without a target, and ``b`` of 12."""
    home = tmp_path_factory.mktemp("prompts")
    write_chats(home / "a", rows_of_images(home / "images", 10), weights_sha256="a" * 64)
    write_chats(home / "b", rows_of_images(home / "images", 3, named="b"), weights_sha256="a" * 64)
    return home


def load(*chats: Path | str, seed: int = 0, limit: int | None = None, **settings: Any) -> PromptSource:
    return load_prompts(tuple(map(str, chats)), PromptsConfig(**settings), seed=seed, limit=limit)


def sample_ids(source: PromptSource) -> list[str]:
    return [source.row(index)["sample_id"] for index in range(len(source))]


def write_evaluation(out: Path, answers: list[dict[str, Any]], *, sha256: str = "a" * 64) -> str:
    """Writes a finished evaluation with these answers: sample_id, turn, truth, said, broken, problem."""
    settings = {"kind": "predictions", "tokenizer_sha256": sha256}
    plan = plans.make_plan(str(out), settings, [Input("0", "{}", None)], shard_rows=1, chunk_rows=1)
    texts = ("dataset", "split", "image_id", "task", "image_uri", "question", "key", "truth")
    rows = []
    for answer in answers:
        said = {"codes": answer["said"], "rle": "", "intersection_px": 0, "predicted_px": 0, "masks": []}
        asked = answer.get("problem") is None
        rows.append(
            dict.fromkeys(ANSWER_ROW.names)
            | dict.fromkeys(texts, "")
            | {"round": 1, "truth_masks": [], "unfinished": False}
            | {"tags": [], "height": 1, "width": 1, "target_px": 0, "problem": answer.get("problem")}
            | {"sample_id": answer["sample_id"], "turn": answer["turn"], "truth_codes": answer["truth"]}
            | {"num_malformed": answer.get("broken", 0), "strict": said if asked else None}
        )
    shards.commit(
        plan,
        0,
        rows=schema.table(rows, ANSWER_ROW),
        rejects=schema.table([], schema.REJECT_ROW),
        summary={"counts": {"rows_in": 1}, "reject_reasons": {}},
    )
    shards.finish(plan)
    return str(out)


def test_a_prompt_asks_for_the_last_answer_and_keeps_earlier_turns(home):
    source = load(home / "a")
    prompts = {prompt.row["sample_id"]: prompt for prompt in map(source.prompt, range(len(source)))}
    assert len(prompts) == 40
    two = prompts["0/green-red"]
    assert [turn.role for turn in two.turns] == ["user", "assistant", "user"]
    assert two.question.truth == (CODES["red"],) and not two.question.thinking
    assert two.turns[1].text != two.question.text and two.turns[-1].text.startswith("Please segment red")
    assert prompts["0/both"].question.truth == (CODES["red"], CODES["green"])
    assert prompts["0/blue"].question.truth == () and prompts["0/blue"].question.text == "No target."
    question = prompts["0/both"].question
    assert (question.num_codes, question.num_levels) == (NUM_CODES, NUM_LEVELS)
    assert question.record["masks"][0]["rle"]


def test_thinking_is_asked_for_after_one_space_in_the_last_question_only(home):
    prompt = load(home / "a", thinking=True).prompt(3)
    assert prompt.turns[-1].text == f"Please segment red in this image. {THINKING_SUFFIX}"
    assert THINKING_SUFFIX not in prompt.turns[0].text and prompt.question.thinking
    assert prompt.row["messages"][2]["content"][0]["text"] == "Please segment red in this image."
    image_last = [
        {"role": "user", "content": [{"text": "Where?", "image": None}, {"text": None, "image": 0}]}
    ]
    assert ask_to_think(image_last)[0]["content"][1:] == [
        {"text": None, "image": 0},
        {"text": f" {THINKING_SUFFIX}", "image": None},
    ]


def test_only_what_an_evaluation_has_wrong_is_asked(home, tmp_path):
    red, green = list(CODES["red"]), list(CODES["green"])
    answers = [
        {"sample_id": "0/red", "turn": 1, "truth": [red], "said": [red]},
        {"sample_id": "1/red", "turn": 1, "truth": [red], "said": [red, red]},
        {"sample_id": "2/red", "turn": 1, "truth": [red], "said": [red], "broken": 1},
        {"sample_id": "0/both", "turn": 1, "truth": [red, green], "said": [green, red]},
        {"sample_id": "1/both", "turn": 1, "truth": [red, green], "said": [green]},
        {"sample_id": "0/blue", "turn": 1, "truth": [], "said": []},
        {"sample_id": "1/blue", "turn": 1, "truth": [], "said": [red]},
        {"sample_id": "0/green-red", "turn": 1, "truth": [green], "said": []},
        {"sample_id": "0/green-red", "turn": 3, "truth": [red], "said": [red]},
        {"sample_id": "1/green-red", "turn": 1, "truth": [green], "said": [green]},
        {"sample_id": "1/green-red", "turn": 3, "truth": [red], "said": []},
        {"sample_id": "3/red", "turn": 1, "truth": [red], "said": [], "problem": "image_missing"},
    ]
    uri = write_evaluation(tmp_path / "evaluation", answers)
    source = load(home / "a", failures=uri)
    assert sample_ids(source) == ["1/red", "1/both", "1/blue", "1/green-red", "2/red"]
    assert {name: source.counts[name] for name in ("rows", "prompts", "none", "right", "not_evaluated")} == {
        **{"rows": 40, "prompts": 5, "none": 1, "right": 4},
        "not_evaluated": 31,
    }
    with pytest.raises(DataError, match="no prompt left of 12 samples.* has wrong"):
        load(home / "a", home / "b", failures=uri)


def test_an_evaluation_of_other_words_or_another_folder_is_refused(home, tmp_path):
    uri = write_evaluation(tmp_path / "other", [], sha256="b" * 64)
    with pytest.raises(ConfigError, match="was measured with other words than .*Evaluate on this corpus"):
        load(home / "a", failures=uri)
    with pytest.raises(ConfigError, match="is no evaluation, expected the --out of jobs/evaluate_mllm.py"):
        load(home / "a", failures=str(home / "b"))


@pytest.mark.parametrize(
    ("share", "none", "targets"), [(0.0, 0, 39), (0.1, 4, 39), (0.2, 10, 39), (0.25, 13, 39), (0.8, 13, 39)]
)
def test_the_share_without_a_target_is_at_most_what_is_asked(home, share, none, targets):
    source = load(home / "a", home / "b", none_share=share)
    found = Counter(bool(source.prompt(index).question.truth) for index in range(len(source)))
    assert (found[False], found[True]) == (none, targets)
    assert (source.counts["none"], source.counts["prompts"]) == (none, none + targets)
    assert source.counts["too_many_none"] == 52 - none - targets
    assert sample_ids(load(home / "a", home / "b", none_share=share)) == sample_ids(source)
    if share in (0.1, 0.2):
        assert sample_ids(load(home / "a", home / "b", none_share=share, seed=1)) != sample_ids(source)


@pytest.mark.parametrize(
    ("none", "prompts", "told"),
    [
        (0, 10, None),
        (5, 10, None),
        (
            4666,
            8337,
            r"^56% of .* earns 0\.56 on average, .* 0\.44 \(p/\(1-p\) is 1\.27\).*--prompts\.none-share",
        ),
        (10, 10, r"^100% .* is infinite"),
    ],
)
def test_prompts_for_which_silence_pays_are_warned_of(none, prompts, told):
    """The second is the authors' GRES-8k."""
    found = silence_pays({"none": none, "prompts": prompts})
    assert (found is None) if told is None else re.match(told, found or "")


def test_a_share_that_cannot_be_is_refused(home, tmp_path):
    rows = [row for row in rows_of_images(tmp_path / "images", 1) if row["tags"] != ["none"]]
    full = write_chats(tmp_path / "full", rows, weights_sha256=None)
    assert len(load(full, none_share=0.0)) == len(load(full, none_share=0.5)) == 3
    rows = [row for row in rows_of_images(tmp_path / "images", 1) if row["tags"] == ["none"]]
    empty = write_chats(tmp_path / "empty", rows, weights_sha256=None)
    with pytest.raises(DataError, match=f"cannot be reached: none of the {len(rows)} prompts has a target"):
        load(empty, none_share=0.5)
    with pytest.raises(ConfigError, match="a share of all prompts, and weight="):
        load(f"uri={home / 'a'},weight=1", f"uri={home / 'b'},weight=2", none_share=0.1)


def test_tasks_and_limits_choose_and_everything_is_counted(home, lines):
    source = load(f"uri={home / 'a'},limit=30", home / "b", tasks=("gres",), limit=8)
    assert len(source) == 16 and source.counts["rows"] == 42
    assert source.counts["other_task"] == 7 + 3 and source.counts["over_limit"] == (23 - 8) + (9 - 8)
    ends = [count for name, count in source.counts.items() if name not in ("rows", "none")]
    assert sum(ends) == source.counts["rows"]
    assert lines == [
        "16 prompts of 42 samples, 4 (25.0%) of them without a target; left out: 10 other_task, 16 over_limit"
    ]
    with pytest.raises(DataError, match="no prompt left of 40 samples: none is an answer of the tasks gcg"):
        load(home / "a", tasks=("gcg",))


def test_a_draws_number_is_the_whole_state_whoever_reads(home):
    source = load(f"uri={home / 'a'},weight=1", f"uri={home / 'b'},weight=1")
    whole = source.draws(0, 200)
    assert source.draws(77, 50) == whole[77:127]  # resumed in the second epoch
    readers = [pickle.loads(pickle.dumps(source)) for _ in range(3)]
    shared = [readers[n % 3].draws(n * 10, 10) for n in range(20)]
    assert [index for part in shared for index in part] == whole
    assert sum(index < 40 for index in whole[:52]) == 26  # by weight, not by size
    assert load(home / "a", home / "b").draws(0, 52) != load(home / "a", home / "b", seed=1).draws(0, 52)
    assert sorted(load(home / "a", home / "b").draws(52, 52)) == list(range(52))


def test_the_digest_says_which_prompts_there_are_and_not_where_they_lie(home, tmp_path):
    rows = rows_of_images(home / "images", 10)
    copied = write_chats(tmp_path / "copy", rows, weights_sha256="a" * 64)
    digest = load(home / "a").digest
    assert load(copied, seed=5).digest == digest
    for settings in ({"thinking": True}, {"limit": 39}, {"none_share": 0.1}):
        assert load(home / "a", **settings).digest != digest


@pytest.fixture(scope="module")
def adapter(home):
    """The adapter of a tiny model of these words."""
    build_tiny(
        "qwen2_5_vl",
        home / "mllm",
        vocabulary=MaskVocabulary(NUM_CODES, NUM_LEVELS),
        texts=["Please segment red in this image."] * 4,
        seed=0,
        tokenizer_sha256="a" * 64,
    )
    return load_adapter(home / "mllm")


def test_prompts_are_encoded_up_to_the_answer_and_too_long_ones_are_rejected(home, adapter):
    plain, thinking = load(home / "a"), load(home / "a", thinking=True)
    short = encoded(adapter, plain.prompt(0))
    assert "pixel_values" in short.vision and short.num_learnt == 0
    most = len(short)
    assert len(encoded(adapter, plain.prompt(0), most)) == most
    rejects = []
    for index in range(8):
        try:
            encoded(adapter, thinking.prompt(index), most)
        except DataError as error:
            rejects.append(rejected(thinking.row(index), error))
    assert [entry["reason"] for entry in rejects] == ["too_long"] * 8
    assert rejects[0]["row_id"] == "0/red" and f"at most {most} are taken" in rejects[0]["message"]


def test_samples_that_cannot_be_asked_say_why(home, adapter):
    row = load(home / "a").row(0)
    gone = {**row, "images": [{**row["images"][0], "uri": str(home / "gone.png")}]}
    words = {"num_codes": NUM_CODES, "num_levels": NUM_LEVELS, "thinking": False}
    with pytest.raises(DataError) as error:
        encoded(adapter, prompt_of(gone, **words))
    assert error.value.reason == "image_missing"
    thought = {
        **row["messages"][1],
        "content": [{"text": "<think> a </think><answer> b </answer>", "image": None}],
    }
    for messages, reason in (
        ([row["messages"][0]], "no_answer"),
        ([row["messages"][1]], "no_answer"),
        ([*row["messages"], row["messages"][1]], "no_answer"),
        ([row["messages"][0], {**row["messages"][1], "mask_ids": ["other"]}], "missing_mask"),
        ([row["messages"][0], thought], "thought"),
    ):
        with pytest.raises(DataError) as error:
            prompt_of({**row, "messages": messages}, **words)
        assert error.value.reason == reason
    with pytest.raises(IndexError, match="prompt 40 of 40"):
        load(home / "a").prompt(40)


def test_chats_without_an_answer_to_ask_for_are_left_out_in_the_pass(home, tmp_path):
    rows = rows_of_images(tmp_path / "images", 4)
    user, answer = rows[0]["messages"]
    kinds = [[user], [answer], [user, answer, answer], [user, answer, user], [], [answer, user, answer]]
    for row, messages in zip(rows[1:], kinds, strict=False):
        row["messages"] = messages
    source = load(write_chats(tmp_path / "odd", rows, weights_sha256=None, per_shard=16))
    assert source.counts["no_answer"] == 4 and source.counts["prompts"] == 12
    assert sample_ids(source) == [rows[n]["sample_id"] for n in (0, 4, 6, *range(7, 16))]
    trailing = source.prompt(1)
    assert len(trailing.turns) == 1 and trailing.question.truth == (CODES["red"],)


def test_corpora_of_other_words_are_not_asked_together(home, tmp_path):
    rows = rows_of_images(tmp_path / "images", 1)
    other = write_chats(tmp_path / "other", rows, weights_sha256=None, num_codes=128)
    with pytest.raises(ConfigError, match="2 x 64 and 2 x 128 codes"):
        load(home / "a", other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("gress",)}, "--tasks must be some of .* got 'gress'"),
        ({"none_share": 1.0}, r"--none-share must be in \[0, 1\), got 1.0"),
        ({"max_prompt_tokens": 0}, "--max-prompt-tokens must be >= 1"),
    ],
)
def test_flags_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PromptsConfig(**settings)


def test_a_corpus_that_is_not_there_is_refused_with_what_makes_it(tmp_path):
    with pytest.raises(ConfigError, match=r"--chats .*/none is no finished corpus.*jobs/compose"):
        load(tmp_path / "none")


def test_a_look_at_a_corpus_reads_its_first_samples_only(home):
    source = load_prompts([str(home / "a")], PromptsConfig(), seed=0, peek=8)
    assert len(source) == 8 and source.counts["rows"] == 8
