"""True sentences about a scene: referring expressions, relations, and a caption with grounded phrases.

Every sentence follows from the scene alone: words for size, colour and kind from the shapes, words for
places from the boxes of the visible parts. Where a reader could disagree (a shape right at a boundary of
"left"), no sentence is made, so a target is never a matter of taste.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from samtok.shapes.world import Scene, ShapeObject

PREDICATES = ("left of", "right of", "above", "below", "in front of", "behind")
"""Predicates of ``relations``, in the order of their ids."""

MARGIN = 0.08
"""Least distance of two box centres, as a share of the shorter image side, for "left of" and the like."""

Expression = tuple[str, tuple[int, ...]]
Span = tuple[int, int, tuple[int, ...]]

_Offset = Callable[[tuple[float, float], tuple[float, float]], float]
_AHEAD: dict[str, _Offset] = {  # how far a is to that side of b, in pixels
    "left of": lambda a, b: b[0] - a[0],
    "right of": lambda a, b: a[0] - b[0],
    "above": lambda a, b: b[1] - a[1],
    "below": lambda a, b: a[1] - b[1],
}
_SIDES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_EXTREMES = {"leftmost": "left of", "rightmost": "right of", "topmost": "above", "bottommost": "below"}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase such as ``small red circle``; what is None is not said."""

    size: str | None = None
    colour: str | None = None
    kind: str | None = None

    def matches(self, shape: ShapeObject) -> bool:
        """Tells whether the phrase is true of the shape."""
        said = ((self.size, shape.size), (self.colour, shape.colour), (self.kind, shape.kind))
        return all(word is None or word == true for word, true in said)

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
    margin, front = _margin_px(scene), set(scene.in_front)
    found = []
    for i, j in product(range(len(centres)), repeat=2):
        if i != j:
            found += [
                (i, word, j) for word, ahead in _AHEAD.items() if ahead(centres[i], centres[j]) > margin
            ]
            found += [(i, "in front of", j)] * ((i, j) in front) + [(i, "behind", j)] * ((j, i) in front)
    return found


def referring_expressions(scene: Scene, rng: np.random.Generator, *, per_count: int = 2) -> list[Expression]:
    """Draws expressions and the shapes that they mean, as sorted indices into ``scene.objects``.

    Examples: ``the small red circle`` (one), ``all red shapes`` (several), ``everything left of the ring``,
    ``the topmost star``, and for none ``the green cross`` where there is no such shape: ``()``.

    Args:
        scene: The scene.
        rng: Decides which of the true expressions are taken.
        per_count: Up to so many with one target, with several, and with none, in this order. A scene may lack
            one of these: two equal shapes in one place have no expression for either alone.

    Returns:
        Expressions with distinct texts.
    """
    families = [
        dict(_attributes(scene, rng)),
        dict(_places(scene, rng)),
        dict(_extremes(scene)),
        dict(_beside(scene, rng)),
    ]
    drawn = []
    for wanted in (_is_single, _is_multiple, _is_none):
        pools = [[item for item in family.items() if wanted(item[1])] for family in families]
        drawn += _draw(pools, rng, per_count)
    return drawn


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


def _relation(scene: Scene, subject: _Group, other: _Group, rng: np.random.Generator) -> str | None:
    """Draws a true predicate for two single shapes; None for groups and where nothing is clear."""
    ends = (subject[1], other[1])
    true = [predicate for i, predicate, j in relations(scene) if ([i], [j]) == ends]
    return true[int(rng.integers(len(true)))] if true else None


def _enumeration(groups: list[_Group], rng: np.random.Generator) -> list[str | _Group]:
    """Returns a sentence such as ``There is a, b and c`` as pieces."""
    there = "There is " if len(groups[0][1]) == 1 else "There are "
    pieces: list[str | _Group] = [str(rng.choice(("", "The picture shows ", "We see ", there)))]
    for position, group in enumerate(groups):
        link = " and " if position == len(groups) - 1 else ", "
        pieces += [link if position else "", group]
    return pieces


def _write(sentences: list[list[str | _Group]]) -> tuple[str, list[Span]]:
    """Joins sentences, and notes where each phrase went."""
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


def _margin_px(scene: Scene) -> float:
    return MARGIN * min(scene.size_hw)


def _is_none(targets: tuple[int, ...]) -> bool:
    return not targets


def _is_single(targets: tuple[int, ...]) -> bool:
    return len(targets) == 1


def _is_multiple(targets: tuple[int, ...]) -> bool:
    return len(targets) > 1


def _draw(pools: list[list[Expression]], rng: np.random.Generator, limit: int) -> list[Expression]:
    """Takes from the families in turn, since the largest would push the others out."""
    shuffled = [[pool[k] for k in rng.permutation(len(pool))] for pool in pools if pool]
    turns = [shuffled[k] for k in rng.permutation(len(shuffled))]
    drawn: list[Expression] = []
    while turns and len(drawn) < limit:
        pool = turns.pop(0)
        drawn.append(pool.pop())
        if pool:
            turns.append(pool)
    return drawn


