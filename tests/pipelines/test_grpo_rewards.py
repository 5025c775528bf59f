"""Rewards by name, weights, checked results, and the check of a file of responses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.grpo.reward.components import (
    STANDARD,
    Scored,
    ScoringConfig,
    check_rewards,
    check_weights,
    combine,
    parse_weights,
    resolve,
    rewards_of,
    score,
)
from pipelines.tools.reward_check import RewardCheckConfig, main, reward_check
from samtok.errors import ConfigError, DataError
from samtok.rewards import COMPONENTS, PAPER, Question, Response
from samtok.words import format_words
from tests.mllm_evaluations import NUM_CODES, chat_row, write_chats

A, B = (format_words(codes) for codes in ((3, 44), (7, 144)))
QUESTION = Question(truth=((3, 44),), text=A, record={"sample_id": "toy/1"})
MASK = {"mask": 1.0}

PLUG_INS = """
import math
import numpy as np

class Length:
    @staticmethod
    def short(question, response):
        return {"short": len(response.text) < 60, "length": np.float32(len(response.text))}

short = Length.short
LIMIT = 60
def nothing(question, response): pass
def a_number(question, response): return 1.0
def not_finite(question, response): return {"short": math.nan}
def infinite(question, response): return {"short": -math.inf}
def text(question, response): return {"short": "yes"}
def unnamed(question, response): return {1: 1.0}
def no_such_key(question, response): return {"short": question.record["no_such_key"]}
def mask(question, response): return {"mask": 1.0}
"""


@pytest.fixture(autouse=True)
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that a user might write."""
    (tmp_path / "made_rewards.py").write_text(PLUG_INS)
    (tmp_path / "broken_rewards.py").write_text("import no_such_package\n")
    (tmp_path / "mistyped_rewards.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def scored(response: str = A, weights: dict | None = None, plug_ins: tuple = (), **options) -> Scored:
    rewards = rewards_of(ScoringConfig(plug_ins=plug_ins, **options))
    (found,) = score([QUESTION], [Response(text=response)], rewards=rewards, weights=weights or MASK)
    return found


def test_the_total_is_the_weighted_sum_and_everything_is_kept():
    found = scored(A + B, {"mask": 2.0, "format": 0.5, "num_words": -0.1}, ("made_rewards:Length.short",))
    assert tuple(found.components) == (*COMPONENTS, "short", "length")
    assert found.total == pytest.approx(2 * 0.5 + 0.5 - 0.2)
    assert found.components["length"] == len(A + B) and found.components["short"] == 0.0
    assert all(type(value) is float for value in found.components.values())


def test_options_reach_the_standard_reward():
    near = format_words((3, 45))
    assert scored(near).total == 0 and scored(near, partial=0.25).total == 0.25
    broken = A + "<|mt_start|>"
    assert scored(broken).total == 0.5 and scored(broken, count_malformed=False).total == 1
    assert rewards_of(ScoringConfig(true_positives="distinct", count_malformed=False)) == {STANDARD: PAPER}


def test_every_response_is_scored_with_its_own_question_and_extra_components():
    questions = [QUESTION, Question(truth=(), text="No target.")]
    responses = [Response(text="no"), Response(text="no")]
    extra = [{"iou": 0.25}, {"iou": np.float64(1.0)}]
    weights = {"mask": 1.0, "iou": 2.0}
    found = score(questions, responses, rewards=rewards_of(ScoringConfig()), weights=weights, extra=extra)
    assert [one.total for one in found] == [0.5, 3.0]
    assert found[0].components["iou"] == 0.25
    with pytest.raises(ValueError, match="argument 3 is shorter"):
        score(questions, responses, rewards=rewards_of(ScoringConfig()), weights=MASK, extra=extra[:1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("made_rewards", "'made_rewards' must be given as module:function"),
        (":short", "must be given as module:function"),
        ("no_such_rewards:short", "there is no module 'no_such_rewards'. Put its file into the folder"),
        ("samtok.no_such:short", "there is no module 'samtok.no_such'"),
        ("broken_rewards:short", "importing broken_rewards fails with ModuleNotFoundError.*no_such_package"),
        ("mistyped_rewards:f", "importing mistyped_rewards fails with SyntaxError"),
        ("made_rewards:shrt", r"made_rewards \(.*made_rewards.py\) has no 'shrt'; it has .*short"),
        ("made_rewards:LIMIT", "'made_rewards:LIMIT' is a int, expected a function"),
    ],
)
def test_a_name_that_is_no_reward_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "nothing",
            "made_rewards:nothing gives a NoneType on response 0, to the sample 'toy/1', expected a dict",
        ),
        ("a_number", "made_rewards:a_number gives a float on response 0"),
        ("not_finite", "made_rewards:not_finite gives 'short': nan on response 0, to the sample 'toy/1'"),
        ("infinite", "gives 'short': -inf"),
        ("text", "gives 'short': 'yes'"),
        ("unnamed", "gives 1: 1.0"),
        ("no_such_key", "made_rewards:no_such_key fails on response 0, .*'toy/1': KeyError: 'no_such_key'"),
        ("mask", "made_rewards:mask gives the component 'mask' on response 0.*another reward gives too"),
    ],
)
def test_a_wrong_result_names_the_reward_and_the_sample(function, message):
    with pytest.raises(ConfigError, match=message):
        scored(plug_ins=(f"made_rewards:{function}",))


