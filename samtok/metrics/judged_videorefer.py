"""VideoRefer-Bench-D: descriptions of objects in videos, rated in four dimensions by a judge.

Source: github.com/DAMO-NLP-SG/VideoRefer, videorefer/eval/videorefer_bench_d. The judge, GPT-4o, is given the
true and the predicted text, no image, and writes a score from 0 to 5 for each dimension. It is sampled at a
temperature of 0.7, so only recorded judgements give the same numbers twice. The script there that asks does
not run as it is published; those that read the scores do.

Modes differ in what is read. "official" takes numbered lines whose heading is the exact name of a dimension:
one in bold, renamed or followed by an abbreviation is lost from that dimension alone, and a line with a score
that is no number (``4.5.``) loses the whole reply; items without a description are left out. "strict" reads
through such marks, takes only scores from 0 to 5, and gives items without a description 0 in each dimension.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from samtok.metrics.judged import (
    Ask,
    Replies,
    Sampling,
    Wording,
    counts,
    filled,
    mean,
    reply_to,
    require_mode,
    require_unique,
)
from samtok.metrics.referring import Mode

SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_tokens=800)

BEST = 5.0
"""Highest score of a dimension; the lowest is 0."""

DIMENSIONS: Mapping[str, str] = {
    "sc": "Subject Correspondence",
    "ad": "Appearance Description",
    "td": "Temporal Description",
    "hd": "Hallucination Detection",
}
"""Headings of the dimensions by their names in results."""

_LINES = re.compile(r"\d+\.\s+(.*?):\s+([\d.]+)")
_MARKS = re.compile(r"[*_`#]|\([^()]*\)")


@dataclass(frozen=True, kw_only=True)
class VideoReferWording(Wording):
    """``{truth}`` is the true description, ``{predicted}`` the model's."""

    PLACES: ClassVar = {"prompt": ("truth", "predicted")}

    system: str = (
        "You compare a predicted description of one object in a video with the true description of it, and "
        "rate the prediction in four dimensions, each with a score from 0 to 5, where 5 is best:\n"
        "1. Subject Correspondence: whether both are about the same object.\n"
        "2. Appearance Description: how well colour, shape, texture and other looks agree.\n"
        "3. Temporal Description: how well motions and their course agree.\n"
        "4. Hallucination Detection: whether the prediction is free of things and actions that are not "
        "there; 5 is free of them.\n"
        "Reply with four lines of this form and with nothing else:\n"
        "1. Subject Correspondence: SCORE\n"
        "2. Appearance Description: SCORE\n"
        "3. Temporal Description: SCORE\n"
        "4. Hallucination Detection: SCORE"
    )
    prompt: str = "##Correct answer: {truth}\n##Predicted answer: {predicted}\n"


WORDING = VideoReferWording()


@dataclass(frozen=True, kw_only=True)
class VideoReferItem:
    """An item: its id, by which several items of one video stay apart, the true description and the model's,
    None if it gave none."""

    item_id: str
    truth: str
    predicted: str | None

    def asks(self, wording: VideoReferWording = WORDING) -> list[Ask]:
        """Returns what the judge is asked about it, nothing without a description."""
        if self.predicted is None:
            return []
        prompt = filled(wording.prompt, truth=self.truth, predicted=self.predicted)
        return [Ask(name=self.item_id, prompt=prompt, system=wording.system, sampling=SAMPLING)]


def videorefer(items: Sequence[VideoReferItem], replies: Replies, *, mode: Mode = "strict") -> dict[str, Any]:
    """Scores VideoRefer-Bench-D.

    Each dimension is the mean over the replies that have it; failed judgements are left out.

    Args:
        items: Of the benchmark.
        replies: To all ``VideoReferItem.asks``.
        mode: See the module.

    Returns:
        ``sc``, ``ad``, ``td`` and ``hd``, from 0 to 5, and ``avg``, the mean of the four, None unless all are
        there; ``scored``, how many items each is of; counts as in ``samtok.metrics.judged.counts``, where a
        reply that lacks one of the dimensions is unparsed.

    Raises:
        ValueError: An id is there twice, or a reply is not there.
    """
    require_mode(mode)
    require_unique(item.item_id for item in items)
    described = [item.item_id for item in items if item.predicted is not None]
    found = [parse(text, mode=mode) for name in described if (text := reply_to(name, replies)) is not None]
    missing = len(items) - len(described)
    unparsed = sum(len(one) < len(DIMENSIONS) for one in found)
    if mode == "strict":
        found += [dict.fromkeys(DIMENSIONS, 0.0)] * missing
    values = {name: [one[name] for one in found if name in one] for name in DIMENSIONS}
    means = {name: mean(scores) for name, scores in values.items()}
    four = [one for one in means.values() if one is not None]
    return {
        **means,
        "avg": mean(four) if len(four) == len(DIMENSIONS) else None,
        "scored": {name: len(scores) for name, scores in values.items()},
        **counts(described, replies, unparsed=unparsed, missing=missing),
    }


def parse(reply: str, *, mode: Mode = "strict") -> dict[str, float]:
    """Returns the scores of the dimensions that a reply has, by the keys of ``DIMENSIONS``; of one that is
    rated twice the last."""
    if mode == "official":
        try:
            lines = {heading: float(score) for heading, score in _LINES.findall(reply)}
        except ValueError:
            return {}
        return {name: lines[heading] for name, heading in DIMENSIONS.items() if heading in lines}
    names = {key: name for name, heading in DIMENSIONS.items() for key in (name, heading.lower())}
    found: dict[str, float] = {}
    for heading, score in _LINES.findall(_MARKS.sub("", reply)):
        name, number = names.get(" ".join(heading.lower().split())), _number(score)
        if name is not None and number is not None and number <= BEST:
            found[name] = number
    return found


def _number(text: str) -> float | None:
    """Returns a number that may end a sentence, None if it is none."""
    try:
        return float(text.rstrip("."))
    except ValueError:
        return None
