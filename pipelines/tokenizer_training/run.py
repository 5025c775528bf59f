"""Lists the corpora of a tokenizer training, runs its workers on Ray Train, and writes what came out."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines import provenance, storage
from pipelines.ingestion import apart
from pipelines.tokenizer_training import report
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.corpus import build_index, load_index
from pipelines.tokenizer_training.data import held_out_samples, validation_sources
from pipelines.tokenizer_training.prepare import PreparedTokenizer
from pipelines.tokenizer_training.worker import train_worker
from pipelines.tracking import Tracker
from pipelines.training.fit import fit_on_ray
from pipelines.training.progress import Progress
from pipelines.training.resume import claim
from samtok.errors import DataError
from samtok.model.tokenizer import MaskTokenizer

SHEET_IMAGES = 8
_HIDDEN = ("images", "codes_restarted")


def task_of(ready: PreparedTokenizer) -> PreparedTokenizer:
    """Lists the corpora, and returns what workers are given; raises ConfigError if --out holds a run with
    other settings, DataError if more of a listing is rejected than --max-reject-rate allows."""
    config = ready.config
    claim(config.out, ready.fingerprint)
    training, validation = (
        build_index(specs, storage.join(config.out, name)) if specs else None
        for specs, name in ((ready.corpora, "train"), (ready.held_out, "validation"))
    )
    if training is not None:
        rejected = sum(corpus.images_rejected for corpus in training.corpora)
        limit = config.max_reject_rate
        total = training.num_images + rejected
        if rejected > limit * total:
            raise DataError(
                f"{rejected} of {total} images cannot be used already when they are listed; "
                f"--max-reject-rate allows {limit:.1%}. "
                f"{storage.join(training.uri, 'rejects.parquet')} has the reasons."
            )
    return dataclasses.replace(ready, training_index=training, validation_index=validation)


def train(ready: PreparedTokenizer, tracker: Tracker) -> None:
    """Lists the corpora, and trains; raises as ``task_of`` and ``fit_on_ray``."""
    train_on_ray(task_of(ready), tracker)


def train_on_ray(task: PreparedTokenizer, tracker: Tracker) -> None:
    """Trains on the workers of the config; returns when the run is complete. Raises as ``fit_on_ray``."""
    fit_on_ray(train_worker, task, task.config, callback=progress_of(task.config, tracker).handle)


def progress_of(
    config: TrainTokenizerConfig, tracker: Tracker, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """Returns what shows and logs the events of the workers."""
    return Progress(
        config,
        tracker,
        unit="masks",
        hidden=_HIDDEN,
        validation_line=_validation_line,
        clock=clock,
    )


def _validation_line(body: Mapping[str, Any]) -> str:
    levels = ", ".join(f"{v:.0f}" for name, v in body.items() if name.startswith("perplexity_"))
    how = (
        f"perplexity {levels}, {body['distinct']} distinct words"
        if body["quantized"]
        else "not quantized yet"
    )
    best = ", the best so far" if body["best"] else ""
    return (
        f"held out after {body['step']} steps: IoU {body['iou']:.4f}, {body['iou_shuffled']:.4f} with codes "
        f"of another image, {100 * body['below_half']:.1f} % under one half, {how}{best}"
    )


def publish(
    ready: PreparedTokenizer, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """Writes the report; returns its pictures, and rows of the closing table."""
    config = ready.config
    tokenizer = MaskTokenizer.from_pretrained(storage.join(config.out, "final"), read=storage.read_bytes)
    index = load_index(storage.join(config.out, "validation")) if ready.held_out else None
    samples = held_out_samples(
        validation_sources(config, index),
        SHEET_IMAGES,
        masks_per_image=4,
        seed=config.validation.seed,
        rank=0,
        world=1,
    )
    with apart.in_own_process():  # one of them may be what killed workers
        drawn = list(samples)
    pictures = report.write_report(
        config.out,
        config=provenance.as_json(config),
        record=record,
        history=history,
        sheet=report.contact_sheet_of(tokenizer, drawn),
    )
    final, times = record["final"], record["times"]
    continuous = f", {final['iou_continuous']:.4f} without codes" if "iou_continuous" in final else ""
    shuffled = f"{final['iou_shuffled']:.4f} with codes of another image"
    return pictures, [
        ("held out", f"IoU {final['iou']:.4f}{continuous}, {shuffled}"),
        ("rate", f"{times['masks_per_s']:.0f} masks/s over {times['training_s']:.0f} s of training"),
        ("trained", storage.join(config.out, "final")),
    ]
