"""Rewards of reinforcement learning: pure functions of what a model said and what was true. No torch here.

    from samtok.rewards import DEFAULT, Question, Reply

    DEFAULT(Question(truth=((3, 44),), text=words), Reply(text=said))["mask"]

``samtok.rewards.iou`` compares pixels instead of words; it needs a tokenizer and is loaded by itself.
"""

from samtok.rewards.answer import Answer, read
from samtok.rewards.mask_words import graded_reward, mask_reward
from samtok.rewards.reply import Codes, Question, Reply, Reward
from samtok.rewards.standard import COMPONENTS, DEFAULT, PAPER, TextReward

__all__ = [
    "COMPONENTS",
    "DEFAULT",
    "PAPER",
    "Answer",
    "Codes",
    "Question",
    "Reply",
    "Reward",
    "TextReward",
    "graded_reward",
    "mask_reward",
    "read",
]
