"""What cheap answers earn, exactly, by kind of question and reward; and that a run says which are holes."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from pipelines.grpo.prepare import prepare
from pipelines.grpo.presets import GCG, GRES
from pipelines.grpo.reward.components import CAPTION_WEIGHTS, ScoringConfig, rewards_of
from pipelines.grpo.reward.earnings import earnings, examples, first_of_each_kind, holes_of
from pipelines.grpo.reward.policies import POLICIES, kind_of
from pipelines.tools.reward_check import main
from samtok.rewards import DEFAULT, Question, Response
from samtok.rewards.captions import COMPONENTS
from samtok.words import format_words
from tests.grpo import CODES, World
from tests.mllm_evaluations import NUM_CODES, chat_row, write_chats, write_image

MASK = {"mask": 1.0}
DOG, CAT, GRASS = (format_words(codes) for codes in ((3, 4), (7, 8), (9, 10)))
TARGET, NO_TARGET, CAPTION = examples(256, 2)
PLAIN = dataclasses.replace(
    CAPTION, text=f"A brown dog {DOG} lies next to a white cat {CAT} on the green grass {GRASS}."
)
EQ5 = {"true_positives": "distinct", "count_malformed": False}


def earned(question: Question, weights: dict[str, float] = MASK, **options: Any) -> dict[str, float]:
    found = earnings(question, rewards=rewards_of(ScoringConfig(**options)), weights=weights)
    return {one.policy.name: round(one.scored.total, 9) for one in found}


def holes(*questions: Question, weights: dict[str, float] = MASK, **options: Any) -> list[str]:
    return holes_of(questions, rewards=rewards_of(ScoringConfig(**options)), weights=weights)


def test_what_policies_earn_on_words():
    """By default, and by Eq. 5 as the paper has it."""
    free = {"the truth, then stray codes": (2 / 5, 1), "codes too many in each word": (2 / 4, 1)}
    kept = {"the truth": 1, "No target.": 0, "one true word": 1 / 2, "everything twice": 1 / 2}
    kept |= {"the last codes wrong": 0, "no word ends": 0}
    assert earned(TARGET) == kept | {name: ours for name, (ours, _) in free.items()}
    assert earned(TARGET, **EQ5) == kept | {name: paper for name, (_, paper) in free.items()}
    broken = ("codes without start and end", "a word without its end", "a word without codes")
    assert earned(NO_TARGET) == {"the truth": 1, "a word": 0} | dict.fromkeys(broken, 0)
    assert earned(NO_TARGET, **EQ5) == {"the truth": 1, "a word": 0} | dict.fromkeys(broken, 1)
    assert earned(TARGET, partial=0.5)["the last codes wrong"] == 0.5


# mask, caption_length, caption_repetition, caption_overlap, phrase_structure; their sum by CAPTION_WEIGHTS.
# The caption has 13 tokens and 25 grams; of the phrases only those of dog and cat share one, of 3 + 2 grams.
MARKED_EARN = {
    "the truth": (1, 1, 1, 1, 1, 1),
    "words alone": (1, 0, 1, 0, 0, 0.4),
    "gibberish with the right words": (1, 1, 1, 0, 0, 0.5),
    "phrases swapped": (1, 1, 1, 1, 0.2 / 3, 0.65 + 0.35 * 0.2 / 3),
    "the caption without masks": (0, 1, 1, 1, 0, 0.3),
    "one true word": (1 / 3, 0, 1, 0, 0, 0.35 / 3 + 0.05),
    "everything twice": (
        *(1 / 2, 1 / 2, 13 / 24, 50 / 76, 1 / 2),
        0.35 + 0.15 * 50 / 76 + 0.05 + 0.05 * 13 / 24,
    ),
    "the truth, then stray codes": (1 / 2, 1, 1, 1, 1 / 2, 0.65),
    "codes too many in each word": (1 / 2, 1, 1, 1, 1 / 2, 0.65),
}
# Without marks the phrases are "a brown dog", "lies next to a white cat" and "on the green grass".
PLAIN_EARN = MARKED_EARN | {
    "phrases swapped": (1, 1, 1, 1, 2 / 16 / 3, 0.65 + 0.35 * 2 / 16 / 3),
}


@pytest.mark.parametrize(
    ("question", "table"), [(CAPTION, MARKED_EARN), (PLAIN, PLAIN_EARN)], ids=["marked", "plain"]
)
def test_what_policies_earn_on_a_caption(question, table):
    found = earnings(question, rewards=rewards_of(ScoringConfig()), weights=CAPTION_WEIGHTS)
    for one, (name, values) in zip(found, table.items(), strict=True):
        components = [one.scored.components[each] for each in ("mask", *COMPONENTS)]
        assert (one.policy.name, [*components, one.scored.total]) == (name, pytest.approx(list(values)))
    assert sum(CAPTION_WEIGHTS.values()) == pytest.approx(1)


def test_the_reward_for_captions_pays_each_cheat_clearly_less_than_the_truth():
    for question in (CAPTION, PLAIN):
        truth, *others = earned(question, CAPTION_WEIGHTS).items()
        assert truth == ("the truth", 1) and all(value <= 0.75 for _, value in others)
        before = earned(question)  # by words alone three of them earned everything
        assert [name for name, value in before.items() if value == 1][1:] == [
            *("words alone", "gibberish with the right words", "phrases swapped")
        ]


def test_the_default_reward_has_no_hole_in_words_and_the_papers_names_its_own():
    assert holes(TARGET, NO_TARGET) == holes(CAPTION, weights=CAPTION_WEIGHTS) == []
    found = holes(TARGET, NO_TARGET, CAPTION, **EQ5)
    assert [sentence.split("'")[1] for sentence in found] == [
        *("the truth, then stray codes", "codes too many in each word"),
        *("codes without start and end", "a word without its end", "a word without codes"),
        *("words alone", "gibberish with the right words", "phrases swapped"),
        *("the truth, then stray codes", "codes too many in each word"),
    ]
    assert found[2] == (
        "the reward has a hole: 'codes without start and end' earns 1.00 on a question without targets, the "
        "truth 1.00; with --reward.count-malformed the component mask counts it."
    )
    assert "earns 1.00 on a caption, the truth 1.00; --reward.weights mask=0.35,phrase_structure" in found[5]


def test_holes_are_found_by_scoring_with_the_weights_that_are_given():
    said = holes(TARGET, partial=1.0)
    assert said == [
        "the reward has a hole: 'the last codes wrong' earns 1.00 on a question with targets, the truth "
        "1.00; a lower --reward.partial pays less for it."
    ]
    silent = holes(TARGET, weights={"num_words": -0.1})
    assert "'No target.' earns 0.00 on a question with targets, the truth -0.20." in silent[0]
    rewards = rewards_of(ScoringConfig())
    elsewhere = {"rewards": rewards, "elsewhere": ("iou",)}
    assert holes_of([TARGET], weights={"iou": 1.0}, **elsewhere) == []
    assert holes_of([TARGET], weights={"iou": 1.0, "mask": 1.0}, **elsewhere) == []
    assert len(holes_of([TARGET], weights={"iou": 1.0, "format": 1.0}, **elsewhere)) == 7


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(("num_codes", "num_levels"), [(256, 2), (1, 1), (2, 2), (3, 3), (1024, 1)])
def test_policies_can_answer_in_any_vocabulary(num_codes, num_levels, thinking):
    made = [dataclasses.replace(each, thinking=thinking) for each in examples(num_codes, num_levels)]
    assert [kind_of(question) for question in made] == list(POLICIES)
    for question in made:
        truth, *others = earnings(question, rewards=rewards_of(ScoringConfig()), weights=MASK)
        assert truth.scored.total == 1 and not truth.is_hole and others
        assert truth.scored.components == DEFAULT(question, Response(text=question.text)) or thinking


def test_a_policy_that_would_say_the_truth_is_left_out():
    one = Question(truth=((3, 4),), text=DOG, record={"task": "gcg"})
    assert not {"one true word", "phrases swapped"} & set(earned(one))
    every = Question(truth=((0, 0), (0, 1)), text="", num_codes=2)
    assert "the last codes wrong" not in earned(every)


def test_of_questions_the_first_of_each_kind_is_taken():
    other = dataclasses.replace(TARGET, text="other")
    assert first_of_each_kind([CAPTION, TARGET, other, PLAIN]) == [CAPTION, TARGET]
    assert first_of_each_kind([]) == []


# ---------------------------------------------------------------- where they are told


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("policies"), images=1)


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> str:
    """Chats of one caption with two masks."""
    home = tmp_path_factory.mktemp("captions")
    uri, found = write_image(home, 0)
    row = chat_row(uri, found, CODES, ["both"], task="gcg")
    red, green = (format_words(CODES[name], num_codes=NUM_CODES) for name in ("red", "green"))
    row["messages"][1]["content"] = [{"text": f"A red box {red} beside a green one {green}.", "image": None}]
    return write_chats(home / "chats", [row], weights_sha256="a" * 64)


def told(caplog: pytest.LogCaptureFixture, config: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        prepare(config)
    return [record.getMessage() for record in caplog.records if "hole" in record.getMessage()]


def test_a_run_says_at_its_start_which_holes_its_reward_has(world, captions, caplog):
    paper, modern = GRES["paper"].reward, GRES["modern"].reward
    assert told(caplog, world.config(dry_run=True, reward=modern)) == []
    said = told(caplog, world.config(dry_run=True, reward=paper))
    assert [line.split("'")[1] for line in said if "without targets" in line] == [
        *("codes without start and end", "a word without its end", "a word without codes")
    ]
    assert len(said) == 5
    asked = {"chats": (captions,), "dry_run": True}
    assert told(caplog, world.config(reward=GCG["modern"].reward, **asked)) == []
    said = told(caplog, world.config(reward=GCG["paper"].reward, **asked))
    assert len(said) == 5 and all("on a caption, the truth 1.00" in line for line in said)
    said = told(caplog, world.config(reward=modern, **asked))
    assert [line.split("'")[1] for line in said] == [
        *("words alone", "gibberish with the right words", "phrases swapped")
    ]


def test_only_the_papers_preset_leaves_captions_to_themselves():
    assert {name for name, preset in GCG.items() if preset.reward.weights == MASK} == {"paper"}
    assert all(GCG[name].reward.count_malformed for name in ("smoke", "tour", "modern"))
    assert GCG["paper"].reward == GRES["paper"].reward
    tour = GCG["tour"]
    assert tour.prompts.tasks == ("gcg",) and tour.tokenizer == "tour"
    assert tour.rollout.max_new_tokens == GCG["smoke"].rollout.max_new_tokens


def test_reward_check_prints_a_table_for_each_kind_of_question(captions, capsys):
    assert main(["--preset", "paper"]) == 0
    tables = [table.splitlines() for table in capsys.readouterr().out.split("\n\n")]
    assert [table[0].partition(":")[0] for table in tables] == list(POLICIES)
    assert tables[1][1].split() == ["mask", "total"]
    assert [line.split("  ")[0] for line in tables[1] if line.endswith("  a hole")] == [
        *("codes without start and end", "a word without its end", "a word without codes")
    ]
    assert main(["--preset", "captions", "--chats", captions]) == 0
    (table,) = capsys.readouterr().out.split("\n\n")
    head, names, *rows = table.splitlines()
    assert head.startswith("caption: A red box <|mt_start|>")
    assert names.split() == ["mask", *COMPONENTS, "total"] and "hole" not in table
    assert rows[0].split() == ["the", "truth", *["1.0000"] * 6]
    assert rows[1].split()[2:] == ["1.0000", "0.0000", "1.0000", "0.0000", "0.0000", "0.4000"]


def test_the_table_of_the_guide_has_these_numbers():
    guide = (Path(__file__).parents[2] / "docs/guide/grpo.md").read_text()
    lines = [line for line in guide.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = {(kind, name): (float(paper), float(modern)) for kind, name, paper, modern in rows}
    expected = {}
    for question in (TARGET, NO_TARGET, CAPTION):
        kind = kind_of(question)
        paper = earned(question, **EQ5)
        modern = earned(question, CAPTION_WEIGHTS if kind == "caption" else MASK)
        expected |= {(kind, name): (round(paper[name], 2), round(modern[name], 2)) for name in paper}
    assert found == {key: value for key, value in expected.items() if key[1] != "the truth"}
