"""Thoughts and answers are told apart as the authors' scripts do."""

import pytest

from samtok.mllm.thinking import answer_of, split_thinking


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
