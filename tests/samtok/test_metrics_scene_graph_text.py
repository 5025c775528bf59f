"""Answers with scene graphs are read as far as they go, and what is no triplet is counted."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.chats.corpus import text_of
from pipelines.dialogues.compose import Settings, compose_row
from pipelines.dialogues.scene import Scene, triplets_of
from pipelines.dialogues.style import STYLES
from samtok.metrics.referring import MODES
from samtok.metrics.scene_graph_text import END_OF_TURN, StatedTriplet, read_answer, words_of
from samtok.words import format_words, parse_words
from tests.code_rows import NUM_CODES, NUM_LEVELS, random_row

A, B = format_words((3, 44)), format_words((7, 144))
CLASSES = ("person", "dining table", "table", "grass", "cat")
PREDICATES = ("over", "on", "on back of", "beside")
QUICK = settings(max_examples=60, deadline=None)


def _stated(subject="person", predicate="on", object_="grass", words=(A, B)) -> StatedTriplet:
    return StatedTriplet(
        subject=subject,
        subject_words=words[0],
        predicate=predicate,
        object=object_,
        object_words=words[1],
    )


def _entry(subject="person", predicate="on", object_="grass", words=(A, B)) -> dict:
    return {
        "subject": {"mask_2d": words[0], "label": subject},
        "predicate": predicate,
        "object": {"mask_2d": words[1], "label": object_},
    }


GOOD, OTHER = json.dumps(_entry()), json.dumps(_entry("cat", "beside", "person"))
LIST = f"[{GOOD},\n{OTHER}]"
BOTH = [_stated(), _stated("cat", "beside", "person")]
BARE = LIST.replace(f'"{A}"', A).replace(f'"{B}"', B)

# Text; triplets, malformed and unknown ones, whether it is finished; the first three in official mode.
READ = [
    (f"```json\n{LIST}\n```", BOTH, 0, 0, True, (2, 0, 0)),
    (f"```json\n{LIST}\n```{END_OF_TURN}", BOTH, 0, 0, True, (2, 0, 0)),
    (f"```json\n{LIST}\n```\n{END_OF_TURN}", BOTH, 0, 0, False, (2, 0, 0)),
    (f"```JSON{LIST}```", BOTH, 0, 0, True, (2, 0, 0)),
    (f"```\n{LIST}\n```", BOTH, 0, 0, True, (2, 0, 0)),
    (f"Here it is:\n```json\n{LIST}\n```", BOTH, 0, 0, True, (2, 0, 0)),
    (f"```json\n{LIST}\n``` as asked", BOTH, 0, 0, False, (2, 0, 0)),
    (f"```json\n{LIST}", BOTH, 0, 0, False, (2, 0, 0)),  # nothing closes the fence
    (f"```json\n{LIST[:-20]}", BOTH[:1], 1, 0, False, (1, 1, 0)),  # cut in the second entry
    (f"```json\n[{GOOD},", BOTH[:1], 0, 0, False, (1, 0, 0)),  # cut between entries
    (LIST, BOTH, 0, 0, False, (2, 0, 0)),
    (f"The graph: {LIST} is all.", BOTH, 0, 0, False, (1, 1, 0)),
    (f"```json\n{GOOD}\n```", BOTH[:1], 0, 0, True, (1, 0, 0)),  # an entry without a list
    (f"```json\n{BARE}\n```", BOTH, 0, 0, True, (0, 2, 0)),  # words without quotes
    (f"```json\n[{GOOD} {OTHER}]\n```", BOTH, 0, 0, True, (1, 1, 0)),  # the longer one alone
    ('```json\n[{"subject": {"label": ' + f"}}, {OTHER}]\n```", BOTH[1:], 1, 0, True, (1, 1, 0)),
    ("```json\n[]\n```", [], 0, 0, True, (0, 0, 0)),
    ("```json\n```", [], 0, 0, True, (0, 0, 0)),
    ("", [], 0, 0, False, (0, 0, 0)),
    ("```json\n[1, null, {}]\n```", [], 3, 0, True, (0, 3, 0)),
    ("```json\n[broken\n```", [], 1, 0, True, (0, 1, 0)),
    (f"```json\n[{json.dumps(_entry('a person'))}]\n```", [], 0, 1, True, (0, 0, 1)),
    (f"```json\n[{json.dumps(_entry(predicate='near'))}]\n```", [], 0, 1, True, (0, 0, 1)),
    (f"```json\n[{json.dumps(_entry('Person'))}]\n```", [], 0, 1, True, (0, 0, 1)),  # exact, not by case
    (f"```json\n[{json.dumps(_entry(' person ', ' on', 'grass '))}]\n```", BOTH[:1], 0, 0, True, (1, 0, 0)),
    (f"person {A} on grass {B}\ncat {A} beside person {B}", BOTH, 0, 0, False, (2, 0, 0)),
    (f"\nperson {A} on grass {B}\n\n", BOTH[:1], 0, 0, False, (1, 0, 0)),
    (f"person {A} on dining table {B}", [_stated(object_="dining table")], 0, 0, False, (1, 0, 0)),
    (f"person {A} on back of cat {B}", [_stated("person", "on back of", "cat")], 0, 0, False, (1, 0, 0)),
    (f"person {A} near grass {B}", [], 0, 1, False, (0, 0, 1)),
    (f"person {A} on {B}", [], 1, 0, False, (0, 1, 0)),  # no object
    (f"person {A} on grass", [], 1, 0, False, (0, 1, 0)),
    (f"{A} on grass {B}", [], 1, 0, False, (0, 1, 0)),
    (f"person {A} on grass {B}.", [], 1, 0, False, (0, 1, 0)),
    (f"person {A}, {B} on grass {B}", [], 1, 0, False, (0, 1, 0)),
    ("I see none.", [], 1, 0, False, (0, 1, 0)),
]


@pytest.mark.parametrize(("text", "triplets", "malformed", "unknown", "finished", "official"), READ)
def test_an_answer_is_read_as_far_as_it_goes(text, triplets, malformed, unknown, finished, official):
    found = read_answer(text, classes=CLASSES, predicates=PREDICATES)
    assert list(found.triplets) == triplets
    assert (found.num_malformed, found.num_unknown, found.finished) == (malformed, unknown, finished)
    quirky = read_answer(text, classes=CLASSES, predicates=PREDICATES, mode="official")
    assert (len(quirky.triplets), quirky.num_malformed, quirky.num_unknown) == official
    assert quirky.finished == finished


def test_the_longest_entry_of_a_broken_list_is_the_one_that_official_mode_keeps():
    found = read_answer(f"```json\n[{GOOD} {OTHER}]\n```", mode="official")
    assert len(OTHER) > len(GOOD) and list(found.triplets) == BOTH[1:]


def test_an_unfinished_answer_is_used_in_strict_mode_alone():
    cut, whole = read_answer(f"```json\n{LIST}"), read_answer(f"```json\n{LIST}\n```")
    assert list(cut.used("strict") or ()) == BOTH and cut.used("official") is None
    assert list(whole.used("strict") or ()) == list(whole.used("official") or ()) == BOTH


def test_without_lists_every_label_is_kept_and_the_last_word_of_a_line_is_the_object():
    assert list(read_answer(f"a {A} right of b {B}").triplets) == [_stated("a", "right of", "b")]
    (one,) = read_answer(f"```json\n[{json.dumps(_entry('x', 'y z', 'u v'))}]\n```").triplets
    assert (one.subject, one.predicate, one.object) == ("x", "y z", "u v")
    (one,) = read_answer(f"a {A} right of b {B}", predicates=["right"]).triplets
    assert (one.predicate, one.object) == ("right", "of b")


def test_words_come_in_pairs():
    assert words_of(BOTH) == [A, B, A, B]
    (one,) = read_answer(f"```json\n[{json.dumps(_entry(words=('', A + B)))}]\n```").triplets
    assert words_of([one]) == ["", A + B]  # what they mean is decided where they are decoded


@QUICK
@given(st.integers(0, 10**9), st.sampled_from(STYLES))
def test_composed_answers_are_read_back(made, style):
    row = random_row(random.Random(made))
    options = Settings(num_codes=NUM_CODES, num_levels=NUM_LEVELS, tasks={"psg": 1.0}, styles=(style,))
    graphs = {one["annotation_id"]: one for one in row["annotations"] if one["task"] == "scene_graph"}
    for sample in compose_row(row, options).samples:
        (item,) = json.loads(sample["meta"])["items"]
        labels = {mask["mask_id"]: mask["label"] for mask in row["masks"]}
        wanted = triplets_of(json.loads(graphs[item]["payload"]), graphs[item]["mask_ids"], item)
        expected = [(labels[a], predicate, labels[b]) for a, predicate, b in wanted]
        found = read_answer(
            text_of(sample["messages"][1]),
            classes={label for label in labels.values() if label},
            predicates={predicate for _, predicate, _ in wanted},
        )
        assert [(one.subject, one.predicate, one.object) for one in found.triplets] == expected
        assert (found.num_malformed, found.num_unknown) == (0, 0)
        scene = Scene(row, num_codes=NUM_CODES, num_levels=NUM_LEVELS)
        codes = [tuple(scene.masks[name]["codes"]) for a, _, b in wanted for name in (a, b)]
        read = [parse_words(words, num_codes=NUM_CODES) for words in words_of(found.triplets)]
        assert read == [[one] for one in codes]


pieces = st.one_of(
    st.sampled_from(["```json", "```", "[", "]", "{", "}", ",", "\n", '"', ":", GOOD, OTHER, A, B, A[:-3]]),
    st.sampled_from(['{"subject":', '"mask_2d":', "person ", " on grass ", END_OF_TURN, "\\", "\ud800"]),
    st.text("aé{[\"'\\|<>`_ \n0", max_size=5),
)


@QUICK
@given(st.lists(pieces, max_size=14).map("".join), st.sampled_from(MODES))
def test_any_text_is_read_and_its_counts_add_up(text, mode):
    free = read_answer(text, mode=mode)
    assert free.num_unknown == 0
    bound = read_answer(text, classes=["person"], predicates=["on"], mode=mode)
    assert len(bound.triplets) + bound.num_unknown == len(free.triplets)
    assert bound.num_malformed == free.num_malformed
    assert (free.used(mode) is None) == (mode == "official" and not free.finished)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(LIST)))
def test_a_cut_answer_keeps_its_whole_entries(end):
    found = read_answer("```json\n" + LIST[:end])
    assert list(found.triplets) == BOTH[: LIST[:end].count("}}")]
    assert found.num_malformed <= 1 and not found.finished


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(
    "piece", ['{"subject":', '{"subject": [', '{"subject": "', f"[{GOOD},", "{", A, "```"]
)
def test_a_text_of_a_million_characters_is_read_in_linear_time(piece):
    start = time.monotonic()
    read_answer(piece * (10**6 // len(piece)), classes=CLASSES, predicates=PREDICATES)
    assert time.monotonic() - start < 5
