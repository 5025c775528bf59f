"""Runs the workers of a fine-tuning on Ray Train, and writes what came out."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import provenance, storage
from pipelines.sft import report
from pipelines.sft.pictures import Gallery
from pipelines.sft.prepare import PreparedMllm
from pipelines.sft.worker import train_worker
from pipelines.tracking import Tracker
from pipelines.training.fit import fit_on_ray
from pipelines.training.progress import Progress

_HIDDEN = ("learnt_tokens", "samples", "lr")


def train(ready: PreparedMllm, tracker: Tracker) -> None:
    """Trains on the workers of the config, and draws answers meanwhile. Raises as ``fit_on_ray``."""
    config = ready.config
    progress = Progress(config, tracker, unit="tokens", hidden=_HIDDEN, validation_line=_validation_line)
    with Gallery(config, tracker, progress) as gallery:
        fit_on_ray(train_worker, ready, config, callback=gallery.handle)


def _validation_line(body: Mapping[str, Any]) -> str:
    best = ", the best so far" if body["best"] else ""
    apart = "".join(f", {name} {body[name]:.4f}" for name in body if name.startswith("loss/"))
    return (
        f"held out after {body['step']} steps: loss {body['loss']:.4f}, {100 * body['tokens']:.1f} % of "
        f"tokens and {100 * body['codes']:.1f} % of codes right after the true text{apart}{best}"
    )


def publish(
    ready: PreparedMllm, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """Writes the report; returns its pictures, and rows of the closing table."""
    config, times = ready.config, record["times"]
    body = provenance.as_json(config)
    pictures = report.write_report(config.out, config=body, record=record, history=history)
    rows = [("rate", f"{times['tokens_per_s']:.0f} tokens/s over {times['training_s']:.0f} s of training")]
    if record["validations"]:
        last = record["validations"][-1]
        rows.insert(0, ("held out", f"loss {last['loss']:.4f}, {100 * last['codes']:.1f} % of codes right"))
    return pictures, [*rows, ("trained", storage.join(config.out, "final"))]
