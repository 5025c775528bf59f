"""Trajectories of a GRPO run: the files, and the page that shows them with masks drawn."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.grpo.observe import trajectory_page as page
from pipelines.grpo.trajectories import (
    TRAJECTORY_ROW,
    components_of,
    read_trajectories,
    steps_of,
    write_trajectories,
)
from pipelines.schema import SCHEMA_VERSION
from samtok.errors import ConfigError, DataError
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots import pictures as viz
from samtok.words import format_words
from tests.corpora import save_micro_tokenizer
from tests.pages import Page

HOSTILE = "<script>alert('x')</script>"
NUM_CODES = 64
A, B = (3, 9), (40, 1)


def say(*codes):
    return "It is " + " and ".join(format_words(code, num_codes=NUM_CODES) for code in codes) + "."


def trajectory(draw, reply, reward, text, **changes):
    """One row without its step."""
    return {
        "draw": draw,
        "reply": reply,
        "sample_id": f"s{draw}",
        "dataset": "toy",
        "image_id": str(draw),
        "image_uri": "nowhere.png",
        "height": 48,
        "width": 64,
        "question": f"Where is thing {draw}?",
        "truth": say(A),
        "truth_codes": [list(A)],
        "thinking": False,
        "text": text,
        "token_ids": [5, 6, 7],
        "rollout_log_probs": [-0.5, -0.25, 0.0],
        "complete": True,
        "weight_version": 4,
        "staleness": 0,
        "reward": reward,
        "components": [{"name": "mask", "value": reward}, {"name": "format", "value": 1.0}],
        "advantage": reward - 0.5,
        "used": True,
        **changes,
    }


# ---------------------------------------------------------------- files


def test_replies_come_back_as_they_were_by_prompt_and_reply(tmp_path):
    rows = [trajectory(9, 1, 0.5, say(A)), trajectory(9, 0, 1.0, "No target."), trajectory(2, 0, 0.0, say(B))]
    uri = write_trajectories(str(tmp_path), 12, rows)
    assert uri.endswith("/trajectories/step-00000012.parquet")
    wanted = [{"step": 12, **row} for row in (rows[2], rows[1], rows[0])]
    assert list(read_trajectories(str(tmp_path))) == wanted
    assert components_of(wanted[2]) == {"mask": 0.5, "format": 1.0}
    schema = pq.read_schema(uri)
    assert schema.metadata[b"samtok_schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.names == TRAJECTORY_ROW.names


def test_a_repeated_step_writes_the_same_bytes_in_any_order(tmp_path):
    rows = [trajectory(draw, reply, 0.5, say(A)) for draw in range(3) for reply in range(2)]
    write_trajectories(str(tmp_path), 1, [trajectory(0, 0, 0.0, "of a run that was killed")])
    first = Path(write_trajectories(str(tmp_path), 1, rows)).read_bytes()
    second = Path(write_trajectories(str(tmp_path), 1, reversed(rows))).read_bytes()
    assert first == second
    assert len(list(read_trajectories(str(tmp_path)))) == 6
    assert [file.name for file in (tmp_path / "trajectories").iterdir()] == ["step-00000001.parquet"]


def test_a_range_of_steps_is_read_with_both_ends(tmp_path):
    for step in (0, 5, 10, 123456789):
        write_trajectories(str(tmp_path), step, [trajectory(step, 0, 0.5, say(A))])
    (tmp_path / "trajectories" / "step-x.parquet").write_bytes(b"not ours")
    assert steps_of(str(tmp_path)) == [0, 5, 10, 123456789]
    assert [row["step"] for row in read_trajectories(str(tmp_path), 10)] == [10]
    assert [row["step"] for row in read_trajectories(str(tmp_path), 6)] == []
    assert list(read_trajectories(str(tmp_path / "none"))) == []


def test_trajectories_of_another_schema_are_refused(tmp_path):
    uri = write_trajectories(str(tmp_path), 0, [trajectory(0, 0, 0.5, "")])
    pq.write_table(pq.read_table(uri).replace_schema_metadata({"samtok_schema_version": "1"}), uri)
    with pytest.raises(DataError, match=f"schema version 1, expected {SCHEMA_VERSION}"):
        list(read_trajectories(str(tmp_path)))


# ---------------------------------------------------------------- which replies are shown


def replies(*rewards):
    return [{"reply": place, "reward": reward} for place, reward in enumerate(rewards)]


@pytest.mark.parametrize(
    ("rewards", "shown"),
    [
        ((0.2, 1.0, 0.5, 0.0, 0.7), {"best": 1, "middle": 2, "worst": 3}),
        ((0.5, 0.5, 0.5), {"best": 0, "middle": 1, "worst": 2}),
        ((0.0, 1.0), {"best": 1, "worst": 0}),
        ((0.3,), {"best": 0}),
    ],
)
def test_the_best_a_middle_and_the_worst_reply_are_shown(rewards, shown):
    assert {kind: row["reply"] for kind, row in page.extremes(replies(*rewards))} == shown


def test_prompts_are_drawn_without_repeats_in_their_order():
    groups = page.by_prompt({"draw": draw, "reply": 0} for draw in (7, 3, 5, 1))
    assert [group[0]["draw"] for group in groups] == [1, 3, 5, 7]
    drawn = page.choose(groups, 3, np.random.default_rng(0))
    numbers = [group[0]["draw"] for group in drawn]
    assert len(set(numbers)) == 3
    assert numbers == sorted(numbers)
    assert page.choose(groups, 9, np.random.default_rng(0)) == groups


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that kept two steps: three replies to a prompt, one to another whose image is gone."""
    home = tmp_path_factory.mktemp("grpo")
    tokenizer = save_micro_tokenizer(home / "micro")
    image = home / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    place = {"image_uri": str(image), "question": HOSTILE, "image_id": "a'b"}
    thought = f"<think>{say(A)}</think><answer>{say(B)}</answer>"
    rows = [
        trajectory(3, 0, 0.5, say(A, B), **place, staleness=2),
        trajectory(3, 1, 0.0, thought, **place, thinking=True, complete=False, used=False),
        trajectory(3, 2, 1.0, say(A), **place),
        trajectory(4, 0, 0.25, f"broken {format_words(A, num_codes=NUM_CODES)[:-4]} {HOSTILE}"),
    ]
    for step in (0, 50):
        write_trajectories(str(home / "run"), step, rows)
    (home / "run" / "config.json").write_text(json.dumps({"tokenizer": tokenizer}))
    return home / "run"


