"""A chat and a teacher's reply become a chat with a thought before its answer, or a reason why not.

    teacher   <COT> The red ring is left of the star. </COT>
    sample    <think> The red ring is left of the star. </think><answer> ANSWER </answer>

The format is that of the prompts of reinforcement learning (``pipelines.chats.prompts``), so that a model
fine-tuned on such samples can be asked to think. Pure functions.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.chats.prompts import Prompt, Row, ask_to_think, last_answer, prompt_of
from pipelines.chats.tokens import refuse_control_tokens, without_ours
from samtok import words
from samtok.errors import DataError
from samtok.mllm.thinking import answer_of, between
from samtok.rewards import DEFAULT, Codes, Response

MAX_REPLY_CHARS = 100_000
"""Longest reply that is read; a longer one is no thought but a teacher that repeats itself."""

_TAGS = re.compile(r"</?(?:think|answer|COT)>")
_TOOL_CALL = re.compile(r"</?tool_call\b")
_THINKS_IN_WORDS = ("gcg",)
"""Tasks whose thoughts must name masks: a caption's objects are what there is to think about."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is asked of a reply; see ``config.py``."""

    num_codes: int
    num_levels: int
    sees_answer: bool
    min_reward: float
    thinks: bool = False


def with_thought(row: Row, reply: str, rules: Rules) -> Row:
    """Returns the sample with a question that asks for a thought, and with thought and answer.

    Masks that the thought names and the sample does not have are added without an outline. Turns after the
    last answer are left out.

    Raises:
        DataError: ``reply_too_long``, ``no_cot`` without a thought, ``tool_call``, ``no_word_in_thought`` for
            a caption's thought that names no mask, ``no_own_answer`` where one was asked for, ``tags`` for a
            thought with tags of the format in it, ``low_reward``, ``malformed_words``, ``control_token``; or
            as ``prompt_of``.
    """
    prompt = prompt_of(row, thinking=True, num_codes=rules.num_codes, num_levels=rules.num_levels)
    thought, rest = _parts(reply, "think" if rules.thinks else "COT")
    answer = prompt.question.text if rules.sees_answer else answer_of(rest).strip()
    if row["task"] in _THINKS_IN_WORDS and not _codes(thought, rules):
        raise DataError(f"the thought of a {row['task']} names no mask", reason="no_word_in_thought")
    if not answer:
        raise DataError("the reply has no answer after its thought", reason="no_own_answer")
    text = f"<think> {thought} </think><answer> {answer} </answer>"
    _check_target(text, thought, answer, prompt, rules)
    return _assembled(row, text, thought, answer, rules)


def _parts(reply: str, tag: str) -> tuple[str, str]:
    """Returns the thought, which is inside of tags, and what follows it."""
    if len(reply) > MAX_REPLY_CHARS:
        raise DataError(
            f"the reply has {len(reply)} characters, expected at most {MAX_REPLY_CHARS}",
            reason="reply_too_long",
        )
    if _TOOL_CALL.search(reply):
        raise DataError("the reply calls a tool", reason="tool_call")
    found = between(reply, f"<{tag}>", f"</{tag}>")
    if found is None or not found[0].strip():
        message = f"the reply has no thought inside <{tag}> and </{tag}>: {reply[:80]!r}"
        raise DataError(message, reason="no_cot")
    return found[0].strip(), found[1]


def _check_target(text: str, thought: str, answer: str, prompt: Prompt, rules: Rules) -> None:
    """Makes sure that what is learnt reads back as what was meant."""
    tag = _TAGS.search(thought) or _TAGS.search(answer)
    if tag:
        raise DataError(f"the reply has {tag[0]} inside its thought or answer", reason="tags")
    reward = DEFAULT(prompt.question, Response(text=text))["mask"]
    if reward < rules.min_reward:
        raise DataError(
            f"the answer {answer[:80]!r} has reward {reward:.3g}, --min-reward is {rules.min_reward:g}",
            reason="low_reward",
        )
    _codes(text, rules)  # raises for a broken word, which would be taken for a control token below
    refuse_control_tokens(without_ours(text), "the reply")


def _assembled(row: Row, text: str, thought: str, answer: str, rules: Rules) -> Row:
    last = last_answer(row["messages"])
    assert last is not None  # the prompt was made from it
    messages = ask_to_think(row["messages"][:last])
    true_ids = row["messages"][last]["mask_ids"]
    masks = [*row["masks"], *_unknown(row, _codes(text, rules), _last_image(messages), rules)]
    named = _names(_codes(thought, rules), masks, true_ids)
    named += true_ids if rules.sees_answer else _names(_codes(answer, rules), masks, true_ids)
    content = [{"text": text, "image": None}]
    messages.append({"role": "assistant", "content": content, "mask_ids": named})
    return {**row, "messages": messages, "masks": masks}


def _unknown(row: Row, named: Iterable[Codes], image: int, rules: Rules) -> list[dict[str, Any]]:
    """Returns masks, without outlines, for words that none of the sample's masks has."""
    known = {tuple(mask["codes"]) for mask in row["masks"]}
    return [
        {
            "mask_id": f"said-{'-'.join(map(str, codes))}",
            "image": image,
            "codes": list(codes),
            "words": _word(codes, rules),
            "label": None,
            "iou": None,
            "rle": None,
        }
        for codes in dict.fromkeys(named)
        if codes not in known
    ]


def _names(listed: Iterable[Codes], masks: Sequence[Mapping[str, Any]], true_ids: Sequence[str]) -> list[str]:
    """Returns which masks are meant by words: true ones before others, the same words in turn."""
    places = {mask_id: place for place, mask_id in enumerate(true_ids)}
    found: dict[Codes, list[str]] = {}
    for mask in sorted(masks, key=lambda mask: places.get(mask["mask_id"], len(places))):
        found.setdefault(tuple(mask["codes"]), []).append(mask["mask_id"])
    named = []
    for codes in listed:
        ids = found[codes]
        named.append(ids[0])
        found[codes] = [*ids[1:], ids[0]]
    return named


def _last_image(messages: Iterable[Mapping[str, Any]]) -> int:
    shown = [part["image"] for message in messages for part in message["content"] if part["text"] is None]
    return shown[-1] if shown else 0


def _codes(text: str, rules: Rules) -> list[Codes]:
    return words.parse_words(text, num_codes=rules.num_codes, num_levels=rules.num_levels)


def _word(codes: Codes, rules: Rules) -> str:
    return words.format_words(codes, num_codes=rules.num_codes)
