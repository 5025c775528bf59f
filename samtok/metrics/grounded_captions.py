"""Grounded captions (GCG, Table 1 of the paper): are the masks of a caption's phrases right.

The numbers are those of the public evaluator (github.com/mbzuai-oryx/groundingLMM, eval/gcg/evaluate.py):
AP50 and the mean IoU of masks, and the recall of phrases with their masks. CIDEr and METEOR of the captions
are ``samtok.metrics.captions``. "official" has its quirks, which are named at the functions, and leaves out
images without a prediction; "strict" has none of them, and such an image has an empty caption without masks.

All results are shares in [0, 1], or None where nothing of the kind was there. Loads no torch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from samtok import masks
from samtok.errors import DataError
from samtok.metrics.captions import CaptionSample
from samtok.metrics.detection import DetectionSample, Instance, average_precision
from samtok.metrics.mask_pairs import greedy_pairs, iou_matrix
from samtok.metrics.referring import MODES, Mode

MIN_IOU = 0.5
"""Least IoU of masks that a phrase is found with, itself included."""

MIN_SIMILARITY = 0.5
"""Least similarity of texts that a phrase is found with, itself included."""

Similarity = Callable[[str, str], float]
"""Of a true phrase and a predicted one, both as they are written; 1 for equal ones."""

Alignment = Literal["per_mask", "reference"]


@dataclass(frozen=True, kw_only=True)
class GroundedCaption:
    """A caption of an image, its phrases, and the masks that these name.

    Attributes:
        image_id: Unique in an evaluation. A string: masks of equal rank are ranked by it.
        height, width: Of the image in pixels.
        phrases: One for each mask, unless phrases are aligned as the reference does; see ``recall``.
        rles: Compressed COCO counts of each mask.
    """

    image_id: str
    height: int
    width: int
    caption: str
    phrases: tuple[str, ...]
    rles: tuple[str, ...]

    @classmethod
    def of_masks(
        cls,
        image_id: str,
        size_hw: tuple[int, int],
        *,
        caption: str,
        phrases: Sequence[str],
        masks_of_image: Sequence[Bool[np.ndarray, "height width"]],
    ) -> "GroundedCaption":
        """Returns a caption whose masks are given as pixels."""
        return cls(
            image_id=image_id,
            height=size_hw[0],
            width=size_hw[1],
            caption=caption,
            phrases=tuple(phrases),
            rles=tuple(map(masks.encode, masks_of_image)),
        )


Truth = Sequence[GroundedCaption]
Predicted = Sequence[GroundedCaption | None]
"""In the order of the truth; None where an image has no prediction."""


def exact_match(truth: str, predicted: str) -> float:
    """Returns 1 for phrases that are equal but for case and space around them, else 0."""
    return float(truth.strip().casefold() == predicted.strip().casefold())


def gcg(
    truth: Truth,
    predicted: Predicted,
    *,
    similarity: Similarity,
    mode: Mode = "strict",
    phrase_alignment: Alignment | None = None,
) -> dict[str, Any]:
    """Returns all numbers of masks: ``ap50``, ``miou``, ``recall``, and what they are of.

    ``phrases`` counts true phrases, ``found`` those that recall counts; ``masks`` and ``predicted_masks``
    count masks. Arguments and errors are those of ``recall``.
    """
    found = _found(truth, predicted, similarity=similarity, mode=mode, phrase_alignment=phrase_alignment)
    pairs = _pairs(truth, predicted, mode)
    num_phrases = sum(len(true.phrases) for true, _ in pairs)
    return {
        "ap50": ap50(truth, predicted, mode=mode),
        "miou": miou(truth, predicted, mode=mode),
        "recall": found / num_phrases if num_phrases else None,
        "phrases": num_phrases,
        "found": found,
        "masks": sum(len(true.rles) for true, _ in pairs),
        "predicted_masks": sum(len(given.rles) for _, given in pairs),
    }


def counts(truth: Truth, predicted: Predicted) -> dict[str, int]:
    """Returns how many images there are, have a prediction, and have none."""
    skipped = sum(given is None for _, given in zip(truth, predicted, strict=True))
    return {"expected": len(truth), "scored": len(truth) - skipped, "skipped": skipped}


def caption_samples(truth: Truth, predicted: Predicted) -> list[CaptionSample]:
    """Returns the captions as ``captions.cider`` and ``captions.meteor`` take them."""
    return [
        CaptionSample(
            image_id=true.image_id,
            references=(true.caption,),
            predicted=None if given is None else given.caption,
        )
        for true, given in zip(truth, predicted, strict=True)
    ]


def ap50(truth: Truth, predicted: Predicted, *, mode: Mode = "strict") -> float | None:
    """Returns COCO's AP of masks at IoU 0.5, without classes; no predicted mask gives 0.

    All scores are equal, so masks are ranked by the ids of their images, sorted as strings, and in an image
    by their order: another order gives another AP50, in both modes. COCO looks at the first 100 masks of an
    image. A mask without pixels is a prediction too, a wrong one.
    """
    samples = [
        DetectionSample(
            image_id=true.image_id,
            height=true.height,
            width=true.width,
            truth=tuple(Instance(counts=counts) for counts in true.rles),
            predicted=tuple(Instance(counts=counts) for counts in given.rles),
        )
        for true, given in _pairs(truth, predicted, mode)
    ]
    return average_precision(samples, class_agnostic=True)["ap50"]


def miou(truth: Truth, predicted: Predicted, *, mode: Mode = "strict") -> float | None:
    """Returns the mean over images of the mean IoU of pairs of a true and a predicted mask.

    Pairs are taken by their IoU, the largest first, as long as it is above 0; an image without a pair counts
    0. Masks without a partner cost nothing: read it beside AP50 and recall.

    In "strict" the order of the masks has no influence, and an image counts only if it has a mask, true or
    predicted. In "official" ties go to the mask that comes first, images without any masks count 0, and so
    does one where a true and a predicted mask both have no pixels.
    """
    scores = []
    for true, given in _pairs(truth, predicted, mode):
        if mode == "official":
            taken = greedy_pairs(iou_matrix(given.rles, true.rles, **_size(true), empty=np.nan))
        elif true.rles or given.rles:
            taken = greedy_pairs(iou_matrix(sorted(given.rles), sorted(true.rles), **_size(true)))
        else:
            continue
        scores.append(float(np.mean(taken)) if taken else 0.0)
    return float(np.mean(scores)) if scores else None


def recall(
    truth: Truth,
    predicted: Predicted,
    *,
    similarity: Similarity,
    mode: Mode = "strict",
    phrase_alignment: Alignment | None = None,
) -> float | None:
    """Returns the share of true phrases found: those of a predicted mask and phrase both close to theirs.

    Each mask counts once, pairs of larger IoU first. In "strict" a pair whose phrases differ is passed over
    and others are tried, the order of the masks has no influence, and an empty phrase is like no other. In
    "official" the first such pair ends the image, ties go to the masks that come first, and two masks
    without pixels fit each other.

    Args:
        similarity: ``exact_match``, or what ``text_similarity.load_bert`` returns, as published numbers have
            it. Cosines of BERT are nearly always above 0.5, so there it is masks that decide.
        phrase_alignment: ``per_mask``, the default of "strict": the phrase of mask ``j`` is phrase ``j``, and
            each mask must have one. ``reference``, the default of "official": the same, but there may be more
            masks than phrases, as where a phrase has several masks. Then numbers shift: a mask is compared
            with the phrase of another. A mask beyond the phrases is not found in "strict"; in "official" an
            image where one fits has nothing found at all, since the public evaluator fails there.

    Raises:
        DataError: ``duplicate_image``; ``size_mismatch`` if truth and prediction differ in size;
            ``phrase_count`` if masks and phrases differ in number under ``per_mask``; what
            ``masks.parse_counts`` raises.
        ValueError: If truth and prediction are of different images, or an option is unknown.
    """
    found = _found(truth, predicted, similarity=similarity, mode=mode, phrase_alignment=phrase_alignment)
    num_phrases = sum(len(true.phrases) for true, _ in _pairs(truth, predicted, mode))
    return found / num_phrases if num_phrases else None


def _found(
    truth: Truth,
    predicted: Predicted,
    *,
    similarity: Similarity,
    mode: Mode,
    phrase_alignment: Alignment | None,
) -> int:
    alignment = phrase_alignment or ("per_mask" if mode == "strict" else "reference")
    if alignment not in ("per_mask", "reference"):
        raise ValueError(f"phrase_alignment must be per_mask or reference, got {alignment!r}.")
    found = 0
    for true, given in _pairs(truth, predicted, mode):
        if alignment == "per_mask":
            _check_phrases(true, "true")
            _check_phrases(given, "predicted")
        match = _match_official if mode == "official" else _match
        found += match(true, given, similarity)
    return found


def _match(true: GroundedCaption, given: GroundedCaption, similarity: Similarity) -> int:
    rows, columns = _sorted_masks(true), _sorted_masks(given)
    iou = iou_matrix([rle for rle, _ in rows], [rle for rle, _ in columns], **_size(true))
    for row, column in np.argwhere(iou > 0):
        wanted, said = rows[row][1], columns[column][1]
        close = iou[row, column] >= MIN_IOU and wanted and said and similarity(wanted, said) >= MIN_SIMILARITY
        iou[row, column] *= bool(close)
    return len(greedy_pairs(iou))


def _sorted_masks(caption: GroundedCaption) -> list[tuple[str, str]]:
    """Returns masks with their phrases in an order of their own; one beyond the phrases has none."""
    phrases = caption.phrases + ("",) * len(caption.rles)
    return sorted(zip(caption.rles, phrases, strict=False))


def _match_official(true: GroundedCaption, given: GroundedCaption, similarity: Similarity) -> int:
    iou = iou_matrix(true.rles, given.rles, **_size(true), empty=np.nan)
    found = 0
    while iou.size:
        row, column = np.unravel_index(iou.argmax(), iou.shape)  # the first NaN, if there is one
        if iou[row, column] < MIN_IOU:
            break
        if row >= len(true.phrases) or column >= len(given.phrases):
            return 0
        if similarity(true.phrases[row], given.phrases[column]) < MIN_SIMILARITY:
            break
        found += 1
        iou[row, :] = iou[:, column] = 0
    return found


def _size(caption: GroundedCaption) -> dict[str, int]:
    return {"height": caption.height, "width": caption.width}


def _pairs(truth: Truth, predicted: Predicted, mode: Mode) -> list[tuple[GroundedCaption, GroundedCaption]]:
    """Returns true and predicted captions, having checked that they belong together."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    seen = Counter(true.image_id for true in truth)
    if twice := [name for name, number in seen.items() if number > 1]:
        raise DataError(
            f"image {twice[0]!r} has {seen[twice[0]]} true captions, expected one.", reason="duplicate_image"
        )
    pairs = []
    for true, given in zip(truth, predicted, strict=True):
        if given is not None:
            _check_same_image(true, given)
            pairs.append((true, given))
        elif mode == "strict":
            pairs.append((true, replace(true, caption="", phrases=(), rles=())))
    return pairs


def _check_same_image(true: GroundedCaption, given: GroundedCaption) -> None:
    if given.image_id != true.image_id:
        raise ValueError(f"the prediction of image {true.image_id!r} is one of {given.image_id!r}.")
    if (given.height, given.width) != (true.height, true.width):
        raise DataError(
            f"image {true.image_id!r} is {true.height}x{true.width}, its prediction {given.height}x"
            f"{given.width}.",
            reason="size_mismatch",
        )


def _check_phrases(caption: GroundedCaption, which: str) -> None:
    if len(caption.phrases) != len(caption.rles):
        raise DataError(
            f"image {caption.image_id!r} has {len(caption.rles)} {which} masks and {len(caption.phrases)} "
            "phrases, expected as many; repeat a phrase for each of its masks, or align as the reference "
            "does.",
            reason="phrase_count",
        )
