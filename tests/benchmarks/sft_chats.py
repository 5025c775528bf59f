"""Chats of chosen lengths for ``sft.py``."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtok.mllm.family import Adapter
from samtok.mllm.tiny.models import default_texts
from samtok.words import format_words

SIDE = 56
IMAGE_TOKENS, TURN_TOKENS = 22, 14
"""Tokens of a chat that are no text: once, and per question and answer, the latter's mask included."""


def chat_rows(home: Path, adapter: Adapter, tokens: tuple[int, int], count: int) -> Iterator[dict[str, Any]]:
    """Makes chats of 1 to 12 questions and as long answers, each with a mask, about images of one size.

    Lengths are spread evenly over their logarithm, from about ``tokens[0]`` to ``tokens[1]`` tokens.
    """
    rng = np.random.default_rng(0)
    say = _Speaker(adapter, rng)
    for number in range(count):
        path = home / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        length = float(np.exp(rng.uniform(*np.log(tokens))))
        rounds = min(int(rng.integers(1, 13)), max(1, int(length - IMAGE_TOKENS) // (2 * TURN_TOKENS)))
        budget = (length - IMAGE_TOKENS) / rounds - TURN_TOKENS
        messages = []
        for turn in range(rounds):
            shown = [{"text": None, "image": 0}] if turn == 0 else []
            word = format_words(rng.integers(0, 256, 2).tolist(), num_codes=256)
            for role, text in (("user", say(budget / 2)), ("assistant", f"{say(budget / 2)} {word}")):
                content = [*(shown if role == "user" else []), {"text": text, "image": None}]
                messages.append({"role": role, "content": content, "mask_ids": []})
        yield {
            "dataset": "benchmark",
            "split": "train",
            "image_id": str(number),
            "sample_id": str(number),
            "task": "interactive",
            "tags": [],
            "images": [{"uri": str(path), "height": SIDE, "width": SIDE}],
            "messages": messages,
            "masks": [],
            "meta": None,
        }


class _Speaker:
    """Says sentences of the shapes language, of about so many tokens."""

    def __init__(self, adapter: Adapter, rng: np.random.Generator) -> None:
        texts = [text for text in default_texts() if "<|" not in text]
        words = [word for i in rng.permutation(len(texts)) for word in texts[i].split()]
        sizes = {word: len(adapter.tokenizer(f" {word}")["input_ids"]) for word in set(words)}
        self._words = cycle([(word, sizes[word]) for word in words])

    def __call__(self, tokens: float) -> str:
        said: list[str] = []
        while tokens > 0 or not said:
            word, size = next(self._words)
            said.append(word)
            tokens -= size
        return " ".join(said)
