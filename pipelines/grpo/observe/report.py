"""The report of a GRPO run: one self-contained HTML page, pictures as files, and the page of trajectories.

OUT/report/index.html          alarms, curves, held-out looks, metrics with their meaning, lineage
OUT/report/curves.png          rewards, lengths, entropy, clipping, mismatch over the steps
OUT/report/looks.png           held-out numbers beside what always saying "No target." scores
OUT/report/times.png           seconds of a step by part
OUT/report/trajectories.html   replies of the first, a middle and the last step kept (``trajectory_page``)
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.grpo.observe.report_curves import pictures_of
from pipelines.grpo.observe.report_glossary import LOOK, meaning
from pipelines.grpo.observe.trajectory_page import load_tokenizer, some_steps, tokenizer_uri, write_page
from pipelines.reports import html
from pipelines.reports.training_parts import Row, column, lineage, lost, names_of, spread
from samtok.errors import SamtokError
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)

FOLDER = "report"
MAX_LOOKS = 20
"""Looks that the table shows; of more, so many at even distances, and the best one."""
PROMPTS = 8
"""Prompts that the page of trajectories shows of each step."""
_BASELINE = {"n_acc": 1.0, "t_acc": 0.0, "t_acc_sampled": 0.0, "ciou": 0.0}
_WITH_TARGETS = ("targets_sampled", "targets_greedy", "exact_targets", "exact_single", "single_sampled")


def write_report(
    out: str,
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    history: Sequence[Row],
    looks: Sequence[Row],
    tokenizer: MaskTokenizer | None = None,
) -> dict[str, bytes]:
    """Writes ``OUT/report`` and returns its pictures by file name.

    Args:
        out: URI of the run's folder; its trajectories go into a page of their own.
        config: The resolved config.
        record: What became of the run. Shown if there: ``best`` (kept looks with their ``step``, the best
            first), ``alarms`` (each with ``step``, ``name``, ``sentence``), ``seconds`` (``s_step``: of all
            steps), ``skipped_steps``, ``rejects``, ``lineage``, ``versions``, ``command``, ``date``.
        history: Metrics, one row per step.
        looks: Held-out looks, one row each; ``step`` counts the updates before it.
        tokenizer: Draws trajectories; by default the one that the config names is loaded.

    Raises:
        StorageError: If the folder cannot be written.
    """
    weights = (config.get("reward") or {}).get("weights") or {}
    weighted = [name for name, weight in weights.items() if weight]
    pictures = pictures_of(history, looks, best=_best_step(record), weighted=weighted)
    for name, data in pictures.items():
        storage.write_bytes(storage.join(out, FOLDER, name), data)
    gallery = _gallery(out, config, tokenizer)
    page = _page(out, config, record, history, looks, pictures, gallery)
    storage.write_bytes(storage.join(out, FOLDER, "index.html"), page.encode())
    return pictures


def _gallery(out: str, config: Mapping[str, Any], tokenizer: MaskTokenizer | None) -> str:
    """Writes the page of trajectories and returns what the report says about it.

    A page that cannot be made must not take the report of a finished run with it, so its reason stands there.
    """
    steps = some_steps(out)
    if not steps:
        return "<p class=faint>No trajectories were kept.</p>"
    named = ", ".join(map(str, steps))
    try:
        tokenizer = tokenizer or load_tokenizer(tokenizer_uri(config, out))
        write_page(out, steps, tokenizer=tokenizer, num=PROMPTS)
    except SamtokError as error:
        log.warning("the trajectories of %s cannot be drawn: %s", out, error)
        return f"<div class=problem>They cannot be drawn: {html.escape(error)}</div>"
    more = "python -m pipelines.grpo.observe.trajectory_page RUN --steps 0,50 shows others."
    link = f"<a href=trajectories.html>Prompts of the steps {named}</a>, with masks drawn."
    return f"<p>{link} <span class=faint><code>{more}</code></span></p>"


def _page(
    out: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    history: Sequence[Row],
    looks: Sequence[Row],
    pictures: Mapping[str, bytes],
    gallery: str,
) -> str:
    text = html.escape(json.dumps(config, indent=2, default=str))
    shown = {
        name: html.card(html.image(data, name.removesuffix(".png"), kind="plot wide"))
        for name, data in pictures.items()
    }
    body = [
        html.heading("Reinforcement learning of mask words", out),
        _alarms(record.get("alarms") or []),
        html.tiles(_tiles(record, history, looks)),
        shown.get("curves.png", ""),
        f"<h2>Held-out prompts</h2>{shown.get('looks.png', '')}{html.card(_looks(looks, record))}",
        f"<h2>Trajectories</h2>{html.card(gallery)}",
        f"<h2>Metrics of a step</h2>{html.card(_metrics(history))}",
        f"<h2>Time</h2>{shown.get('times.png', '')}",
        f"<h2>At the end</h2>{lost(record, history, what='prompt')}",
        f"<h2>Lineage</h2>{html.card(html.settings(lineage(record)))}",
        html.card(html.folded("The whole config", f"<pre class=mono>{text}</pre>")),
    ]
    return html.page("Reinforcement learning of mask words", body)


def _alarms(alarms: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"<p class=banner><b>{html.escape(alarm['name'])}</b> at step {html.decimal(alarm['step'], 0)}: "
        f"{html.escape(alarm['sentence'])}</p>"
        for alarm in alarms
    )


def _tiles(record: Mapping[str, Any], history: Sequence[Row], looks: Sequence[Row]) -> list[tuple[str, str]]:
    first, last = (looks[0], looks[-1]) if looks else ({}, {})
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
    tiles.append((html.decimal(last.get("none_share")), 'reward and gIoU of always saying "No target."'))
    took = html.duration((record.get("seconds") or {}).get("s_step"))
    rate = _mean(column(history, "samples_per_s"))
    tiles.append((html.decimal(rate, 1), f"replies per second over {len(history):,} steps, {took}"))
    return [(number, text) for number, text in tiles if number != "-"]


def _looks(looks: Sequence[Row], record: Mapping[str, Any]) -> str:
    if not looks:
        return "<p class=faint>There were no looks at held-out prompts.</p>"
    at = _best_step(record)
    best = next((place for place, row in enumerate(looks) if row["step"] == at), None)
    names = [name for name in LOOK if name not in ("none_share", "prompts")]
    rows = []
    for place in spread(len(looks), MAX_LOOKS, best):
        row = looks[place]
        numbers = [html.decimal(row.get(name)) for name in names]
        rows.append([html.decimal(row["step"], 0), *numbers, "best" if place == best else ""])
    always = [html.decimal(_always_none(name, looks[-1])) for name in names]
    rows.append(['always "No target."', *always, ""])
    heads = ["updates", *(name.replace("_", " ") for name in names), ""]
    meanings = html.grid(["number", "what it is"], [(n.replace("_", " "), m) for n, m in LOOK.items()])
    table = html.grid(heads, rows, numbers=range(len(heads) - 1), kind="dense")
    return table + html.folded("What these numbers are", meanings)


def _best_step(record: Mapping[str, Any]) -> int | None:
    kept = record.get("best") or [{}]
    return kept[0].get("step")


def _always_none(name: str, look: Row) -> float | None:
    """Returns what always saying "No target." scores."""
    if name in _WITH_TARGETS:
        return 0.0
    return _BASELINE.get(name, look.get("none_share"))


def _metrics(history: Sequence[Row]) -> str:
    if not history:
        return "<p class=faint>No step was taken.</p>"
    tenth = max(1, len(history) // 10)
    rows = []
    for name in names_of(history, ""):
        if name != "step":
            values = column(history, name)
            ends = [_number(_mean(part)) for part in (values[:tenth], values[-tenth:])]
            rows.append([name, *ends, meaning(name)])
    over = f"mean of {tenth} step{'s' if tenth > 1 else ''}"
    return html.grid(["metric", f"first, {over}", f"last, {over}", "what it is"], rows, numbers=(1, 2))


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
