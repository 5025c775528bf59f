"""The report of an evaluation: one self-contained page, and the drawn answers as one picture each kind.

OUT/report/index.html      tables of all modes, by tag, counts; best, worst and random answers
OUT/report/best.png, worst.png, random.png
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.mllm_evaluation.config import BASELINE
from pipelines.mllm_evaluation.pictures import SIDE, Drawn, choose, draw, rows_at
from pipelines.mllm_evaluation.prepare import Beside, Evaluation
from pipelines.mllm_evaluation.scores import headlines, percent
from pipelines.mllm_evaluation.tables import table_of, tag_table
from pipelines.reports import html
from pipelines.reports import words as corpus_reports
from pipelines.reports import words_page as report_page
from pipelines.reports.pictures import sheet_of
from samtok.plots import pictures as viz

_HEADS = {
    "best": "Best answers",
    "worst": "Worst answers",
    "random": "Answers drawn at random",
}
_LONGEST_TEXT = 400
_TILES = 5
"""Of the numbers, how many are shown large: the mean IoU of targets and those of the benchmark."""


def write_report(
    job: Evaluation,
    manifest: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    beside: Beside,
) -> str:
    """Writes ``OUT/report`` and returns the URI of its page.

    Args:
        job: What was evaluated.
        manifest: Of the answers.
        rows: From ``scores.read_answers``, in their order.
        metrics: As ``metrics.json`` has them.
        beside: Metrics of other runs.

    Raises:
        StorageError: If something cannot be read or written.
    """
    out, count = job.config.out, job.config.report_pictures
    chosen = choose(rows, count, np.random.default_rng(job.config.seed))
    whole = rows_at(out, manifest, [place for places in chosen.values() for place in places])
    drawn = {kind: [draw(whole[place]) for place in places] for kind, places in chosen.items()}
    for kind, answers in drawn.items():
        panels = [one.panel for one in answers if one.panel is not None]
        if panels:
            where = storage.join(out, corpus_reports.FOLDER, f"{kind}.png")
            storage.write_bytes(where, sheet_of(panels, SIDE, heads=viz.ANSWER))
    rejects = corpus_reports.rejects(corpus_reports.Corpus(out, manifest, (), None))
    where = storage.join(out, corpus_reports.FOLDER, "index.html")
    storage.write_bytes(where, render(job, metrics, beside, drawn, rejects).encode())
    return where


def render(
    job: Evaluation,
    metrics: Mapping[str, Any],
    beside: Beside,
    drawn: Mapping[str, Sequence[Drawn]],
    rejects: Sequence[report_page.RejectLine],
) -> str:
    """Returns the page as HTML; texts of datasets and models are untrusted and escaped."""
    title = f"{metrics['benchmark'].upper()}: masks that were said in words"
    body = [html.heading(title, job.config.out), _tiles(metrics)]
    for mode, found in metrics["modes"].items():
        body.append(f"<h2>Numbers, {html.escape(mode)}</h2>{_numbers(metrics, beside, mode, found['read'])}")
    body.append(f"<h2>By tag</h2>{_grid(tag_table(metrics, 'strict'))}")
    body += [f"<h2>{_HEADS[kind]}</h2>{_answers(answers)}" for kind, answers in drawn.items() if answers]
    if rejects:
        body.append(f"<h2>Not asked</h2>{report_page.rejects_table(rejects)}")
    body.append(f"<h2>Counts</h2><div class=two>{_counts(metrics)}{_measured_with(job)}</div>")
    return html.page(title, body)


def _tiles(metrics: Mapping[str, Any]) -> str:
    strict = metrics["modes"]["strict"]
    own, nothing = (headlines(metrics["benchmark"], strict[who]) for who in ("model", "no_target"))
    return html.tiles(
        (percent(own[name]), f"{name}; {BASELINE} {percent(nothing[name])}") for name in list(own)[:_TILES]
    )


def _numbers(metrics: Mapping[str, Any], beside: Beside, mode: str, read: Mapping[str, Any]) -> str:
    broken = f", broken words: {read['malformed']}" if read["malformed"] else ""
    note = (
        f"Words of an answer: {read['combine'].replace('_', ' ')}{broken}. Logits cut at "
        f"{read['mask_threshold']}."
    )
    if read["min_pixels"] > 1:
        note += f" Predictions below {read['min_pixels']} pixels count as empty."
    skipped = "count as wrong" if mode == "strict" else "are left out"
    return _grid(table_of(metrics, beside, mode), f"{note} Questions that could not be asked {skipped}.")


def _grid(table: Sequence[Sequence[str]], note: str = "") -> str:
    head, *lines = table
    inside = html.grid(head, lines, numbers=range(1, len(head)))
    return html.card(inside + (f"<p class=faint>{html.escape(note)}</p>" if note else ""))


def _counts(metrics: Mapping[str, Any]) -> str:
    return html.card(html.settings((name.replace("_", " "), n) for name, n in metrics["counts"].items()))


def _measured_with(job: Evaluation) -> str:
    config = job.config
    places = [("model", config.model), ("tokenizer", config.tokenizer), ("chats", config.chats)]
    hidden = ("kind", "schema_version", "code_version")
    rest = [(name, value) for name, value in job.fingerprint.items() if name not in hidden]
    return html.card(f"<h3>Measured with</h3>{html.settings([*places, *rest])}")


def _answers(answers: Sequence[Drawn]) -> str:
    return f"<p class=faint>{html.legend()}</p><div class=two>{''.join(map(_answer, answers))}</div>"


def _answer(drawn: Drawn) -> str:
    row = drawn.row
    target = f"IoU {html.decimal(drawn.iou, 2)}" if row["target_px"] else "no target"
    broken = f", {row['num_malformed']} broken words" if row["num_malformed"] else ""
    tags = f" [{', '.join(row['tags'])}]" if row["tags"] else ""
    where = f"{row['dataset']} {row['image_id']}, {row['sample_id']}{tags}"
    figures = "".join(
        f"<figure>{html.image(data, caption, media='jpeg')}<figcaption>{caption}</figcaption></figure>"
        for caption, data in drawn.pictures
    )
    shots = f"<div class=shots>{figures}</div>"
    if drawn.problem is not None:
        shots = f"<div class=problem>The image cannot be shown: {html.escape(drawn.problem)}</div>"
    return html.card(
        f"<p class=text><b>{html.escape(target)}</b>{html.escape(broken)} "
        f"<span class=faint>{html.escape(where)}</span><br>{_text(row['question'])}</p>{shots}"
        f"<p class=text><span class=faint>truth</span> <code>{_text(row['truth'])}</code><br>"
        f"<span class=faint>answer</span> <code>{_text(row['generated'])}</code></p>"
    )


def _text(text: str) -> str:
    return html.escape(text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "...")
