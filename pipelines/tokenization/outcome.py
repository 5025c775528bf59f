"""What came out of a tokenization: its rate and report beside the shards, and what MLflow shows."""

import json
from typing import Any

import torch

from pipelines import storage
from pipelines.reports import words, words_page
from pipelines.shard_job import Work
from pipelines.tokenization.config import TokenizationConfig
from pipelines.tokenization.gpus import Gpus
from pipelines.tokenization.prepare import Tokenization
from pipelines.tokenization.stage_times import StageTimes
from pipelines.tracking import Tracker
from samtok.metrics.codebook import Agreement
from samtok.model.precision import set_tf32
from samtok.model.tokenizer import MaskTokenizer


def publish(
    job: Tokenization, manifest: dict[str, Any], work: Work, times: StageTimes, tracker: Tracker
) -> Agreement | None:
    """Writes rate and report beside the shards, and metrics, lineage and pictures to MLflow; returns how far
    the words of what is drawn are those of float32.

    ``last_run.json`` is how fast the last call of the job that had work to do was.
    """
    config, metrics = job.config, words.summary(manifest)
    if work.counts.get("masks_out"):
        speed = {
            "images": work.counts["rows_out"],
            "masks": work.counts["masks_out"],
            "seconds": work.seconds,
            "masks_per_s": work.rate("masks_out"),
            "steady_masks_per_s": work.steady_rate("masks_out"),
        }
        body = json.dumps(speed | times.metrics(), indent=1)
        storage.write_bytes(storage.join(config.out, "last_run.json"), body.encode())
        metrics |= {f"throughput/{name}": value for name, value in speed.items()} | times.metrics()
    tracker.metrics(metrics)
    if kinds := Gpus(config.out, allow_other=True).kinds:
        tracker.tags({"gpus": "; ".join(kinds)})
    tracker.text(json.dumps(manifest["fingerprint"], indent=2), "lineage/fingerprint.json")
    tracker.text(json.dumps(manifest["totals"], indent=2), "lineage/totals.json")
    if not config.report_images:
        return None
    report = words_page.write_report(
        config.out,
        tokenizer=tokenizer_of_reports(config),
        max_images=config.report_images,
        seed=config.seed,
        caveat=job.caveat,
    )
    tracker.folder(storage.join(config.out, words.FOLDER), "report")
    if report.agreement is not None:
        levels = {f"agreement/level{number}": share for number, share in enumerate(report.agreement.by_level)}
        tracker.metrics({"agreement/words": report.agreement.equal, **levels})
    return report.agreement


def tokenizer_of_reports(config: TokenizationConfig) -> MaskTokenizer:
    """Loads the tokenizer in the driver, in full float32, on a GPU if the actors use them and one is here."""
    set_tf32(False)
    device = "cuda" if config.worker.gpus and torch.cuda.is_available() else "cpu"
    return MaskTokenizer.from_pretrained(config.tokenizer, device=device, read=storage.read_bytes)
