"""Tiny MLLMs, images and chats for tests."""

from pathlib import Path

import numpy as np
import pytest

from samtok import words
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.registry import FAMILIES as KNOWN
from samtok.mllm.tiny.models import TinyConfig, build_tiny
from samtok.mllm.vocab import MaskVocabulary

FAMILIES = tuple(KNOWN)
FAST = ("qwen2_5_vl", "qwen3_5")
"""Those that `make test` builds, and CI trains with every engine: each has something of its own, a vision of
windows and linear attention."""
_SLOW = [pytest.mark.slow, pytest.mark.numerics]
EACH_FAMILY = tuple(name if name in FAST else pytest.param(name, marks=_SLOW) for name in FAMILIES)
"""All of them, for parameters of tests; some are left to the slow tests."""
QWEN = tuple(name for name, family in KNOWN.items() if family.mrope)
"""Those whose rows can be packed."""
VLLM = ("qwen2_5_vl", "qwen3_vl")
"""Those that the tests run in vLLM."""
VOCABULARY = MaskVocabulary(16, 2)
TEXTS = ["Segment the red ring.", "Where is the blue star?", "It is here: ", "No target.", "Be brief."] * 4


def build(folder: Path, family: str = "qwen2_5_vl", *, words: bool = True, **numbers: object) -> Path:
    """Builds a tiny model; without words it is as a hub would have it."""
    config = TinyConfig(vocab_size=320, **numbers)  # pyright: ignore[reportArgumentType]
    vocabulary = VOCABULARY if words else None
    build_tiny(family, folder, vocabulary=vocabulary, texts=TEXTS, seed=0, config=config)  # pyright: ignore
    return folder


def picture(seed: int = 0, size_hw: tuple[int, int] = (56, 56)) -> np.ndarray:
    """Noise in colour."""
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def mask(*codes: int) -> str:
    """The words of one mask."""
    return words.format_words(codes, num_codes=VOCABULARY.num_codes)


def chat(question: str = "Where is the blue star?", answer: str | None = None) -> list[Turn]:
    """A question about one image, and an answer."""
    answer = f"It is here: {mask(3, 9)}" if answer is None else answer
    return [Turn("user", (0, question)), Turn("assistant", (answer,))]


def samples(adapter: Adapter) -> list[Encoded]:
    """Three dialogues of different lengths, with one image, two images and none."""
    two = [
        Turn("user", (1, "Segment the red ring.", 0)),
        Turn("assistant", (mask(0, 0) + mask(15, 15),)),
        Turn("user", (f"And what is {mask(0, 0)}?",)),
        Turn("assistant", ("A ring.",)),
    ]
    none = [Turn("user", ("Be brief.",)), Turn("assistant", ("Yes.",))]
    return [
        adapter.encode(chat(), [picture(1)]),
        adapter.encode(two, [picture(2), picture(3, (40, 90))]),
        adapter.encode(none, []),
    ]


def loaded(folder: Path) -> Adapter:
    """The adapter of a folder."""
    return load_adapter(folder)
