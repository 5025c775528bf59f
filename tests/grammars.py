"""Mask words with arbitrary token ids, and a machine that reads them one by one, to compare grammars with."""

from collections.abc import Sequence

import numpy as np

from samtok import words
from samtok.mllm.vocab import WordIds

VOCAB, WIDTH, NUM_CODES, STOP, PADS = 60, 64, 3, 7, (11, 42)
"""Tokens, width of logits (padded), codes per level, end of text, pads of images."""


def some_words(num_levels: int) -> WordIds:
    """Returns words whose ids are scattered over the vocabulary."""
    free = [token for token in range(VOCAB) if token not in (STOP, *PADS)]
    ids = [int(token) for token in np.random.default_rng(num_levels).permutation(free)]
    levels = tuple(tuple(ids[2 + NUM_CODES * i : 2 + NUM_CODES * (i + 1)]) for i in range(num_levels))
    return WordIds(ids[0], ids[1], levels)


def text_of(tokens: Sequence[int], ids: WordIds) -> str:
    """Writes tokens as text: mask words as they are, everything else as a letter."""
    names = dict(zip(ids.all, words.all_words(NUM_CODES, len(ids.codes)), strict=True))
    return "".join(names.get(token, "x") for token in tokens)


class Machine:
    """Reads a text token by token and says what may come next; remembers where it is."""

    def __init__(self, ids: WordIds) -> None:
        self.ids = ids
        self.place: int | None = None  # codes read of the word that is open

    def read(self, token: int) -> None:
        """Moves on by one token, allowed or not."""
        if token == self.ids.start:
            self.place = 0
        elif self.place is None or self.place == len(self.ids.codes):
            self.place = None
        else:
            self.place = self.place + 1 if token in self.ids.codes[self.place] else None

    def allowed(self) -> set[int]:
        """Returns the tokens that may come next."""
        if self.place is None:
            return set(range(VOCAB)) - {*self.ids.all[1:], *PADS}
        if self.place == len(self.ids.codes):
            return {self.ids.end}
        return set(self.ids.codes[self.place])


def allowed_after(tokens: Sequence[int], ids: WordIds) -> set[int]:
    """Returns the tokens that may follow these."""
    machine = Machine(ids)
    for token in tokens:
        machine.read(int(token))
    return machine.allowed()


def random_texts(ids: WordIds, *, count: int, length: int, seed: int) -> np.ndarray:
    """Draws texts (count x length) full of words, most of which are right and some are not."""
    rng = np.random.default_rng(seed)
    texts = np.zeros((count, length), dtype=np.int64)
    for text in texts:
        machine = Machine(ids)
        for position in range(length):
            choice = rng.random()
            if choice < 0.15:
                token = int(rng.integers(VOCAB))
            elif choice < 0.35:
                token = int(rng.choice(ids.all))
            else:
                likely = [ids.start] if machine.place is None else sorted(machine.allowed())
                token = int(rng.choice(likely))
            text[position] = token
            machine.read(token)
    return texts
