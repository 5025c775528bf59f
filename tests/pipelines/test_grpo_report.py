"""The report of a GRPO run: numbers, curves, glossary, alarms, trajectories, missing parts, hostile text."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from pipelines.grpo.observe import report
from pipelines.grpo.observe.report_metrics import STEP, VALIDATION, meaning, step_panels
from pipelines.grpo.trajectories import write_trajectories
from samtok.plots.base import LINES
from samtok.plots.rl import parts_plot
from tests.corpora import save_micro_tokenizer
from tests.pages import Page

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

HOSTILE = "<script>alert('x')</script>"
STEP_METRICS = (
    *("reward", "reward_std", "reward_targets", "reward_none", "said_none", "zero_std", "malformed"),
    *("duplicates", "num_pred", "tokens", "cut", "entropy", "kl", "clip_low", "clip_high", "mismatch"),
    *("staleness", "loss", "gradient_norm", "lr", "s_rollout", "s_reward", "s_learn", "s_sync", "s_step"),
    *("samples_per_s", "skipped", "mismatch_max", "off_policy", "off_policy_max", "staleness_max"),
    *("prompts", "learnt", "learnt_tokens", "kl_reward", "none_share", "signal_targets", "signal_none"),
)
VALIDATION_METRICS = (
    *("reward_sampled", "targets_sampled", "reward_greedy", "targets_greedy", "giou", "ciou", "n_acc"),
    *("t_acc", "exact_targets", "exact_single", "t_acc_sampled", "none_share", "prompts"),
    "single_sampled",
)
RECORD = {
    "best": [{"step": 570, "targets_sampled": 0.5}, {"step": 10, "targets_sampled": 0.4}],
    "alarms": [{"step": 1234, "name": "collapse", "sentence": f"94% say no mask {HOSTILE}", "fatal": False}],
    "seconds": {"s_step": 1234.0},
    "skipped_steps": 1,
    "rejects": {HOSTILE: 12},
    "lineage": {"model": "s3://m/sft", "prompts": ["uri=a", "uri=b"]},
    "versions": {"torch": "9.9"},
}


def steps(count, **changes):
    rows = []
    for step in range(count):
        row = dict.fromkeys(STEP_METRICS, 0.5)
        row |= {"reward": step / count, "reward/mask": 0.25, "reward/format": 1.0, "mismatch": 1e-6}
        rows.append({"step": step, **row, "skipped": step == 3, **changes})
    return rows


def held_out(count):
    rows = []
    for place in range(count):
        row = dict.fromkeys(VALIDATION_METRICS, 0.5) | {"none_share": 0.36, "giou": 0.4 + place / 1000}
        rows.append({"step": 10 * place, **row})
    return rows


def written(out, validations=(), **parts):
    given = {"config": {}, "record": {}, "history": []} | parts
    given["record"] = {**given["record"], "validations": validations}
    pictures = report.write_report(str(out), **given)
    return Page((out / "report" / "index.html").read_text()), pictures


def reply(draw):
    return {
        "draw": draw,
        "reply": 0,
        **dict.fromkeys(("sample_id", "dataset", "image_id", "question", "truth", "text"), "x"),
        **{"image_uri": "nowhere.png", "height": 8, "width": 8, "truth_codes": [], "thinking": False},
        **{"token_ids": [], "rollout_log_probs": [], "complete": True, "weight_version": 0, "staleness": 0},
        **{"reward": 1.0, "components": [], "advantage": 0.0, "used": False},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    for step in (0, 10, 20, 30, 40):
        write_trajectories(str(out), step, [reply(step)])
    config = {"model": HOSTILE, "tokenizer": save_micro_tokenizer(out / "micro")}
    page, pictures = written(out, config=config, record=RECORD, history=steps(100), validations=held_out(100))
    return out, page, pictures


@pytest.mark.parametrize(
    "text",
    [
        "collapse at step 1,234: 94% say no mask <script>",
        "0.499 greedy gIoU; 0.400 at first",
        '0.360 reward and gIoU of answering "No target." always',
        "0.5 responses per second over 100 steps, 20 min 34 s",
        "570 0.500 0.500 0.500 0.500 0.457 0.500 0.500 0.500 0.500 0.500 0.500 0.500 best",
        'always "No target." 0.360 0.000 0.360 0.000 0.360 0.000 1.000 0.000 0.000 0.000 0.000 0.000',
        "first, mean of 10 steps",
        "reward 0.045 0.945 Mean reward of a response",
        "reward/format 1 1 Mean of the reward's component format, before its weight.",
        "Prompts of the steps 0, 20, 40 , with masks drawn.",
        "1 skipped for a loss or gradient that is not finite. Counting from 0: 3",
        "model s3://m/sft prompts uri=a, uri=b",
        f'"model": "{HOSTILE}"',
    ],
)
def test_the_page_shows_what_became_of_the_run(run, text):
    assert text in run[1].text


def test_pictures_are_written_and_shown(run):
    out, page, pictures = run
    assert sorted(pictures) == ["curves.png", "times.png", "validation.png"]
    for name, data in pictures.items():
        assert (out / "report" / name).read_bytes() == data
    sizes = [Image.open(io.BytesIO(data)).size for data in pictures.values()]
    assert sorted(picture.size for picture in page.pictures()) == sorted(sizes)
    assert "script" not in page.tags


def test_trajectories_of_the_first_a_middle_and_the_last_step_have_their_page(run):
    out, page, _ = run
    assert ("href", "trajectories.html") in page.attributes
    text = Page((out / "report" / "trajectories.html").read_text()).text
    assert [f"Step {step} 1 prompts" in text for step in (0, 10, 20, 30, 40)] == [True, False] * 2 + [True]


def test_every_metric_is_explained_in_one_sentence():
    assert set(STEP_METRICS) <= set(STEP)
    assert set(VALIDATION_METRICS) == set(VALIDATION)
    for sentence in [*STEP.values(), *VALIDATION.values(), meaning("reward/mask")]:
        assert sentence[0].isupper(), sentence
        assert sentence.endswith("."), sentence
    assert meaning("of somebody else") == "-"


def test_a_run_that_made_nothing_has_a_report_that_says_so(tmp_path):
    page, pictures = written(tmp_path)
    assert pictures == {}
    for said in ("No step was taken.", "There were no held-out prompts.", "No trajectories were kept."):
        assert said in page.text


def test_metrics_that_are_missing_or_no_number_leave_gaps(tmp_path):
    history = [{"step": 0, "reward": 0.5}, {"step": 1, "reward": math.nan, "kl": None, "mismatch": math.inf}]
    page, pictures = written(
        tmp_path, history=history, validations=[{"step": 0, "giou": 0.25, "ciou": math.nan}]
    )
    assert sorted(pictures) == ["curves.png", "times.png", "validation.png"]
    assert "reward 0.5 - Mean reward" in page.text
    assert "0 - - - - 0.250 - " in page.text


@pytest.mark.parametrize("config", [{}, {"tokenizer": "no/such/tokenizer"}])
def test_trajectories_that_cannot_be_drawn_leave_the_rest_of_the_report(tmp_path, config, lines):
    write_trajectories(str(tmp_path), 0, [reply(0)])
    page, _ = written(tmp_path, config=config)
    assert "They cannot be drawn: " in page.text
    assert "No step was taken." in page.text
    assert any("cannot be drawn" in line for line in lines)


def test_only_components_with_a_weight_are_drawn():
    labels = [[c.label for c in step_panels(steps(9), names)[0].curves] for names in (["mask"], [])]
    assert labels == [["reward", "mask"], ["reward", "mask", "format"]]


# ---------------------------------------------------------------- the plot of times


def share_of(png, colour):
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour) < 12).all(axis=-1).sum())


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_parts_are_stacked_by_their_size(count):
    parts = {"rollout": np.full(count, 3.0), "learning": np.full(count, 1.0), "sync": np.full(count, np.nan)}
    png = parts_plot(np.arange(count), parts, title="times", y_label="seconds")
    assert share_of(png, LINES[0]) / share_of(png, LINES[1]) == pytest.approx(3, rel=0.05)


def test_parts_without_a_value_per_step_are_refused():
    with pytest.raises(ValueError, match="part 'sync' has 1 values for 2 steps"):
        parts_plot([0.0, 1.0], {"sync": [1.0]}, title="", y_label="")
    with pytest.raises(ValueError, match="got 0 steps and 1 parts"):
        parts_plot([], {"sync": []}, title="", y_label="")
