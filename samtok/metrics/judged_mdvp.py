"""MDVP-Bench: descriptions of the marked regions of an image, rated beside the true ones by a judge.

A judge sees the image with its regions drawn on it, the true answer first and the model's second, and writes
a score from 1 to 10 for each. The number of a phase is the mean of the second over the mean of the first, so
1 is as good as the truth, and more is possible (papers print it times 100).

"strict" asks once for each image, with the descriptions of all its regions. "official" is what
github.com/Haochen-Wang409/Grasp-Any-Region, evaluation/MDVP-Bench, does, and what published numbers come
from: each phase pairs its images with the first regions of the whole file, in which Android comes first, so
all six phases judge the same ten Android texts under different images. That says nothing of a scene type; it
is here to reproduce it. Moreover it rounds both means to 3 digits, takes a reply that it cannot read for
scores of -1 and -1, and cannot read a comma with a blank behind it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from samtok.errors import DataError
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
)
from samtok.metrics.referring import Mode

SAMPLING = Sampling(temperature=0.0, max_tokens=1024)

SCALE = (1.0, 10.0)
"""Lowest and highest score."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "natural": ("natural",),
    "ocr": ("ocr_doc", "ocr_spotting"),
    "multi_panel": ("multipanel",),
    "screenshot": ("android", "web"),
}
"""Columns of the paper's Table 8, each the mean of its phases."""

PHASES = tuple(phase for phases in GROUPS.values() for phase in phases)

_KINDS: Mapping[str, str] = {
    "natural": "a natural image",
    "ocr_doc": "a picture of a document, whose text the question is about",
    "ocr_spotting": "a scene with text, which the question is about",
    "multipanel": "a figure of several panels",
    "android": "a screenshot of a phone with Android",
    "web": "a screenshot of a web page",
}
_FAILED = (-1.0, -1.0)
_NUMBER = r"\d+(?:\.\d+)?"
_TWO = re.compile(rf"[\s*]*({_NUMBER})(?:\s*,\s*|\s+)({_NUMBER})[\s*.]*")


@dataclass(frozen=True, kw_only=True)
class MdvpWording(Wording):
    """``{context}`` says what kind of image it is, ``{truth}`` is the first answer, ``{predicted}`` the
    second."""

    PLACES: ClassVar = {"prompt": ("question", "truth", "predicted")}

    system: str = "You judge how good answers about images are, carefully and without favour."
    prompt: str = (
        "The image is {context}. Boxes with numbers on it mark the regions that the question is about.\n\n"
        "[Question]\n{question}\n\n"
        "[Answer 1]\n{truth}\n[End of answer 1]\n\n"
        "[Answer 2]\n{predicted}\n[End of answer 2]\n\n"
        "Rate each answer by how helpful, relevant, accurate and detailed it is, with a score from 1 to 10, "
        "where more is better. The first line of your reply is the score of answer 1, a blank, and the score "
        "of answer 2, and nothing else. Give your reasons in the lines below it. The order of the answers "
        "must not count.\n"
    )


WORDING = MdvpWording()


@dataclass(frozen=True, kw_only=True)
class MdvpRegion:
    """A region: its image, one of ``PHASES``, the question, the true description and the model's, None if it
    gave none."""

    image_id: str
    phase: str
    question: str
    truth: str
    predicted: str | None


@dataclass(frozen=True, kw_only=True)
class MdvpPair:
    """Two answers about an image, by whose id the ask is named."""

    phase: str
    image_id: str
    question: str
    truth: str
    predicted: str

    def ask(self, image: np.ndarray, wording: MdvpWording = WORDING) -> Ask:
        """Returns what the judge is asked.

        Args:
            image: H x W x 3 uint8 RGB, the image with the boxes of its regions
                (``samtok.plots.boxes.numbered_boxes``).
        """
        values = {"question": self.question, "truth": self.truth, "predicted": self.predicted}
        prompt = filled(wording.prompt, context=_KINDS[self.phase], **values)
        return Ask(
            name=self.image_id, prompt=prompt, system=wording.system, sampling=SAMPLING, images=(image,)
        )


def phase_of(dataset_name: str) -> str:
    """Returns the phase that a name such as ``android_detailed_caption_box`` begins with; raises DataError
    ``phase`` if there is none."""
    for phase in PHASES:
        if dataset_name == phase or dataset_name.startswith(f"{phase}_"):
            return phase
    raise DataError(f"{dataset_name!r:.80} begins with none of {', '.join(PHASES)}", reason="phase")


