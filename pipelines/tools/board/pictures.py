"""Answers of several runs to the same questions, side by side: which are drawn, and their pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from pipelines.reports import pictures as report_pictures
from pipelines.reports.answers import Beside, Row, draw_beside
from pipelines.tools.board.numbers import Measured
from pipelines.tools.board.runs import Run

HEADS = {
    "best": "Best answers",
    "worst": "Worst answers",
    "apart": "Where answers are furthest apart",
    "random": "Answers drawn at random",
}


def drawn(measured: Measured, count: int) -> dict[str, list[Beside]]:
    """Returns pictures of at most ``count`` questions of each of ``HEADS``; none where rows have no masks."""
    if not count or not all(found.drawable for found in measured.answers.values()):
        return {}
    ious = np.stack([found.ious[found.order] for found in measured.answers.values()])
    first = next(iter(measured.answers.values()))
    targets = first.samples.target_px[first.order] > 0
    chosen = choose(ious, targets, count, np.random.default_rng(measured.options.seed))
    places = sorted({place for some in chosen.values() for place in some})
    rows = {run.name: _rows(measured, run, places) for run in measured.group.runs}
    return {
        kind: [
            draw_beside({run: found[place] for run, found in rows.items()}, measured.options.mode)
            for place in some
        ]
        for kind, some in chosen.items()
    }


def choose(
    ious: Float[np.ndarray, "run question"], targets: np.ndarray, count: int, rng: np.random.Generator
) -> dict[str, list[int]]:
    """Returns places of questions to draw.

    Best and worst are by the mean IoU of the runs over questions that have a target, half of them each at
    most; furthest apart by the largest difference of two runs; ties are broken at random.

    Args:
        ious: In [0, 1]; NaN where a question could not be asked, which counts as 0.
        targets: Whether each question has a target.
        count: Of each kind.
        rng: Decides what is drawn at random.
    """
    asked = np.flatnonzero(~np.isnan(ious).all(axis=0))
    scores = np.nan_to_num(ious)
    of_target = [place for place in rng.permutation(asked).tolist() if targets[place]]
    mean, spread = scores.mean(axis=0), np.ptp(scores, axis=0)
    ranked = sorted(of_target, key=lambda place: mean[place])
    apart = sorted((place for place in of_target if spread[place] > 0), key=lambda place: -spread[place])
    return {
        "best": ranked[::-1][: min(count, len(ranked) // 2)],
        "worst": ranked[: min(count, (len(ranked) + 1) // 2)],
        "apart": apart[:count],
        "random": sorted(rng.permutation(asked)[:count].tolist()),
    }


def _rows(measured: Measured, run: Run, places: Sequence[int]) -> Mapping[int, Row]:
    """Reads the whole rows of questions of a run, by their places in the common order."""
    order = measured.answers[run.name].order
    own = sorted((order[place], place) for place in places)
    wanted = np.array([place for place, _ in own], np.int64)
    found = report_pictures.rows_at(run.uri, run.manifest["shards"], wanted, count="samples_in", columns=None)
    return {place: row for (_, place), row in zip(own, found, strict=True)}
