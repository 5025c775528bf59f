"""The default reward of training: named components, of which one has a weight.

``mask`` is the paper's reward (Eq. 5) and has weight 1. All others are logged and have weight 0 until they
are given one. The length of a response or of its thought is rewarded by none of them, but for that of a
caption (``samtok.rewards.captions``).
"""

from dataclasses import dataclass

from samtok.rewards import captions
from samtok.rewards.answer import read
from samtok.rewards.form import format_reward, no_repeat_reward
from samtok.rewards.mask_words import TruePositives, check_options, graded_reward, mask_reward
from samtok.rewards.response import Question, Response

COMPONENTS = (
    "mask",  # Eq. 5, in [0, 1]
    "graded",  # the follow-up's variant, in [0, 1]
    "format",  # 1: the tags that the prompt asks for
    "no_repeat",  # 1: no mask word or sentence again and again
    "readable",  # 1: there is an answer; 0 only for a thinking response without tags
    "says_none",  # 1: an answer without mask words or pieces of them, such as "No target."
    "num_words",  # mask words in the answer
    "num_duplicates",  # of those, words that were there before
    "num_malformed",  # pieces of mask words in the answer that are not exactly a word
    *captions.COMPONENTS,  # 1 to all questions but those for a grounded caption
)
"""Names of the components."""


@dataclass(frozen=True, kw_only=True)
class TextReward:
    """Scores the text of responses; the options are those of ``mask_reward``, the component ``mask``."""

    tp: TruePositives = "multiset"
    count_malformed: bool = True
    partial: float = 0.0

    def __post_init__(self) -> None:
        check_options(self.tp, self.partial)

    def __call__(self, question: Question, response: Response) -> dict[str, float]:
        """Returns all of ``COMPONENTS``."""
        answer = read(question, response)
        mask = mask_reward(
            question, answer, tp=self.tp, count_malformed=self.count_malformed, partial=self.partial
        )
        named = bool(answer.words or answer.num_malformed)
        return {
            "mask": mask,
            "graded": graded_reward(question, answer),
            "format": format_reward(question, response),
            "no_repeat": no_repeat_reward(question, response),
            "readable": float(answer.text is not None),
            "says_none": float(answer.text is not None and not named),
            "num_words": float(len(answer.words)),
            "num_duplicates": float(len(answer.words) - len(set(answer.words))),
            "num_malformed": float(answer.num_malformed),
            **captions.caption_components(question, answer),
        }


DEFAULT = TextReward()
"""Repeated true masks are matched one by one, and everything malformed costs."""

PAPER = TextReward(tp="distinct", count_malformed=False)
"""Eq. 5 as the paper has it. Most of what is malformed costs nothing: ``pipelines.grpo.reward.policies``."""
