"""What cheap answers earn by the reward of a run, and which of them earn as much as the truth: its holes.

Training finds holes. The default reward has none for the policies here; Eq. 5 as the paper has it leaves most
of what is malformed free, and captions to themselves. A run says at its start which it has.

    python -m pipelines.tools.reward_check                 a table for each kind of question
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.grpo.reward.components import Scored, score, true_response
from pipelines.grpo.reward.policies import NONE, POLICIES, Kind, Policy, kind_of
from samtok.rewards import Codes, Question, Reward
from samtok.rewards.captions import OBJECT_END, OBJECT_START, TASK
from samtok.words import format_words

AS_GOOD = 1e-9
"""A policy is a hole if it earns less than the truth by no more than this."""

_WHERE: dict[Kind, str] = {
    "target": "a question with targets",
    "no target": "a question without targets",
    "caption": "a caption",
}


@dataclass(frozen=True)
class Earned:
    """What a policy earns on a question, and whether that is as much as the truth does."""

    policy: Policy
    scored: Scored
    is_hole: bool


def first_of_each_kind(questions: Iterable[Question]) -> list[Question]:
    """Returns the first question of each kind, in their order."""
    found: dict[Kind, Question] = {}
    for question in questions:
        found.setdefault(kind_of(question), question)
    return list(found.values())


def earnings(
    question: Question, *, rewards: Mapping[str, Reward], weights: Mapping[str, float]
) -> list[Earned]:
    """Scores the policies for a question, the truth first.

    Raises:
        ConfigError: From ``score``; its numbers of responses are those of the policies, from 0.
    """
    answers = [(policy, policy.answer(question)) for policy in POLICIES[kind_of(question)]]
    said = [(policy, text) for policy, text in answers if text is not None]
    responses = [true_response(replace(question, text=text)) for _, text in said]
    scored = score([question] * len(responses), responses, rewards=rewards, weights=weights)
    least = scored[0].total - AS_GOOD
    return [
        Earned(policy, worth, place > 0 and worth.total >= least)
        for place, ((policy, _), worth) in enumerate(zip(said, scored, strict=True))
    ]


def holes_of(
    questions: Iterable[Question],
    *,
    rewards: Mapping[str, Reward],
    weights: Mapping[str, float],
    elsewhere: Sequence[str] = (),
) -> list[str]:
    """Returns a sentence for each policy that earns as much as the truth, on the first question of each kind.

    Args:
        elsewhere: Names of the components that are computed elsewhere. They are left out, as they need the
            image; if no other one has a weight there is nothing to compare.

    Raises:
        ConfigError: From ``score``.
    """
    known = {name: weight for name, weight in weights.items() if weight and name not in elsewhere}
    if not known:
        return []
    found = []
    for question in first_of_each_kind(questions):
        truth, *others = earnings(question, rewards=rewards, weights=known)
        found += [_sentence(one, question, truth.scored.total) for one in others if one.is_hole]
    return found


def _sentence(earned: Earned, question: Question, most: float) -> str:
    remedy = f"; {earned.policy.remedy}" if earned.policy.remedy else ""
    return (
        f"the reward has a hole: {earned.policy.name!r} earns {earned.scored.total:.2f} on "
        f"{_WHERE[kind_of(question)]}, the truth {most:.2f}{remedy}."
    )


def examples(num_codes: int, num_levels: int) -> list[Question]:
    """Returns a made-up question of each kind; their records have no image."""
    masks = [tuple((mask + level) % num_codes for level in range(num_levels)) for mask in (3, 7, 9)]
    dog, cat, grass = (format_words(codes, num_codes=num_codes) for codes in masks)
    caption = (
        f"{OBJECT_START} A brown dog {OBJECT_END} {dog} lies next to {OBJECT_START} a white cat {OBJECT_END} "
        f"{cat} on {OBJECT_START} the green grass {OBJECT_END} {grass}."
    )
    made = (("gres", masks[:2], f"{dog}, {cat}"), ("gres", [], NONE), (TASK, masks, caption))
    return [
        Question(
            truth=tuple(truth),
            text=text,
            num_codes=num_codes,
            num_levels=num_levels,
            record=_record(task, truth, text, num_codes),
        )
        for task, truth, text in made
    ]


def _record(task: str, truth: Sequence[Codes], text: str, num_codes: int) -> dict[str, Any]:
    """Returns a chat row without an image, so that rewards of one's own find what they look for."""
    listed = [
        {
            "mask_id": str(place),
            "image": 0,
            "codes": list(codes),
            "words": format_words(codes, num_codes=num_codes),
            "label": None,
            "iou": None,
            "rle": None,
        }
        for place, codes in enumerate(truth)
    ]
    question = {"role": "user", "content": [{"text": "What is there?", "image": None}], "mask_ids": []}
    answer = {
        "role": "assistant",
        "content": [{"text": text, "image": None}],
        "mask_ids": [mask["mask_id"] for mask in listed],
    }
    return {
        "dataset": "made-up",
        "split": "none",
        "image_id": "0",
        "sample_id": f"made-up/{task}",
        "task": task,
        "tags": [],
        "images": [],
        "messages": [question, answer],
        "masks": listed,
        "meta": None,
    }
