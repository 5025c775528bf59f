"""Slices of referring questions, by what makes them hard: evaluations have a line of numbers for each.

The kinds are those by which InstanceBench finds that models name the wrong instance: ordinal phrases, other
objects of the same class, small and hidden targets, and no target at all.
"""

import re

from pipelines.dialogues.scene import Item, Scene

SMALL_SHARE = 0.01
"""Targets below this share of the image are small; half of the authors' VER masks are."""

OCCLUDED = "occluded"
"""Flag of a mask, or tag of an expression, of an object that others hide in part."""

_ORDINAL = re.compile(
    r"\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|\d+(?:st|nd|rd|th))\b",
    re.IGNORECASE,
)


def slices_of(item: Item, scene: Scene) -> list[str]:
    """Returns the names of the slices that a referring question is in, in alphabetical order."""
    hidden = any(OCCLUDED in scene.masks[one]["flags"] for one in item.targets)
    found = {
        "no target": not item.targets,
        "ordinal": bool(_ORDINAL.search(item.text or "")),
        "same class": _has_distractors(item, scene),
        "small": _is_small(item, scene),
        "occluded": hidden or OCCLUDED in item.tags,
    }
    return sorted(name for name, inside in found.items() if inside)


def _has_distractors(item: Item, scene: Scene) -> bool:
    """Whether a mask that is not meant has the class of one that is."""
    wanted = {scene.label(one) for one in item.targets} - {None}
    return any(scene.label(one) in wanted for one in scene.masks if one not in item.targets)


def _is_small(item: Item, scene: Scene) -> bool:
    area = sum(scene.masks[one]["area_px"] for one in item.targets)
    return 0 < area < SMALL_SHARE * scene.row["height"] * scene.row["width"]
