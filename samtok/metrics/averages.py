"""Numbers of the paper that are averages over datasets."""

import math
from collections.abc import Mapping
from typing import Any

G_ACC_DATASETS = ("refcoco", "refcoco+", "refcocog")
"""Whose val splits g-Acc averages."""


def g_acc(results: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Returns g-Acc, by which Tables 12 and 13 of the paper compare codebooks: how well an MLLM generates the
    masks of a tokenizer.

    It is the mean of three cumulative cIoUs, all of one weight, on the val splits of RefCOCO, RefCOCO+ and
    RefCOCOg. The keyed mean that the reference prints as "RES CIoU" is not meant.

    Args:
        results: A result of ``samtok.metrics.referring.res`` for each of ``G_ACC_DATASETS``.

    Returns:
        A share in [0, 1]; None if one of the three has no samples.

    Raises:
        ValueError: If other datasets are named.
    """
    if set(results) != set(G_ACC_DATASETS):
        raise ValueError(f"g-Acc is of {', '.join(G_ACC_DATASETS)}, got {', '.join(results) or 'none'}.")
    return mean_ciou(results)


def mean_ciou(results: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Returns the mean of the cumulative cIoUs of data sets, all of one weight; None if there are none, or
    one has no samples.

    Args:
        results: As ``g_acc`` takes them, of any data sets.
    """
    found = [result["ciou_cumulative"] for result in results.values()]
    return None if None in found or not found else math.fsum(found) / len(found)
