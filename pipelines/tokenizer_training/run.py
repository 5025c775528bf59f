"""Lists the corpora of a tokenizer training, runs its workers on Ray Train, and writes what came out."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipelines import provenance, storage
from pipelines.tokenizer_training import report
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.corpus import Index, build_index, load_index
from pipelines.tokenizer_training.data import held_out_samples, validation_sources
from pipelines.tokenizer_training.prepare import PreparedTokenizer
from pipelines.tokenizer_training.worker import TokenizerTask, train_worker
from pipelines.tracking import Tracker
from pipelines.training.checkpoints import load_history
from pipelines.training.fit import fit_on_ray
from pipelines.training.progress import Progress
from pipelines.training.resume import claim
from samtok.errors import DataError
from samtok.model.tokenizer import MaskTokenizer

SHEET_IMAGES = 8
_HIDDEN = ("images", "codes_restarted")


def task_of(ready: PreparedTokenizer) -> TokenizerTask:
    """Lists the corpora, and returns what workers are given.

    Raises:
        ConfigError: If --out holds a run with other settings.
        DataError: If more of a listing is rejected than --max-reject-rate allows.
    """
    config = ready.config
    claim(config.out, ready.fingerprint)
    training, validation = (
        build_index(specs, storage.join(config.out, name)) if specs else None
        for specs, name in ((ready.corpora, "train"), (ready.held_out, "validation"))
    )
    if training is not None:
        _judge_listing(training, config.max_reject_rate)
    return TokenizerTask(
        config=config,
        fingerprint=ready.fingerprint,
        lineage=ready.lineage,
        training_index=training,
        validation_index=validation,
        deepspeed=ready.deepspeed,
    )


def _judge_listing(index: Index, limit: float) -> None:
    rejected = index.listed_rejects
    total = index.num_images + rejected
    if rejected > limit * total:
        raise DataError(
            f"{rejected} of {total} images cannot be used already when they are listed; --max-reject-rate "
            f"allows {limit:.1%}. {storage.join(index.uri, 'rejects.parquet')} has the reasons."
        )


def train_on_ray(task: TokenizerTask, tracker: Tracker) -> None:
    """Trains on the workers of the config; returns when the run is complete. Raises as ``fit_on_ray``."""
    fit_on_ray(train_worker, task, task.config, callback=progress_of(task.config, tracker).handle)


def progress_of(
    config: TrainTokenizerConfig, tracker: Tracker, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """Returns what shows and logs the events of the workers."""
    return Progress(
        config.steps,
        tracker,
        log_every_s=config.log_every_s,
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


def publish(ready: PreparedTokenizer, record: Mapping[str, Any], tracker: Tracker) -> list[tuple[str, str]]:
    """Writes the report and logs what came out; returns rows of the closing table."""
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
    pictures = report.write_report(
        config.out,
        config=provenance.as_json(config),
        record=record,
        history=load_history(config.out, record["history"]),
        sheet=report.contact_sheet_of(tokenizer, list(samples)),
    )
    for name, data in pictures.items():
        tracker.picture(data, f"pictures/{name}")
    final = {name: value for name, value in record["final"].items() if not isinstance(value, bool)}
    tracker.metrics({f"final/{name}": value for name, value in final.items()}, step=config.steps)
    continuous = f", {final['iou_continuous']:.4f} without codes" if "iou_continuous" in final else ""
    times = record["times"]
    return [
        (
            "held out",
            f"IoU {final['iou']:.4f}{continuous}, {final['iou_shuffled']:.4f} with codes of another image",
        ),
        ("rate", f"{times['masks_per_s']:.0f} masks/s over {times['training_s']:.0f} s of training"),
        ("trained", storage.join(config.out, "final")),
    ]