@pytest.fixture(scope="module")
def tokenizer(run):
    return MaskTokenizer.from_pretrained(str(run.parent / "micro"))


@pytest.fixture(scope="module")
def shown(run):
    assert page.main([str(run), "--steps", "50", "--num", "2"]) == 0
    return Page((run / "report" / "trajectories.html").read_text())


def test_the_page_shows_pictures_that_lie_beside_it(run, shown):
    names = ["truth", "reply-2", "reply-0", "reply-1"]
    wanted = [f"trajectories/step-00000050-prompt-00000003-{name}.jpg" for name in names]
    assert shown.sources() == wanted
    for source in shown.sources():
        with Image.open(run / "report" / source) as picture:
            assert picture.size == (256, 192)
    assert not {"script", "link", "iframe"} & set(shown.tags)
    assert (
        "content",
        "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'",
    ) in shown.attributes


@pytest.mark.parametrize(
    "said",
    [
        "Step 50 2 prompts, 4 responses, mean reward 0.438, 50.0% of the groups with equal rewards.",
        "toy a'b, s3, prompt 3 of the run; rewards of all responses: 0.50 0.00 1.00",
        f"best, response 2 {say(A)} reward 1.000, advantage +0.500, mask 1, format 1; 3 tokens",
        f"middle, response 0 {say(A, B)} reward 0.500",
        "worst, response 1 <think>",
        "format 1; 3 tokens cut by the limit of tokens; not learnt from",
        "3 tokens 2 versions old",
        "The image cannot be shown:",
        HOSTILE,
    ],
)
def test_the_page_says_what_was_asked_and_replied(shown, said):
    assert said in shown.text


def test_no_line_of_the_page_is_long(run, shown):
    lines = (run / "report" / "trajectories.html").read_text().splitlines()
    assert max(map(len, lines)) < 1000


def test_masks_of_an_answer_are_drawn_and_not_those_of_its_thought(run, tokenizer):
    rows = list(read_trajectories(str(run), 50))
    assert page.codes_of(rows[1], tokenizer) == [B]
    assert page.codes_of(rows[0], tokenizer) == [A, B]
    assert page.codes_of(rows[3], tokenizer) == []


def test_a_reply_is_drawn_with_the_masks_of_its_own_words(run, tokenizer):
    rows = list(read_trajectories(str(run), 50))[:3]
    drawn = page.draw(rows, tokenizer).pictures
    with Image.open(rows[0]["image_uri"]) as opened:
        image = np.array(opened)
    small = viz.fit(image, page.SIDE)

    def alone(*codes):
        fitted = [viz.fit_mask(mask, page.SIDE) for mask in tokenizer.decode(image, np.array(codes))]
        return viz.jpeg_bytes(viz.overlay(small, fitted, alpha=0.4, numbers=True))

    assert drawn["truth"] == drawn["reply-2"] == alone(A)
    assert drawn["reply-1"] == alone(B)
    assert drawn["reply-0"] == alone(A, B)
    assert len(set(drawn.values())) == 3


def test_a_prompt_without_any_mask_shows_the_image_alone(run, tokenizer):
    row = trajectory(0, 0, 1.0, "No target.", image_uri=str(run.parent / "image.png"), truth_codes=[])
    drawn = page.draw([row], tokenizer)
    assert drawn.problem is None
    assert drawn.pictures["truth"] == drawn.pictures["reply-0"]


def test_by_default_the_first_a_middle_and_the_last_step_are_shown(tmp_path):
    for step in (0, 5, 10, 15, 20):
        write_trajectories(str(tmp_path), step, [trajectory(0, 0, 0.5, "")])
    assert page.some_steps(str(tmp_path)) == [0, 10, 20]
    assert page.some_steps(str(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--steps", "0,7"], 3, "no trajectories of step 7. It has those of the steps 0, 50 (--steps)."),
        (["--steps", "first"], 2, "--steps must be numbers with commas between them, got 'first'"),
        (["--num", "0"], 2, "--num must be >= 1"),
    ],
)
def test_steps_and_numbers_that_cannot_be_shown_are_said(run, caplog, capfd, flags, code, message):
    assert page.main([str(run), *flags]) == code
    assert message in caplog.text + capfd.readouterr().err


def test_a_tokenizer_of_other_words_is_refused(run, tokenizer):
    row = trajectory(0, 0, 1.0, "", image_uri=str(run.parent / "image.png"), truth_codes=[[3, 64]])
    with pytest.raises(ConfigError, match=re.escape("has the true codes (3, 64), the given tokenizer makes")):
        page.draw([row], tokenizer)
