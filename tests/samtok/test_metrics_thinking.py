"""Thoughts and answers are told apart as the authors' scripts do."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtok.mllm.thinking import answer_of, between, split_thinking


@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        ("<think>a</think><answer>b</answer>", "a", "b"),
        ("<think> a\nb </think> x <answer> c\nd </answer> y", " a\nb ", " c\nd "),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "a", "b"),
        ("<think>a</think>b", "a", "b"),
        ("<think>a</think><answer>b", "a", "b"),
        ("a<answer>b</answer>", "a", "b"),
        ("a</think>b", "a", "b"),
        ("a</think>b<answer>c", "ab", "c"),
        ("<think>never closed b", None, None),
        ("b", None, None),
        ("", None, None),
    ],
)
def test_a_text_is_split_at_its_tags(text, think, answer):
    assert split_thinking(text) == (think, answer)
    assert answer_of(text) == (text if answer is None else answer)


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "a", " ", "\n"]


@given(text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_a_pair_of_tags_is_found_as_by_a_pattern(text):
    for start, end in (PIECES[:2], PIECES[2:4]):
        found = re.search(f"{start}(.*?){end}", text, re.DOTALL)
        assert between(text, start, end) == (None if found is None else (found[1], text[found.end() :]))


@pytest.mark.parametrize("piece", [" ", "<think>", "<answer>", "<answer></think>", "<think></answer> "])
def test_a_text_of_a_million_characters_is_split_in_linear_time(piece):
    text = piece * (1_000_000 // len(piece))
    before = time.process_time()
    split_thinking(text)
    assert time.process_time() - before < 1
