"""The report of a fine-tuning run: one self-contained HTML page, and its pictures as files.

OUT/report/index.html   losses, held-out looks, own answers drawn, what was left out, lineage
OUT/report/curves.png   loss, share of right words, throughput, rate and gradient over the steps
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import storage
from pipelines.reports import html
from pipelines.reports.training_parts import Row, column, lineage, lost, skipped_steps, spread
from samtok.plots.curves import Curve, CurvePanel, Events, curves_plot

FOLDER = "report"
MAX_LOOKS = 20
"""Looks at held-out chats that the table shows; of more, so many at even distances, and the best one."""


def write_report(
    out: str, *, config: Mapping[str, Any], record: Mapping[str, Any], history: Sequence[Row]
) -> dict[str, bytes]:
    """Writes ``OUT/report`` and returns its pictures by file name.

    Args:
        out: URI of the run's folder; the last picture of ``OUT/generations`` goes into the page.
        config: The resolved config.
        record: What became of the run.
        history: One row per step, which counts from 0.

    Raises:
        StorageError: If the folder cannot be written.
    """
    pictures = {"curves.png": _curves(record, history)}
    if (answers := _last_answers(out)) is not None:
        pictures["answers.png"] = answers
    page = _page(out, config, record, history, pictures)
    for name, data in {**pictures, "index.html": page.encode()}.items():
        storage.write_bytes(storage.join(out, FOLDER, name), data)
    return pictures


def _last_answers(out: str) -> bytes | None:
    drawn = sorted(file.uri for file in storage.list_files(storage.join(out, "generations"), suffix=".png"))
    return storage.read_bytes(drawn[-1]) if drawn else None


def _curves(record: Mapping[str, Any], history: Sequence[Row]) -> bytes:
    looks, done = record.get("validations") or [], column(history, "step") + 1

    def train(name: str, label: str) -> Curve:
        return Curve(label, done, column(history, name), noisy=True)

    def held_out(name: str, label: str) -> Curve:
        return Curve(label, column(looks, "step"), column(looks, name))

    panels = [
        CurvePanel("loss per learnt token", [train("loss", "train"), held_out("loss", "held out")], log=True),
        CurvePanel(
            "right after the true text, held out",
            [held_out("tokens", "all tokens"), held_out("codes", "codes of masks")],
            limits=(0.0, 1.0),
        ),
        CurvePanel("tokens of a step", [train("tokens", "all"), train("learnt_tokens", "learnt")]),
        CurvePanel("share of padding", [train("padding", "padding")]),
        CurvePanel("gradient norm before clipping", [train("gradient_norm", "norm")], log=True),
        CurvePanel("learning rate", [Curve("rate", done, column(history, "lr"))]),
    ]
    best = (record.get("best") or {}).get("step")
    return curves_plot(panels, Events(best=best, skipped=[step + 1 for step in skipped_steps(history)]))


def _page(
    out: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    history: Sequence[Row],
    pictures: Mapping[str, bytes],
) -> str:
    text = html.escape(json.dumps(config, indent=2, default=str))
    curves = html.image(pictures["curves.png"], "curves over the steps", kind="plot wide")
    body = [
        html.heading("Fine-tuning on mask words", out),
        html.tiles(_tiles(record)),
        html.card(curves),
        f"<h2>Held-out chats</h2>{html.card(_looks(record.get('validations') or []))}",
        _answers(pictures),
        f"<h2>At the end</h2>{lost(record, history, what='chat')}",
        f"<h2>Lineage</h2>{html.card(html.settings(lineage(record)))}",
        html.card(html.folded("The whole config", f"<pre class=mono>{text}</pre>")),
    ]
    return html.page("Fine-tuning on mask words", body)


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    last = (record.get("validations") or [{}])[-1]
    best, times = record.get("best") or {}, record.get("times") or {}
    workers = record.get("workers") or 1
    took = f"{html.duration(times.get('training_s'))} on {workers} worker{'s' if workers != 1 else ''}"
    numbers = [
        (html.decimal(last.get("loss"), 4), "held-out loss at the end"),
        (html.decimal(best.get("loss"), 4), f"best held-out loss, after step {best.get('step', 0):,}"),
        (html.share_of(last["codes"], 1) if "codes" in last else "-", "codes right after the true text"),
        (html.decimal(times.get("tokens_per_s"), 0), f"tokens trained per second, {took}"),
        (html.decimal(record.get("tokens"), 0), "tokens trained"),
    ]
    return [(number, text) for number, text in numbers if number != "-"]


def _looks(validations: Sequence[Row]) -> str:
    if not validations:
        return "<p class=faint>There were no held-out chats.</p>"
    best = max((place for place, row in enumerate(validations) if row.get("best")), default=None)
    rows = []
    for place in spread(len(validations), MAX_LOOKS, best):
        row = validations[place]
        numbers = [html.decimal(row["step"], 0), html.decimal(row["loss"], 4)]
        shares = [html.share_of(row[name], 1) for name in ("tokens", "codes")]
        rows.append([*numbers, *shares, html.decimal(row["samples"], 0), "best" if place == best else ""])
    heads = ["steps done", "loss", "tokens right", "codes right", "chats", ""]
    return html.grid(heads, rows, numbers=range(len(heads) - 1))


def _answers(pictures: Mapping[str, bytes]) -> str:
    if "answers.png" not in pictures:
        return ""
    image = html.image(pictures["answers.png"], "questions, true masks and answered masks")
    return f"<h2>Own answers at the end</h2>{html.card(html.legend() + image)}"