def _select(scene: Scene, phrase: Phrase) -> tuple[int, ...]:
    return tuple(i for i, shape in enumerate(scene.objects) if phrase.matches(shape))


def _said(phrase: Phrase, count: int, rng: np.random.Generator) -> str:
    """Returns ``the ...`` for one target and ``all ...`` for several; a no-target may say either."""
    plural = count > 1 or (count == 0 and rng.random() < 0.3)
    return f"all {phrase.text(plural=True)}" if plural else f"the {phrase.text()}"


def _true_phrases(scene: Scene) -> list[Phrase]:
    """Returns every phrase that is true of some shape, without ``shape`` alone."""
    said = {
        Phrase(size if keep[0] else None, colour if keep[1] else None, kind if keep[2] else None): None
        for size, colour, kind in ((shape.size, shape.colour, shape.kind) for shape in scene.objects)
        for keep in product((True, False), repeat=3)
        if any(keep)
    }
    return list(said)


def _false_phrases(scene: Scene, rng: np.random.Generator) -> list[Phrase]:
    """Returns phrases true of no shape: attributes that are there but not together, and absent ones."""
    shapes = scene.objects
    mixed = [Phrase(None, a.colour, b.kind) for a, b in product(shapes, repeat=2)]
    mixed += [Phrase(a.size, b.colour, b.kind) for a, b in product(shapes, repeat=2)]
    colours, kinds = scene.config.colours, scene.config.kinds
    absent = [
        Phrase(None, colours[int(rng.integers(len(colours)))], kinds[int(rng.integers(len(kinds)))])
        for _ in range(4)
    ]
    absent += [Phrase(None, phrase.colour, None) for phrase in absent[:2]]
    absent += [Phrase(None, None, phrase.kind) for phrase in absent[2:]]
    return [phrase for phrase in dict.fromkeys(mixed + absent) if not _select(scene, phrase)]


def _attributes(scene: Scene, rng: np.random.Generator) -> Iterator[Expression]:
    for phrase in _true_phrases(scene) + _false_phrases(scene, rng):
        targets = _select(scene, phrase)
        yield _said(phrase, len(targets), rng), targets


def _subjects(scene: Scene) -> list[Phrase]:
    """Returns the phrases short enough to be followed by a place."""
    return [ANY, *(phrase for phrase in _true_phrases(scene) if phrase.size is None)]


def _places(scene: Scene, rng: np.random.Generator) -> Iterator[Expression]:
    """Yields ``the star on the left``, unless a star is so near the middle that it is unclear."""
    height, width = scene.size_hw
    for side, place in _SIDES.items():
        axis, length = (0, width) if side in ("left", "right") else (1, height)
        for phrase in _subjects(scene):
            matching = _select(scene, phrase)
            shares = [scene.objects[i].visible_centre_xy[axis] / length for i in matching]
            shares = shares if side in ("left", "top") else [1 - share for share in shares]
            if not any(0.4 <= share <= 0.5 for share in shares):
                targets = tuple(i for i, share in zip(matching, shares, strict=True) if share < 0.4)
                yield f"{_said(phrase, len(targets), rng)} {place}", targets


def _extremes(scene: Scene) -> Iterator[Expression]:
    """Yields ``the leftmost star`` where there are several stars and one is clearly the leftmost."""
    margin = _margin_px(scene)
    centres = [shape.visible_centre_xy for shape in scene.objects]
    for (word, side), phrase in product(_EXTREMES.items(), _subjects(scene)):
        matching = _select(scene, phrase)
        for i in matching if len(matching) > 1 else ():
            if all(_AHEAD[side](centres[i], centres[j]) > margin for j in matching if j != i):
                yield f"the {word} {phrase.text()}", (i,)


def _anchors(scene: Scene) -> dict[int, Phrase]:
    """Returns the shortest name of each shape that has one of its own."""
    names: dict[int, Phrase] = {}
    for phrase in sorted(_true_phrases(scene), key=lambda phrase: len(phrase.text().split())):
        targets = _select(scene, phrase)
        if len(targets) == 1:
            names.setdefault(targets[0], phrase)
    return names


def _beside(scene: Scene, rng: np.random.Generator) -> Iterator[Expression]:
    """Yields ``all circles above the red star``, unless a circle is about as high as the star."""
    margin = _margin_px(scene)
    centres = [shape.visible_centre_xy for shape in scene.objects]
    for (anchor, name), (side, ahead) in product(_anchors(scene).items(), _AHEAD.items()):
        for phrase in _subjects(scene):
            others = [i for i in _select(scene, phrase) if i != anchor]
            offsets = [ahead(centres[i], centres[anchor]) for i in others]
            if others and all(abs(offset) > margin for offset in offsets):
                targets = tuple(i for i, offset in zip(others, offsets, strict=True) if offset > 0)
                subject = "everything" if phrase == ANY else _said(phrase, len(targets), rng)
                yield f"{subject} {side} the {name.text()}", targets
