"""What came out: the rate, the report, what MLflow shows."""

import json
from typing import Any

import torch

from pipelines import storage
from pipelines.reports import words, words_page
from pipelines.shard_job import Work
from pipelines.tokenization.config import TokenizationConfig, TokenizeCorpusConfig
from pipelines.tracking import Tracker
from samtok.model.tokenizer import MaskTokenizer


def publish(config: TokenizeCorpusConfig, manifest: dict[str, Any], work: Work, tracker: Tracker) -> None:
    """Writes rate and report beside the shards, and metrics, lineage and pictures to MLflow.

    ``last_run.json`` is how fast the last call of the job that had work to do was.
    """
    metrics = words.summary(manifest)
    if work.counts.get("masks_out"):
        speed = {
            "images": work.counts["rows_out"],
            "masks": work.counts["masks_out"],
            "seconds": work.seconds,
            "masks_per_s": work.rate("masks_out"),
            "steady_masks_per_s": work.steady_rate("masks_out"),
        }
        storage.write_bytes(storage.join(config.out, "last_run.json"), json.dumps(speed, indent=1).encode())
        metrics |= {f"throughput/{name}": value for name, value in speed.items()}
    tracker.metrics(metrics)
    tracker.text(json.dumps(manifest["fingerprint"], indent=2), "lineage/fingerprint.json")
    tracker.text(json.dumps(manifest["totals"], indent=2), "lineage/totals.json")
    if not config.report_images:
        return
    tokenizer = tokenizer_of_reports(config)
    words_page.write_report(
        config.out, tokenizer=tokenizer, max_images=config.report_images, seed=config.seed
    )
    tracker.folder(storage.join(config.out, words.FOLDER), "report")


def tokenizer_of_reports(config: TokenizationConfig) -> MaskTokenizer:
    """Loads the tokenizer in the driver, on a GPU if the actors use them and one is here."""
    device = "cuda" if config.worker.gpus and torch.cuda.is_available() else "cpu"
    return MaskTokenizer.from_pretrained(config.tokenizer, device=device, read=storage.read_bytes)
