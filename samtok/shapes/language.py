"""True sentences about a scene: relations, a caption with grounded phrases, and phrases for single shapes.

Every sentence follows from the scene alone: words for size, colour and kind from the shapes, words for
places from the boxes of the visible parts. Where a reader could disagree (a shape right at a boundary of
"left"), no sentence is made, so a target is never a matter of taste. Referring expressions are in
``referring``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from samtok.shapes.world import Scene, ShapeObject

PREDICATES = ("left of", "right of", "above", "below", "in front of", "behind")
"""Predicates of ``relations``, in the order of their ids."""

MARGIN = 0.08
"""Least distance of two box centres, as a share of the shorter image side, for "left of" and the like."""

Span = tuple[int, int, tuple[int, ...]]
Offset = Callable[[tuple[float, float], tuple[float, float]], float]
AHEAD: dict[str, Offset] = {
    "left of": lambda a, b: b[0] - a[0],
    "right of": lambda a, b: a[0] - b[0],
    "above": lambda a, b: b[1] - a[1],
    "below": lambda a, b: a[1] - b[1],
}
"""How far the point a (x, y) is to that side of b, in pixels."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase such as ``small red circle``; what is None is left out."""

    size: str | None = None
    colour: str | None = None
    kind: str | None = None

    def matches(self, shape: ShapeObject) -> bool:
        """Returns whether the phrase is true of the shape."""
        words = ((self.size, shape.size), (self.colour, shape.colour), (self.kind, shape.kind))
        return all(word is None or word == true for word, true in words)

    def text(self, *, plural: bool = False) -> str:
        """Returns the words without an article; without a kind the noun is ``shape``."""
        noun = self.kind or "shape"
        if plural:
            noun = {"cross": "crosses"}.get(noun, noun + "s")
        return " ".join(word for word in (self.size, self.colour, noun) if word)


ANY = Phrase()
_Group = tuple[Phrase, list[int]]  # a phrase and all shapes that it describes


def relations(scene: Scene) -> list[tuple[int, str, int]]:
    """Returns all true (subject, predicate, object), indices into ``scene.objects``, in a fixed order.

    Places compare box centres of the visible parts, which must be ``MARGIN`` apart; every relation comes
    with its inverse. "In front of" means that the subject hides a clear piece of the object.
    """
    centres = [shape.visible_centre_xy for shape in scene.objects]
    margin, front = margin_px(scene), set(scene.in_front)
    found = []
    for i, j in product(range(len(centres)), repeat=2):
        if i != j:
            found += [(i, word, j) for word, ahead in AHEAD.items() if ahead(centres[i], centres[j]) > margin]
            found += [(i, "in front of", j)] * ((i, j) in front) + [(i, "behind", j)] * ((j, i) in front)
    return found


def grounded_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, list[Span]]:
    """Describes every shape once.

    Returns:
        The caption and its grounded phrases ``(start, end, objects)``: character offsets, end exclusive, in
        the order of the text and without overlap, and indices into ``scene.objects``. Every object is in
        exactly one phrase and no phrase occurs twice, as GranDf's layout needs. Example:
        ``We see two small cyan stars. A large red circle is above a large blue ring.`` has three phrases.
    """
    groups: dict[Phrase, list[int]] = {}
    for i, shape in enumerate(scene.objects):
        groups.setdefault(Phrase(shape.size, shape.colour, shape.kind), []).append(i)
    waiting = [list(groups.items())[k] for k in rng.permutation(len(groups))]
    listed: list[_Group] = []
    pairs: list[list[str | _Group]] = []
    while waiting:
        group = waiting.pop()
        predicate = _relation(scene, group, waiting[-1], rng) if waiting and rng.random() < 0.5 else None
        if predicate:
            pairs.append([group, f" is {predicate} ", waiting.pop()])
        else:
            listed.append(group)
    return _write(([_enumeration(listed, rng)] if listed else []) + pairs)


def visual_question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Draws a question about a scene that words alone answer: a colour, or how many shapes there are."""
    kinds = [shape.kind for shape in scene.objects]
    single = [shape for shape in scene.objects if kinds.count(shape.kind) == 1]
    if single and rng.random() < 0.5:
        shape = single[int(rng.integers(len(single)))]
        return f"What colour is the {shape.kind}?", f"It is {shape.colour}."
    return "How many shapes are there?", f"I count {_NUMBERS[len(kinds)]}."


def text_question(rng: np.random.Generator) -> tuple[str, str]:
    """Draws a question that needs no image: ``What is two plus three?``, ``It is five.``"""
    one, other = (int(number) for number in rng.integers(1, 6, 2))
    return f"What is {_NUMBERS[one]} plus {_NUMBERS[other]}?", f"It is {_NUMBERS[one + other]}."


def description(shape: ShapeObject) -> str:
    """Returns size, colour and kind of a shape: ``a large red circle``."""
    return _counted(Phrase(shape.size, shape.colour, shape.kind), 1)


def select(scene: Scene, phrase: Phrase) -> tuple[int, ...]:
    """Returns the indices of all shapes that a phrase describes, ascending."""
    return tuple(i for i, shape in enumerate(scene.objects) if phrase.matches(shape))


def margin_px(scene: Scene) -> float:
    """Returns ``MARGIN`` in pixels of the scene's image."""
    return MARGIN * min(scene.size_hw)


def _relation(scene: Scene, subject: _Group, other: _Group, rng: np.random.Generator) -> str | None:
    """Draws a true predicate for two single shapes; None for groups and where nothing is clear."""
    ends = (subject[1], other[1])
    true = [predicate for i, predicate, j in relations(scene) if ([i], [j]) == ends]
    return true[int(rng.integers(len(true)))] if true else None


def _enumeration(groups: list[_Group], rng: np.random.Generator) -> list[str | _Group]:
    there = "There is " if len(groups[0][1]) == 1 else "There are "
    pieces: list[str | _Group] = [str(rng.choice(("", "The picture shows ", "We see ", there)))]
    for position, group in enumerate(groups):
        link = " and " if position == len(groups) - 1 else ", "
        pieces += [link if position else "", group]
    return pieces


def _write(sentences: list[list[str | _Group]]) -> tuple[str, list[Span]]:
    text, spans = "", []
    for sentence in sentences:
        start = len(text) + bool(text)
        text += " " if text else ""
        for piece in sentence:
            words = piece if isinstance(piece, str) else _counted(piece[0], len(piece[1]))
            words = words[:1].upper() + words[1:] if len(text) == start else words
            if not isinstance(piece, str):
                spans.append((len(text), len(text) + len(words), tuple(piece[1])))
            text += words
        text += "."
    return text, spans


def _counted(phrase: Phrase, count: int) -> str:
    if count == 1:
        words = phrase.text()
        return ("an " if words[0] in "aeiou" else "a ") + words
    return f"{_NUMBERS[count] if count < len(_NUMBERS) else count} {phrase.text(plural=True)}"
