"""Referring segmentation in several rounds (MR-RefCOCO/+/g and MR-PACO, the paper's Table 2), round by round.

A question of a later round refers to masks of earlier ones. What stood in the answers before it decides the
numbers: the true words, as in the authors' scripts, or what the model itself answered, as SegLLM is measured
on MR-RefCOCO. So ``history`` is said with every result, and results of two kinds are not comparable.

"official" has the rules of two public evaluators: the authors' for masks
(github.com/bytedance/Sa2VA, projects/samtok/evaluation), as ``samtok.metrics.referring.res`` has them, and
SegLLM's for boxes (github.com/berkeley-hipie/segllm, llava/train/llava_trainer.py): a hit needs an IoU above
0.5, 0.5 itself excluded. Boxes lack their last pixel there, as in ``referring.rec``. SegLLM counts pixels on
a grid of 1024x1024, which counts of images at their own size cannot give back.

Rounds keep the numbers that the data gives them; SegLLM counts from 0, and which key of the authors' files is
the paper's "Round 2" is not published. Loads numpy only.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from samtok.metrics import referring
from samtok.metrics.referring import Mode, Samples

History = Literal["gt", "predicted"]
"""What the answers of earlier rounds were: true words, or the model's own."""

METRICS = ("ciou_cumulative", "miou", "box_p50")

Round = dict[str, Any]


def by_round(
    samples: Samples,
    rounds: Sequence[int],
    *,
    mode: Mode = "strict",
    wanted: Iterable[int] | None = None,
) -> dict[int, Round | None]:
    """Returns the metrics of each round of one dataset.

    Args:
        samples: Of all rounds, in any order.
        rounds: The round of each sample.
        mode: "official" leaves out skipped samples, as ``referring`` does.
        wanted: Rounds of the result; None takes all from the first to the last that there are.

    Returns:
        For each round ``ciou_cumulative`` and ``miou`` of ``referring.res``; ``box_p50``, the share of
        samples whose mask's box hits that of the true mask; ``counts`` of ``referring.counts``. A round
        without samples is None; a metric is None if all of its samples were skipped.

    Raises:
        ValueError: If there is not one round for each sample, or some are of no wanted round.
    """
    referring.check_mode(mode)
    if len(rounds) != len(samples):
        raise ValueError(f"there must be a round for each of {len(samples)} samples, got {len(rounds)}.")
    numbers = np.asarray(rounds, np.int64)
    present = set(numbers.tolist())
    listed = list(range(min(present), max(present) + 1) if present else ()) if wanted is None else [*wanted]
    if lost := present - set(listed):
        raise ValueError(f"samples are of the rounds {sorted(lost)}, which are not wanted.")
    return {
        number: _scores(samples.take(numbers == number), mode) if number in present else None
        for number in listed
    }


def multi_round(
    samples: Samples,
    rounds: Sequence[int],
    datasets: Sequence[str],
    *,
    history: History,
    mode: Mode = "strict",
    wanted: Iterable[int] | None = None,
) -> dict[str, Any]:
    """Returns the metrics of each round of each dataset, and their averages over datasets.

    The paper's MR-RefCOCO/+/g is the average over the three datasets, all of one weight, round by round.

    Args:
        samples, rounds, mode, wanted: As ``by_round`` takes them.
        datasets: The dataset of each sample.
        history: What stood in earlier answers; handed on into the result.

    Returns:
        ``history``; ``datasets``, a result of ``by_round`` for each name in alphabetical order; ``average``
        from ``average_rounds``.

    Raises:
        ValueError: As ``by_round``, and for an unknown history.
    """
    if history not in get_args(History):
        raise ValueError(f"history must be one of {', '.join(get_args(History))}, got {history!r}.")
    if not len(rounds) == len(datasets) == len(samples):
        raise ValueError(
            f"there must be a round and a dataset for each of {len(samples)} samples, got {len(rounds)} "
            f"and {len(datasets)}."
        )
    numbers, names = np.asarray(rounds, np.int64), np.asarray(datasets, object)
    listed = None if wanted is None else list(wanted)
    found = {
        name: by_round(samples.take(names == name), numbers[names == name].tolist(), mode=mode, wanted=listed)
        for name in sorted(set(datasets))
    }
    return {"history": history, "datasets": found, "average": average_rounds(found)}


def average_rounds(found: Mapping[str, Mapping[int, Round | None]]) -> dict[int, Round | None]:
    """Averages each metric of each round over datasets, all of one weight.

    A round that one of the datasets does not have is None: an average over fewer would not be comparable
    with the other rounds. ``counts`` are sums.
    """
    numbers = sorted({number for one in found.values() for number in one})
    return {number: _average([one.get(number) for one in found.values()]) for number in numbers}


def _scores(samples: Samples, mode: Mode) -> Round:
    res = referring.res(samples, mode=mode)
    return {
        "ciou_cumulative": res["ciou_cumulative"],
        "miou": res["miou"],
        "box_p50": _box_p50(samples, mode),
        "counts": referring.counts(samples),
    }


def _box_p50(samples: Samples, mode: Mode) -> float | None:
    if mode == "strict":
        return referring.rec(samples, mode=mode)["accuracy"]
    used = samples.take(~samples.skipped)
    boxes = [box.astype(np.float64) for box in (used.predicted_box, used.target_box)]
    there = (used.predicted_px > 0) & (used.target_px > 0)
    hits = (referring.box_iou(*boxes, plus_one=False) > referring.HIT_IOU) & there
    return float(hits.mean()) if len(hits) else None


def _average(rounds: Sequence[Round | None]) -> Round | None:
    there = [one for one in rounds if one is not None]
    if len(there) < len(rounds):
        return None
    result: Round = {name: _mean([one[name] for one in there]) for name in METRICS}
    counts = [one["counts"] for one in there]
    return result | {"counts": {name: sum(one[name] for one in counts) for name in counts[0]}}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