def test_extra_components_are_checked_too():
    def of(extra: dict) -> Callable[[], object]:
        responses = [Response(text=A)]
        return lambda: score(
            [QUESTION], responses, rewards=rewards_of(ScoringConfig()), weights=MASK, extra=[extra]
        )

    with pytest.raises(ConfigError, match="extra components gives 'iou': nan"):
        of({"iou": float("nan")})()
    with pytest.raises(ConfigError, match="'mask' .*another reward"):
        of({"mask": 1.0})()


def test_weights_are_read_and_unknown_ones_refused():
    assert parse_weights(" mask=1, format=0.1,num_words=-1e-3,") == {
        "mask": 1.0,
        "format": 0.1,
        "num_words": -0.001,
    }
    for text in ("mask", "mask=", "mask=much", "=1", "mask=1,mask=2"):
        with pytest.raises(ConfigError, match=r"^--weights .*\.$"):
            parse_weights(text)
    for value in ("nan", "inf"):
        with pytest.raises(ConfigError, match=f"'mask' must be finite, got {value}"):
            ScoringConfig(weights=parse_weights(f"mask={value}"))
    for weights in ({}, {"mask": 0.0}):
        with pytest.raises(ConfigError, match="every reward would be 0"):
            check_weights(weights)
    with pytest.raises(
        ConfigError, match="component 'fromat', which no reward gives; known ones are mask, grad"
    ):
        scored(weights={"fromat": 1.0})
    with pytest.raises(ConfigError, match="is inf, not finite"):
        combine({"a": 1e308}, {"a": 10.0})


@pytest.mark.parametrize("thinking", [False, True])
def test_the_true_answer_earns_everything_before_a_run_begins(thinking):
    question = Question(truth=((3, 44), (7, 144)), text=f"{A} and {B}", thinking=thinking)
    found = check_rewards(rewards_of(ScoringConfig()), {"mask": 1.0, "iou": 1.0}, question, elsewhere=["iou"])
    names = ("mask", "graded", "format", "no_repeat")
    assert found.total == 2 and all(found.components[name] == 1 for name in names)
    with pytest.raises(ConfigError, match="'iou', which no reward gives"):
        check_rewards(rewards_of(ScoringConfig()), {"iou": 1.0}, question)


# The check of a file.


def write_lines(path: Path, *lines: object) -> str:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return str(path)


def cells(output: str) -> list[dict[str, str]]:
    head, *rows = [line.split() for line in output.splitlines() if not line.startswith("responses")]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_a_file_of_responses_becomes_a_table(tmp_path, capsys):
    thought = "<think> left </think><answer> {} </answer>"
    path = write_lines(
        tmp_path / "responses.jsonl",
        {"truth": A, "response": thought.format(A)},
        "",
        {"truth": f"{A} {B}", "response": f"</think>{B}"},
        {"truth": "No target.", "response": thought.format(A)},
    )
    weights = "mask=1,format=0.5,short=-1"
    flags = ["--responses", path, "--thinking", "--weights", weights, "--plug-ins", "made_rewards:short"]
    assert main(flags) == 0
    output = capsys.readouterr().out
    rows = cells(output)
    assert [row["line"] for row in rows] == ["1", "3", "4", "mean"]
    assert [row["mask"] for row in rows] == ["1.0000", "0.5000", "0.0000", "0.5000"]
    assert [row["total"] for row in rows] == ["1.5000", "-0.5000", "0.5000", "0.5000"]
    assert set(rows[0]) == {"line", *COMPONENTS, "short", "length", "total"}
    assert "responses 3, total between -0.5000 and 1.5000" in output
    assert "zero 0, below zero 1, different totals 3" in output


