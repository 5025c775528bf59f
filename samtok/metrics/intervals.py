"""How sure a number of an evaluation is: bootstrap intervals over images.

Questions about one image have more in common than others, so what is drawn with replacement are images, each
with all of its questions (Field and Welsh 2007, "Bootstrapping clustered data"). Intervals are between
percentiles of what the resamples give (Efron and Tibshirani 1993, chapter 13).

A statistic is a function of counts that were summed over images: of a mean the sum of values and their
number, of a cumulative IoU the pixels of intersections and of unions. So a resample costs one row of a matrix
product, whatever the number of questions. Loads numpy only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

LEVEL, RESAMPLES = 0.95, 1000

Counts = Shaped[np.ndarray, "_image count"]
"""What each image adds to the counts that a statistic is made of."""
Resampled = Float[np.ndarray, " resample"]
Statistic = Callable[[np.ndarray], np.ndarray]
"""From sums of counts, ``... count``, to numbers, ``...``; NaN where there is none."""

_DRAWS_AT_ONCE = 1 << 21


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and where resamples of the images put it.

    Attributes:
        value: Of the images themselves; None where nothing of the kind was there.
        low: Lower end of the interval, None where no resample has a number.
        high: Upper end.
    """

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, resampled: Resampled, level: float = LEVEL) -> "Interval":
        """Returns the interval that holds a share ``level`` of the resamples that have a number."""
        low, high = _percentiles(resampled, level)
        return cls(value=_number(value), low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """How much larger a number of one run is than that of another.

    Attributes:
        above: Share of the resamples in which the difference is above 0.
    """

    above: float | None

    @classmethod
    def of(cls, value: float, resampled: Resampled, level: float = LEVEL) -> "Difference":
        """The same as ``Interval.of``, with the share above 0."""
        low, high = _percentiles(resampled, level)
        there = resampled[~np.isnan(resampled)]
        above = float((there > 0).mean()) if len(there) else None
        return cls(value=_number(value), low=low, high=high, above=above)


def share(sums: Shaped[np.ndarray, "*any 2"]) -> Float[np.ndarray, "*any"]:
    """Returns a part over a whole, the last axis of the sums; NaN where the whole is 0."""
    part, whole = sums[..., 0].astype(np.float64), sums[..., 1]
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


def interval(
    counts: Counts,
    statistic: Statistic = share,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Returns a statistic of images with its interval.

    Args:
        counts: Of each image; no image gives None for all numbers.
        statistic: Of their sums; by default the first count over the second.
        level: Share of the resamples that the interval holds, in (0, 1).
        resamples: How often all images are drawn again.
        seed: Decides which are drawn. Equal seeds and numbers of images draw the same ones.

    Raises:
        ValueError: If there is no resample, or the level is no such share.
    """
    resampled = statistic(resampled_sums(counts, resamples=resamples, seed=seed))
    return Interval.of(float(statistic(counts.sum(axis=0))), resampled, level)


def paired_difference(
    first: Counts,
    second: Counts,
    statistic: Statistic = share,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Returns how much larger a statistic is for the first run than for the second on the same images.

    Both runs are looked at on the images of each resample, so what makes an image hard for both cancels.
    Arguments as of ``interval``, with the images of both runs in one order.

    Raises:
        ValueError: If the numbers of images differ; those of ``interval``.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs the same images, got {len(first)} and {len(second)}.")
    sums = [resampled_sums(counts, resamples=resamples, seed=seed) for counts in (first, second)]
    return _difference(first, second, statistic, sums[0], sums[1], level)


def unpaired_difference(
    first: Counts,
    second: Counts,
    statistic: Statistic = share,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Returns how much larger a statistic is for the first run than for the second on other images.

    Images of both are drawn independently. Arguments and errors as of ``interval``.
    """
    streams = np.random.SeedSequence(seed).spawn(2)
    sums = [
        resampled_sums(counts, resamples=resamples, seed=stream)
        for counts, stream in zip((first, second), streams, strict=True)
    ]
    return _difference(first, second, statistic, sums[0], sums[1], level)


def resampled_sums(
    counts: Counts, *, resamples: int = RESAMPLES, seed: int | np.random.SeedSequence = 0
) -> Float[np.ndarray, "resample count"]:
    """Returns the counts summed over images that were drawn with replacement, as many as there are.

    Counts of several statistics and runs may stand beside each other: all are summed over the same draws.

    Raises:
        ValueError: If there is no resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1, got {resamples}.")
    num_images, rng = len(counts), np.random.default_rng(seed)
    sums = np.zeros((resamples, counts.shape[1]))
    if not num_images:
        return sums
    values = counts.astype(np.float64)
    at_once = max(1, _DRAWS_AT_ONCE // num_images)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, num_images, (rows, num_images)) + num_images * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * num_images).reshape(rows, num_images)
        sums[start : start + rows] = times.astype(np.float64) @ values
    return sums


def sums_by_image(
    counts: Shaped[np.ndarray, "question count"], image: Int[np.ndarray, " question"], num_images: int
) -> Float[np.ndarray, "image count"]:
    """Returns the counts of questions summed by their image, a place in ``[0, num_images)``."""
    columns = [np.bincount(image, weights=column, minlength=num_images) for column in counts.T]
    return np.stack(columns, axis=1) if columns else np.zeros((num_images, 0))


def _difference(
    first: np.ndarray,
    second: np.ndarray,
    statistic: Statistic,
    first_sums: np.ndarray,
    second_sums: np.ndarray,
    level: float,
) -> Difference:
    value = statistic(first.sum(axis=0)) - statistic(second.sum(axis=0))
    return Difference.of(float(value), statistic(first_sums) - statistic(second_sums), level)


def _percentiles(resampled: np.ndarray, level: float) -> tuple[float | None, float | None]:
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level}.")
    there = resampled[~np.isnan(resampled)]
    if not len(there):
        return None, None
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
