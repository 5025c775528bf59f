"""Rewards of reinforcement learning: pure functions of a question and a response. No torch here.

    from samtok.rewards import DEFAULT, Question, Response

    DEFAULT(Question(truth=((3, 44),), text=words), Response(text=output))["mask"]

``samtok.rewards.iou`` compares pixels instead of words; it needs a tokenizer and is loaded by itself.
"""

from samtok.rewards.answer import Answer, read
from samtok.rewards.mask_words import graded_reward, mask_reward
from samtok.rewards.response import Codes, Question, Response, Reward
from samtok.rewards.standard import COMPONENTS, DEFAULT, PAPER, TextReward

__all__ = [
    "COMPONENTS",
    "DEFAULT",
    "PAPER",
    "Answer",
    "Codes",
    "Question",
    "Response",
    "Reward",
    "TextReward",
    "graded_reward",
    "mask_reward",
    "read",
]