def test_the_paper_preset_counts_as_the_paper_does(tmp_path, capsys):
    path = write_lines(
        tmp_path / "responses.jsonl",
        {"truth": A + A, "response": A + A},
        {"truth": A, "response": A + "<|mt_start|>"},
    )
    for preset, expected in (("paper", ["0.5000", "1.0000"]), ("modern", ["1.0000", "0.5000"])):
        assert main(["--preset", preset, "--responses", path]) == 0
        assert [row["total"] for row in cells(capsys.readouterr().out)[:2]] == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "responses.jsonl, line 2 is not JSON"),
        ([1], 'responses.jsonl, line 2: expected an object with the text "response"'),
        ({"truth": A, "response": 3}, 'line 2: expected an object with the text "response"'),
        ({"response": A}, 'line 2: expected the text "truth"'),
        ({"sample_id": "x", "response": A}, 'line 2: expected the text "truth" or, with --chats'),
        ({"truth": A[:-3], "response": A}, "line 2: its truth cannot be read: mask words are malformed"),
        ({"truth": A, "response": A, "task": "cgc"}, "line 2: task must be one of res, gres, .*, got 'cgc'"),
        ({"truth": A, "response": A, "task": []}, r"line 2: task must be one of .*, got \[\]"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, line, message):
    path = write_lines(tmp_path / "responses.jsonl", {"truth": A, "response": A}, line)
    with pytest.raises(DataError, match=message):
        reward_check(RewardCheckConfig(responses=path))


def test_captions_are_judged_in_lines_that_say_so(tmp_path, capsys):
    caption = f"A dog {A} on a mat {B}."
    line = {"truth": caption, "response": A + B}
    lines = [line, {**line, "task": "gres"}, {**line, "task": "gcg"}]
    path = write_lines(tmp_path / "responses.jsonl", *lines)
    assert main(["--responses", path, "--preset", "captions"]) == 0
    assert [row["total"] for row in cells(capsys.readouterr().out)[:3]] == ["1.0000", "1.0000", "0.4000"]


def test_an_empty_file_ends_with_the_exit_code_of_data(tmp_path):
    assert main(["--responses", write_lines(tmp_path / "none.jsonl")]) == 3
    assert main(["--responses", write_lines(tmp_path / "none.jsonl"), "--plug-ins", "made_rewards"]) == 2


def test_flags_that_cannot_work_fail_at_once():
    for flags in (["--weights", "mask"], ["--partial", "2"], ["--num-codes", "0"]):
        with pytest.raises(SystemExit) as end:
            main(["--responses", "responses.jsonl", *flags])
        assert end.value.code == 2


@pytest.fixture
def chats(tmp_path: Path) -> str:
    """A chat of two turns about one image, with a small codebook."""
    found = {"red": np.eye(48, dtype=bool), "green": ~np.eye(48, dtype=bool)}
    row = chat_row("a.png", found, {"red": (3, 4), "green": (5, 6)}, ["green", "red"])
    return write_chats(tmp_path / "chats", [row], weights_sha256=None)


def test_truth_can_come_from_a_corpus_of_chats(tmp_path, chats, capsys):
    red = format_words((3, 4), num_codes=NUM_CODES)
    path = write_lines(tmp_path / "r.jsonl", {"sample_id": "0/green-red", "response": red})
    assert main(["--responses", path, "--chats", chats]) == 0
    assert cells(capsys.readouterr().out)[0]["total"] == "1.0000"
    assert main(["--chats", chats]) == 0
    assert capsys.readouterr().out.startswith(f"target: {red}\n")
    path = write_lines(tmp_path / "r.jsonl", {"sample_id": "0/blue", "response": red})
    with pytest.raises(DataError, match=r"r.jsonl, line 1: .*/chats has no sample '0/blue'"):
        reward_check(RewardCheckConfig(responses=path, chats=chats))
