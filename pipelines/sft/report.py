"""The report of a fine-tuning run: one self-contained HTML page, and its pictures as files.

OUT/report/index.html   losses, validations, generated answers drawn, what was left out, lineage
OUT/report/curves.png   loss, token accuracy, throughput, rate and gradient over the steps
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import storage
from pipelines.reports import html, training
from pipelines.reports.training import Row, column
from samtok.plots.curves import Curve, CurvePanel, Events, curves_plot


def write_report(
    out: str, *, config: Mapping[str, Any], record: Mapping[str, Any], history: Sequence[Row]
) -> dict[str, bytes]:
    """Writes ``OUT/report`` and returns its pictures by file name; raises StorageError if the folder cannot
    be written.

    Args:
        out: URI of the run's folder; the last picture of ``OUT/generations`` goes into the page.
        history: One row per step, which counts from 0.
    """
    pictures = {"curves.png": _curves(record, history)}
    drawn = sorted(file.uri for file in storage.list_files(storage.join(out, "generations"), suffix=".png"))
    answers = []
    if drawn:
        pictures["answers.png"] = storage.read_bytes(drawn[-1])
        image = html.picture(pictures["answers.png"], "questions, true masks and answered masks")
        answers = [html.section("Generated answers at the end", html.card(image))]
    page = html.page(
        "Fine-tuning on mask words",
        out,
        html.tiles(_tiles(record)),
        html.card(html.plot(pictures["curves.png"], "curves over the steps")),
        html.section("Held-out chats", _validations(record.get("validations") or [])),
        *answers,
        *training.ending(record, history, config, what="chat"),
    )
    training.write_page(out, page, pictures)
    return pictures


def _curves(record: Mapping[str, Any], history: Sequence[Row]) -> bytes:
    validations, done = record.get("validations") or [], column(history, "step") + 1

    def train(name: str, label: str) -> Curve:
        return Curve(label, done, column(history, name), noisy=True)

    def held_out(name: str, label: str) -> Curve:
        return Curve(label, column(validations, "step"), column(validations, name))

    losses = [train("loss", "train"), held_out("loss", "held out")]
    losses += [held_out(name, name.removeprefix("loss/")) for name in training.names_of(validations, "loss/")]
    panels = [
        CurvePanel("loss per learnt token", losses, log=True),
        CurvePanel(
            "accuracy of the next token, held out",
            [held_out("tokens", "all tokens"), held_out("codes", "codes of masks")],
            limits=(0.0, 1.0),
        ),
        CurvePanel("tokens of a step", [train("tokens", "all"), train("learnt_tokens", "learnt")]),
        CurvePanel("share of padding", [train("padding", "padding")]),
        CurvePanel("gradient norm before clipping", [train("gradient_norm", "norm")], log=True),
        CurvePanel("learning rate", [Curve("rate", done, column(history, "lr"))]),
    ]
    best = (record.get("best") or {}).get("step")
    skipped = [step + 1 for step in training.skipped_steps(history)]
    return curves_plot(panels, Events(best=best, skipped=skipped))


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    last = (record.get("validations") or [{}])[-1]
    best, times = record.get("best") or {}, record.get("times") or {}
    return [
        (html.decimal(last.get("loss"), 4), "held-out loss at the end"),
        (html.decimal(best.get("loss"), 4), f"best held-out loss, after step {best.get('step', 0):,}"),
        (html.share_of(last["codes"], 1) if "codes" in last else "-", "accuracy of mask codes, held out"),
        (html.decimal(times.get("tokens_per_s"), 0), f"tokens trained per second, {training.took(record)}"),
        (html.decimal(record.get("tokens"), 0), "tokens trained"),
    ]


def _validations(validations: Sequence[Row]) -> html.Block:
    shown, note = training.validations_shown(validations, training.place_of_best(validations))
    rows, apart = [], training.names_of(validations, "loss/")
    for row, best in shown:
        numbers = [html.decimal(row["step"], 0), *(html.decimal(row.get(n), 4) for n in ("loss", *apart))]
        shares = [html.share_of(row[name], 1) for name in ("tokens", "codes")]
        rows.append([*numbers, *shares, html.decimal(row["samples"], 0), best])
    of_corpora = [name.replace("loss/", "loss of ") for name in apart]
    heads = ["steps done", "loss", *of_corpora, "token accuracy", "code accuracy", "chats", ""]
    empty = "There were no held-out chats."
    return html.card(html.grid(heads, rows, numbers=range(len(heads) - 1), empty=empty), note=note)
