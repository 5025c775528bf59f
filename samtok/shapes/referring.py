"""Referring expressions: sentences that mean one shape, several, or none.

Four families name a target: by attributes alone (``the small red circle``), with a place (``on the
left``), as an extreme (``the topmost star``), or beside another shape (``everything left of the ring``). A
fifth, which is only used where it is asked for, counts (``the second star from the left``). Where a reader
could disagree, no sentence is made (``language``).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Literal, NamedTuple, get_args

import numpy as np

from samtok.shapes.language import AHEAD, ANY, Phrase, margin_px, select
from samtok.shapes.world import Scene

Family = Literal["attributes", "places", "extremes", "beside", "ordinals"]

FAMILIES: tuple[Family, ...] = get_args(Family)[:4]
"""Ways to name a target that are used by default."""

_COUNTS = ("none", "single", "multi")
_SIDES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_NUMBERS = ("second", "third", "fourth")
_STARTS = {"the left": (0, 1), "the right": (0, -1), "the top": (1, 1), "the bottom": (1, -1)}
_EXTREMES = {"leftmost": "left of", "rightmost": "right of", "topmost": "above", "bottommost": "below"}


class Expression(NamedTuple):
    """A sentence and its targets."""

    text: str
    """Without a full stop."""
    targets: tuple[int, ...]
    """Indices into ``scene.objects``, ascending; empty where nothing is meant."""
    tags: tuple[str, ...]
    """``single``, ``multi`` or ``none``. Of a single one also ``shape_only`` if without the word for its kind
    another shape would be meant as well, or instead; ``colour_only`` likewise. Both can be true. One that
    counts has ``ordinal`` in their place."""


def referring_expressions(
    scene: Scene,
    rng: np.random.Generator,
    *,
    single: int = 2,
    multi: int = 2,
    none: int = 2,
    families: tuple[Family, ...] = FAMILIES,
) -> list[Expression]:
    """Draws expressions and the shapes that they mean.

    Examples: ``the small red circle`` (one), ``all red shapes`` (several), ``everything left of the ring``,
    ``the topmost star``, and for none ``the green cross`` where there is no such shape.

    Args:
        single: Up to so many with one target. A scene may lack them: two equal shapes in one place have no
            expression for either alone.
        multi, none: Up to so many with several targets, and with none, in this order behind the others.
        families: Which ways to name a target are used, in turn.

    Returns:
        Expressions with distinct texts.
    """
    makers: dict[Family, Callable[[], Iterator[Expression]]] = {
        "attributes": lambda: _attributes(scene, rng),
        "places": lambda: _places(scene, rng),
        "extremes": lambda: _extremes(scene),
        "beside": lambda: _beside(scene, rng),
        "ordinals": lambda: _ordinals(scene),
    }
    found = [{made.text: made for made in makers[family]()} for family in families]
    drawn = []
    for tag, limit in (("single", single), ("multi", multi), ("none", none)):
        pools = [[made for made in family.values() if tag in made.tags] for family in found]
        drawn += _draw(pools, rng, limit)
    return drawn


def _expression(
    scene: Scene, text: str, phrase: Phrase, targets: tuple[int, ...], fits: Callable[[int], bool]
) -> Expression:
    """Adds the tags; ``fits`` returns whether a shape agrees with the rest of the sentence."""
    tags = [_COUNTS[min(len(targets), 2)]]
    if len(targets) == 1:
        for tag, weaker in {
            "shape_only": replace(phrase, kind=None),
            "colour_only": replace(phrase, colour=None),
        }.items():
            if any(i not in targets and fits(i) for i in select(scene, weaker)):
                tags += [tag] if weaker != phrase else []
    return Expression(text, targets, tuple(tags))


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


def _named(phrase: Phrase, count: int, rng: np.random.Generator) -> str:
    """Returns ``the ...`` for one target and ``all ...`` for several; a no-target may have either."""
    plural = count > 1 or (count == 0 and rng.random() < 0.3)
    return f"all {phrase.text(plural=True)}" if plural else f"the {phrase.text()}"


def _true_phrases(scene: Scene) -> list[Phrase]:
    """Returns every phrase that is true of some shape, without ``shape`` alone."""
    found = {
        Phrase(size if keep[0] else None, colour if keep[1] else None, kind if keep[2] else None): None
        for size, colour, kind in ((shape.size, shape.colour, shape.kind) for shape in scene.objects)
        for keep in product((True, False), repeat=3)
        if any(keep)
    }
    return list(found)


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
    return [phrase for phrase in dict.fromkeys(mixed + absent) if not select(scene, phrase)]


def _attributes(scene: Scene, rng: np.random.Generator) -> Iterator[Expression]:
    for phrase in _true_phrases(scene) + _false_phrases(scene, rng):
        targets = select(scene, phrase)
        text = _named(phrase, len(targets), rng)
        yield _expression(scene, text, phrase, targets, lambda _: True)


def _subjects(scene: Scene) -> list[Phrase]:
    return [ANY, *(phrase for phrase in _true_phrases(scene) if phrase.size is None)]


def _places(scene: Scene, rng: np.random.Generator) -> Iterator[Expression]:
    """Yields ``the star on the left``, unless a star is so near the middle that it is unclear."""
    height, width = scene.size_hw
    for side, place in _SIDES.items():
        axis, length = (0, width) if side in ("left", "right") else (1, height)
        shares = [shape.visible_centre_xy[axis] / length for shape in scene.objects]
        shares = shares if side in ("left", "top") else [1 - share for share in shares]
        for phrase in _subjects(scene):
            matching = select(scene, phrase)
            if not any(0.4 <= shares[i] <= 0.5 for i in matching):
                targets = tuple(i for i in matching if shares[i] < 0.4)
                text = f"{_named(phrase, len(targets), rng)} {place}"
                yield _expression(scene, text, phrase, targets, lambda i, at=shares: at[i] < 0.4)


def _extremes(scene: Scene) -> Iterator[Expression]:
    """Yields ``the leftmost star`` where there are several stars and one is clearly the leftmost."""
    margin = margin_px(scene)
    centres = [shape.visible_centre_xy for shape in scene.objects]
    for (word, side), phrase in product(_EXTREMES.items(), _subjects(scene)):
        matching = select(scene, phrase)
        for i in matching if len(matching) > 1 else ():
            ahead = [AHEAD[side](centres[i], centre) for centre in centres]
            if all(ahead[j] > margin for j in matching if j != i):
                text = f"the {word} {phrase.text()}"
                yield _expression(scene, text, phrase, (i,), lambda j, by=ahead: by[j] < -margin)


def _ordinals(scene: Scene) -> Iterator[Expression]:
    """Yields ``the second star from the left`` where there are several stars, each clearly behind the one
    before; the first and the last have no such sentence, but ``leftmost`` and ``rightmost``."""
    margin = margin_px(scene)
    centres = [shape.visible_centre_xy for shape in scene.objects]
    for (word, (axis, sign)), phrase in product(_STARTS.items(), _subjects(scene)):
        row = sorted(select(scene, phrase), key=lambda i: sign * centres[i][axis])
        places = [sign * centres[i][axis] for i in row]
        if all(after - before > margin for before, after in pairwise(places)):
            for number, i in list(enumerate(row))[1 : 1 + len(_NUMBERS)]:
                text = f"the {_NUMBERS[number - 1]} {phrase.text()} from {word}"
                yield Expression(text, (i,), ("single", "ordinal"))


def _anchors(scene: Scene) -> dict[int, Phrase]:
    names: dict[int, Phrase] = {}
    for phrase in sorted(_true_phrases(scene), key=lambda phrase: len(phrase.text().split())):
        targets = select(scene, phrase)
        if len(targets) == 1:
            names.setdefault(targets[0], phrase)
    return names


def _beside(scene: Scene, rng: np.random.Generator) -> Iterator[Expression]:
    """Yields ``all circles above the red star``, unless a circle is about as high as the star."""
    margin = margin_px(scene)
    centres = [shape.visible_centre_xy for shape in scene.objects]
    for (anchor, name), (side, ahead) in product(_anchors(scene).items(), AHEAD.items()):
        offsets = [ahead(centre, centres[anchor]) for centre in centres]
        for phrase in _subjects(scene):
            others = [i for i in select(scene, phrase) if i != anchor]
            if others and all(abs(offsets[i]) > margin for i in others):
                targets = tuple(i for i in others if offsets[i] > 0)
                subject = "everything" if phrase == ANY else _named(phrase, len(targets), rng)
                text = f"{subject} {side} the {name.text()}"
                yield _expression(scene, text, phrase, targets, lambda i, by=offsets: by[i] > margin)