def pairs(regions: Sequence[MdvpRegion], *, mode: Mode = "strict") -> list[MdvpPair]:
    """Returns the judgements that are wanted. A region without a description goes in with an empty one, so
    the judge sees that it lacks.

    Args:
        regions: All of the benchmark, in the order of its file, on which the official pairs depend.
        mode: See the module.

    Raises:
        ValueError: Regions of one image are of two phases.
    """
    require_mode(mode)
    by_image: dict[str, list[MdvpRegion]] = {}
    for region in regions:
        by_image.setdefault(region.image_id, []).append(region)
    for image_id, found in by_image.items():
        if len({region.phase for region in found}) > 1:
            raise ValueError(f"the regions of {image_id} are of several phases.")
    if mode == "strict":
        return [
            _pair(
                found,
                _joined([region.truth for region in found]),
                _joined([region.predicted or "" for region in found]),
            )
            for found in by_image.values()
        ]
    made = []
    for phase in PHASES:
        images = [found for found in by_image.values() if found[0].phase == phase]
        answers = zip(images, regions, strict=False)  # which ends with the images, most often after ten
        made += [_pair(found, region.truth, region.predicted or "") for found, region in answers]
    return made


def mdvp(regions: Sequence[MdvpRegion], replies: Replies, *, mode: Mode = "strict") -> dict[str, Any]:
    """Scores MDVP-Bench.

    A failed judgement is left out of the means in both modes, in "strict" also a reply that cannot be read.

    Args:
        regions: As ``pairs`` takes them.
        replies: To the asks of all pairs of the mode.
        mode: See the module.

    Returns:
        ``natural``, ``ocr``, ``multi_panel`` and ``screenshot``, each None unless all its phases have a
        number; ``phases``, for each phase its ``score``, both means and how many judgements they are of;
        counts as in ``samtok.metrics.judged.counts``, and ``missing_regions``, which were judged with an
        empty description.

    Raises:
        ValueError: As ``pairs``, or a reply is not there.
    """
    wanted = pairs(regions, mode=mode)
    read = parse_official if mode == "official" else parse
    scores: dict[str, list[tuple[float, float]]] = {phase: [] for phase in PHASES}
    unparsed = 0
    for pair in wanted:
        reply = reply_to(pair.image_id, replies)
        if reply is None:
            continue
        found = read(reply)
        unparsed += found is None
        if found is not None or mode == "official":
            scores[pair.phase].append(found or _FAILED)
    phases = {phase: _phase(found, rounded=mode == "official") for phase, found in scores.items()}
    numbers = {phase: body["score"] for phase, body in phases.items()}
    groups = {name: _all_mean([numbers[phase] for phase in members]) for name, members in GROUPS.items()}
    return {
        **groups,
        "phases": phases,
        **counts([pair.image_id for pair in wanted], replies, unparsed=unparsed, missing=0),
        "missing_regions": sum(region.predicted is None for region in regions),
    }


def parse(reply: str) -> tuple[float, float] | None:
    """Returns the two scores of the first line that is not blank, None unless it has them and nothing else,
    with a blank or a comma between them, within ``SCALE``."""
    line = reply.strip().partition("\n")[0]
    found = _TWO.fullmatch(line)
    if found is None:
        return None
    scores = float(found[1]), float(found[2])
    return scores if all(SCALE[0] <= score <= SCALE[1] for score in scores) else None


def parse_official(reply: str) -> tuple[float, float] | None:
    """Returns the first two numbers of the first line as the public script reads them: commas become blanks,
    the line is cut at every single blank, the first two pieces are the scores, whatever follows. None where
    that fails, and for what is no finite number."""
    pieces = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = float(pieces[0]), float(pieces[1])
    except (IndexError, ValueError):
        return None
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None


def _pair(shown: Sequence[MdvpRegion], truth: str, predicted: str) -> MdvpPair:
    """Returns two answers about the image of some regions."""
    return MdvpPair(
        phase=shown[0].phase,
        image_id=shown[0].image_id,
        question="\n".join(dict.fromkeys(region.question for region in shown)),
        truth=truth,
        predicted=predicted,
    )


def _joined(texts: Sequence[str]) -> str:
    return "\n".join(f"<Region {number}>: {text}".rstrip() for number, text in enumerate(texts, start=1))


def _phase(scores: Sequence[tuple[float, float]], *, rounded: bool) -> dict[str, Any]:
    means = [mean([pair[which] for pair in scores]) for which in (0, 1)]
    truth, predicted = (round(one, 3) if rounded and one is not None else one for one in means)
    ratio = None if truth is None or predicted is None or truth == 0 else predicted / truth
    return {"score": ratio, "truth_mean": truth, "predicted_mean": predicted, "scored": len(scores)}


def _all_mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return mean(there) if len(there) == len(values) else None
