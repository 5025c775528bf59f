"""The report of an evaluation: one self-contained page, and the drawn answers as one picture each kind.

OUT/report/index.html      tables of all modes, by tag, counts; best, worst and random answers
OUT/report/best.png, worst.png, random.png
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import rejects
from pipelines.mllm_evaluation.benchmarks import headlines
from pipelines.mllm_evaluation.config import BASELINE
from pipelines.mllm_evaluation.prepare import Beside, Evaluation
from pipelines.mllm_evaluation.scores import percent, table_of, tag_table
from pipelines.rejects import Reason
from pipelines.reports import html, training, words_page
from pipelines.reports import pictures as report_pictures
from pipelines.reports.answers import SIDE, Drawn, draw, is_text, likeness
from pipelines.reports.pictures import sheet_of
from samtok.plots import pictures as viz

_HEADS = {
    "best": "Best answers",
    "worst": "Worst answers",
    "random": "Answers drawn at random",
}
_TILES = 5
"""Of the metrics, how many are shown large: the mean IoU of targets and those of the benchmark."""


def write_report(
    job: Evaluation,
    manifest: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
) -> None:
    """Writes ``OUT/report``.

    Args:
        job: What was evaluated.
        manifest: Of the answers.
        rows: From ``answers.read_answers``, in their order.
        metrics: As ``metrics.json`` has them.
    """
    out, count = job.config.out, job.config.report_pictures
    chosen = choose(rows, count, np.random.default_rng(job.config.seed))
    whole = rows_at(out, manifest, [place for places in chosen.values() for place in places])
    drawn = {kind: [draw(whole[place]) for place in places] for kind, places in chosen.items()}
    pictures = {}
    for kind, answers in drawn.items():
        if panels := [one.panel for one in answers if one.panel is not None]:
            heads = viz.ANSWER if any(panel.decoded is not None for panel in panels) else viz.REGION
            pictures[f"{kind}.png"] = sheet_of(panels, SIDE, heads=heads)
    reasons = rejects.of_corpus(out, manifest)
    training.write_page(out, render(job, metrics, drawn, reasons), pictures)


def render(
    job: Evaluation,
    metrics: Mapping[str, Any],
    drawn: Mapping[str, Sequence[Drawn]],
    reasons: Sequence[Reason],
) -> str:
    """Returns the page as HTML."""
    legend = html.legend()
    counts = [(name.replace("_", " "), number) for name, number in metrics["counts"].items()]
    return html.page(
        f"{metrics['benchmark'].upper()}: masks answered in words",
        job.config.out,
        html.tiles(_tiles(metrics)),
        *(
            html.section(f"Metrics, {mode}", _metrics(metrics, job.beside, mode, found["read"]))
            for mode, found in metrics["modes"].items()
        ),
        html.section("By tag, strict", _grid(tag_table(metrics, "strict"))),
        *(
            html.section(_HEADS[kind], html.beside(*map(_answer, answers)), note=legend)
            for kind, answers in drawn.items()
            if answers
        ),
        *([html.section("Not asked", words_page.rejects_table(reasons))] if reasons else []),
        html.section("Counts", html.beside(html.card(html.settings(counts)), _measured_with(job))),
    )


def _tiles(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    strict = metrics["modes"]["strict"]
    own, nothing = (headlines(metrics["benchmark"], strict[who]) for who in ("model", "no_target"))
    return [
        (percent(own[name]), f"{name}, %; {BASELINE} {percent(nothing[name])}") for name in list(own)[:_TILES]
    ]


def _metrics(metrics: Mapping[str, Any], beside: Beside, mode: str, read: Mapping[str, Any]) -> html.Block:
    broken = f", broken words: {read['malformed']}" if read["malformed"] else ""
    skipped = "count as wrong" if mode == "strict" else "are left out"
    empty = (
        f" Predictions below {read['min_pixels']} pixels count as empty." if read["min_pixels"] > 1 else ""
    )
    return _grid(
        table_of(metrics, beside, mode),
        f"Words of an answer: {read['combine'].replace('_', ' ')}{broken}. Logits cut at "
        f"{read['mask_threshold']}.{empty} Questions that could not be asked {skipped}.",
    )


def _grid(table: Sequence[Sequence[str]], note: str = "") -> html.Block:
    head, *lines = table
    return html.card(html.grid(head, lines, numbers=range(1, len(head))), note=note)


def _measured_with(job: Evaluation) -> html.Block:
    config = job.config
    places = [("model", config.model), ("tokenizer", config.tokenizer), ("chats", config.chats)]
    hidden = ("kind", "schema_version", "code_version")
    rest = [(name, value) for name, value in job.fingerprint.items() if name not in hidden]
    return html.card(html.settings([*places, *rest]), title="Measured with")


def _answer(drawn: Drawn) -> html.Block:
    row = drawn.row
    if row["asked_rle"] is not None and is_text(row):
        target = f"words in common {html.decimal(likeness(row), 2)}"
    else:
        target = f"IoU {html.decimal(drawn.iou, 2)}" if row["target_px"] else "no target"
    broken = f", {row['num_malformed']} broken words" if row["num_malformed"] else ""
    tags = f" [{', '.join(row['tags'])}]" if row["tags"] else ""
    where = f"{row['dataset']} {row['image_id']}, {row['sample_id']}{tags}"
    head = [html.bold(target), broken, " ", html.faint(where), html.BREAK, html.shortened(row["question"])]
    truth = [html.faint("truth "), html.code(html.shortened(row["truth"]))]
    answer = [html.faint("answer "), html.code(html.shortened(row["generated"]).strip() or "(empty)")]
    return html.card(
        html.paragraph(*head),
        html.figures(drawn.pictures, drawn.problem),
        html.paragraph(*truth, html.BREAK, *answer),
    )


# ---------------------------------------------------------------- pictures: what was meant, what was answered


def choose(rows: Sequence[Mapping[str, Any]], count: int, rng: np.random.Generator) -> dict[str, list[int]]:
    """Returns which answers to draw, by their place: the best and the worst of a target, and random ones.

    Best and worst are by IoU in strict mode, and by their words where no answer has a target; ties are broken
    at random, so they are not all of one image.
    """
    asked = [place for place, row in enumerate(rows) if row["problem"] is None]
    shuffled = rng.permutation(asked).tolist()
    of_target = [place for place in shuffled if rows[place]["target_px"]] or shuffled
    ranked = sorted(of_target, key=lambda place: likeness(rows[place]))
    worst = ranked[: min(count, (len(ranked) + 1) // 2)]
    best = ranked[::-1][: min(count, len(ranked) // 2)]
    drawn = rng.choice(asked, min(count, len(asked)), replace=False).tolist() if asked else []
    return {"best": best, "worst": worst, "random": sorted(drawn)}


def rows_at(out: str, manifest: Mapping[str, Any], places: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Reads whole rows of answers by their place in the evaluation."""
    wanted = sorted(set(places))
    found = report_pictures.rows_at(
        out, manifest["shards"], np.array(wanted, int), count="samples_in", columns=None
    )
    return dict(zip(wanted, found, strict=True))
