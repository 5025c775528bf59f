"""The report of a GRPO run: one self-contained HTML page, pictures as files, and the page of trajectories.

OUT/report/index.html          alarms, curves, validations, metrics with their meaning, lineage
OUT/report/curves.png          rewards, lengths, entropy, clipping, mismatch over the steps
OUT/report/validation.png      held-out metrics beside what the constant answer "No target." scores
OUT/report/times.png           seconds of a step by part
OUT/report/trajectories.html   responses of the first, a middle and the last step kept (``trajectory_page``)
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.grpo.observe.report_metrics import VALIDATION, meaning, pictures_of
from pipelines.grpo.observe.trajectory_page import load_tokenizer, some_steps, write_page
from pipelines.reports import html, training
from pipelines.reports.training import Row, column, names_of
from samtok.errors import SamtokError
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)

PROMPTS = 8
"""Prompts that the page of trajectories shows of each step."""
_TITLES = {
    "curves.png": "metrics over the steps",
    "validation.png": "validation over the steps",
    "times.png": "seconds of a step by part",
}
_BASELINE = {"n_acc": 1.0, "t_acc": 0.0, "t_acc_sampled": 0.0, "ciou": 0.0}
_WITH_TARGETS = ("targets_sampled", "targets_greedy", "exact_targets", "exact_single", "single_sampled")


def write_report(
    out: str,
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    history: Sequence[Row],
    tokenizer: MaskTokenizer | None = None,
) -> dict[str, bytes]:
    """Writes ``OUT/report`` and returns its pictures by file name.

    Args:
        out: URI of the run's folder; its trajectories go into a page of their own.
        record: What became of the run. Shown if there: ``best`` (kept validations with ``step``, the best
            first), ``alarms`` (each with ``step``, ``name``, ``sentence``), ``seconds`` (``s_step``: of all
            steps), ``validations`` (held-out metrics; ``step`` counts the updates before it),
            ``skipped_steps``, ``rejects``, ``lineage``, ``versions``, ``command``, ``date``.
        tokenizer: Draws trajectories; by default the one that the config names is loaded.

    Raises:
        StorageError: If the folder cannot be written.
    """
    validations = record.get("validations") or []
    weights = (config.get("reward") or {}).get("weights") or {}
    weighted = [name for name, weight in weights.items() if weight]
    best = (record.get("best") or [{}])[0].get("step")
    pictures = pictures_of(history, validations, best=best, weighted=weighted)
    plots = {name: html.card(html.plot(data, _TITLES[name])) for name, data in pictures.items()}
    page = html.page(
        "Reinforcement learning of mask words",
        out,
        *_alarms(record.get("alarms") or []),
        html.tiles(_tiles(record, history, validations)),
        plots.get("curves.png", ""),
        html.section("Held-out prompts", plots.get("validation.png", ""), _validations(validations, best)),
        html.section("Trajectories", html.card(_trajectories(out, config, tokenizer))),
        html.section("Metrics of a step", html.card(_metrics(history))),
        *([html.section("Time", plots["times.png"])] if "times.png" in plots else []),
        *training.ending(record, history, config, what="prompt"),
    )
    training.write_page(out, page, pictures)
    return pictures


def _trajectories(out: str, config: Mapping[str, Any], tokenizer: MaskTokenizer | None) -> html.Block:
    """Writes the page of trajectories and returns what the report has of it.

    A page that cannot be made must not take the report of a finished run with it, so its reason stands there.
    """
    steps = some_steps(out)
    if not steps:
        return html.paragraph(html.faint("No trajectories were kept."))
    try:
        tokenizer = tokenizer or load_tokenizer(config.get("tokenizer"), out)
        write_page(out, steps, tokenizer=tokenizer, num=PROMPTS)
    except SamtokError as error:
        log.warning("the trajectories of %s cannot be drawn: %s", out, error)
        return html.problem(f"They cannot be drawn: {error}")
    link = html.link("trajectories.html", f"Prompts of the steps {', '.join(map(str, steps))}")
    more = html.code("python -m pipelines.grpo.observe.trajectory_page RUN --steps 0,50")
    return html.paragraph(link, ", with masks drawn. ", html.faint(html.join(more, " shows others.")))


def _alarms(alarms: Sequence[Mapping[str, Any]]) -> list[html.Block]:
    return [
        html.banner(f"at step {html.decimal(alarm['step'], 0)}: {alarm['sentence']}", alarm["name"])
        for alarm in alarms
    ]


def _tiles(
    record: Mapping[str, Any], history: Sequence[Row], validations: Sequence[Row]
) -> list[tuple[str, str]]:
    first, last = (validations[0], validations[-1]) if validations else ({}, {})
    texts = {
        "reward_sampled": "sampled reward on held-out prompts",
        "targets_sampled": "sampled reward where there are targets",
        "giou": "greedy gIoU",
        "t_acc": "greedy T-acc",
    }
    tiles = [
        (html.decimal(last.get(name)), f"{text}; {html.decimal(first.get(name))} at first")
        for name, text in texts.items()
    ]
    tiles.append((html.decimal(last.get("none_share")), 'reward and gIoU of answering "No target." always'))
    took = html.duration((record.get("seconds") or {}).get("s_step"))
    rate = _mean(column(history, "samples_per_s"))
    tiles.append((html.decimal(rate, 1), f"responses per second over {len(history):,} steps, {took}"))
    return tiles


def _validations(validations: Sequence[Row], at: int | None) -> html.Block:
    if not validations:
        return html.card(note="There were no held-out prompts.")
    best = next((place for place, row in enumerate(validations) if row["step"] == at), None)
    names = [name for name in VALIDATION if name not in ("none_share", "prompts")]
    shown, note = training.validations_shown(validations, best)
    rows = [
        [html.decimal(row["step"], 0), *(html.decimal(row.get(name)) for name in names), mark]
        for row, mark in shown
    ]
    always = [html.decimal(_always_none(name, validations[-1])) for name in names]
    rows.append(['always "No target."', *always, ""])
    heads = ["updates", *(name.replace("_", " ") for name in names), ""]
    meanings = html.grid(["metric", "what it is"], [(n.replace("_", " "), m) for n, m in VALIDATION.items()])
    table = html.grid(heads, rows, numbers=range(len(heads) - 1), kind="dense many")
    return html.card(table, html.folded("What these metrics are", meanings), note=note)


def _always_none(name: str, validation: Row) -> float | None:
    """Returns what the constant answer "No target." scores."""
    if name in _WITH_TARGETS:
        return 0.0
    return _BASELINE.get(name, validation.get("none_share"))


def _metrics(history: Sequence[Row]) -> html.Block:
    tenth = max(1, len(history) // 10)
    rows = []
    for name in names_of(history, ""):
        if name != "step":
            values = column(history, name)
            means = _mean(values[:tenth]), _mean(values[-tenth:])
            ends = ["-" if mean is None else f"{mean:.4g}" for mean in means]
            rows.append([name, *ends, meaning(name)])
    over = f"mean of {tenth} step{'s' if tenth > 1 else ''}"
    heads = ["metric", f"first, {over}", f"last, {over}", "what it is"]
    return html.grid(heads, rows, numbers=(1, 2), empty="No step was taken.")


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
