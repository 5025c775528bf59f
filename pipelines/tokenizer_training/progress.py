"""Progress lines of a tokenizer training."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tracking import Tracker
from pipelines.training.progress import Progress

_HIDDEN = ("images", "codes_restarted")


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
