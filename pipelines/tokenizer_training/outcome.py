"""What came out of a tokenizer training: the report, what MLflow shows, rows of the closing table."""

from collections.abc import Mapping
from typing import Any

from pipelines import provenance, storage
from pipelines.tokenizer_training import report
from pipelines.tokenizer_training.corpus import load_index
from pipelines.tokenizer_training.data import held_out_samples, validation_sources
from pipelines.tokenizer_training.prepare import PreparedTokenizer
from pipelines.tracking import Tracker
from pipelines.training.checkpoints import load_history
from samtok.model.tokenizer import MaskTokenizer

SHEET_IMAGES = 8


def publish(ready: PreparedTokenizer, record: Mapping[str, Any], tracker: Tracker) -> list[tuple[str, str]]:
    """Writes the report and logs what came out; returns rows of the closing table.

    Args:
        ready: The run.
        record: What became of it.
        tracker: Gets pictures and final measures.
    """
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
        validations=record["validations"],
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
    ]
