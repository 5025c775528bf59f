"""What came out: the rate, whether too much was rejected, the report, MLflow, the closing table."""

import json
import logging
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import shards, storage
from pipelines.reports import words as report
from pipelines.shards import Plan
from pipelines.tokenization.config import PoolConfig, TokenizeCorpusConfig, TokenizerConfig
from pipelines.tracking import Tracker
from samtok.errors import DataError
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)

LAST_RUN = "last_run.json"
"""How fast the last call of the job that had work to do was."""


@dataclass
class Work:
    """What this call of the job did, as opposed to earlier ones."""

    images: int = 0
    masks: int = 0
    seconds: float = 0.0
    first: tuple[int, float] | None = None
    """Masks and seconds at the first commit, before which workers start and models load."""

    def add(self, counts: Mapping[str, int], seconds: float) -> None:
        """Takes the counts of a shard that was committed ``seconds`` after the work began."""
        self.images += counts["rows_out"]
        self.masks += counts["masks_out"]
        self.seconds = seconds
        self.first = self.first or (self.masks, seconds)

    @property
    def masks_per_s(self) -> float:
        """Masks that got words per second, start-up included."""
        return self.masks / self.seconds if self.seconds else 0.0

    @property
    def steady_masks_per_s(self) -> float:
        """The same from the first commit on; 0 where there was only one."""
        masks, seconds = self.first or (0, 0.0)
        return (self.masks - masks) / (self.seconds - seconds) if self.seconds > seconds else 0.0

    def record(self) -> dict[str, float]:
        """Returns the figures of ``last_run.json``."""
        return {
            "images": self.images,
            "masks": self.masks,
            "seconds": self.seconds,
            "masks_per_s": self.masks_per_s,
            "steady_masks_per_s": self.steady_masks_per_s,
        }


def stop_early(config: TokenizeCorpusConfig, plan: Plan, rejected: int) -> None:
    """Ends a run whose rejected images already exceed the allowed share of all planned images."""
    planned = plan.num_inputs + (plan.rejects or {}).get("rows", 0)
    if rejected > config.max_reject_rate * planned:
        raise DataError(_too_many(config, rejected / planned, "images"))


def check_rejects(config: TokenizeCorpusConfig, totals: Mapping[str, int]) -> None:
    """Compares the shares of unusable images and masks of the finished corpus with what is allowed.

    Raises:
        DataError: If one is larger. The corpus and its reject table are complete all the same.
    """
    if totals["rows_in"] and not totals["rows_out"]:
        raise DataError(
            f"none of the {totals['rows_in']} images could be used. Is --corpus.images right, and mounted? "
            f"See `python -m pipelines.tools.browse {config.out}` for the reasons; then choose another --out."
        )
    for what, lost, of in (("images", "rows_rejected", "rows_in"), ("masks", "masks_rejected", "masks_in")):
        rate = totals[lost] / max(totals[of], 1)
        if rate > config.max_reject_rate:
            raise DataError(_too_many(config, rate, what))


def _too_many(config: TokenizeCorpusConfig, rate: float, what: str) -> str:
    return (
        f"{rate:.1%} of the {what} are unusable; --max-reject-rate allows {config.max_reject_rate:.1%}. "
        f"See `python -m pipelines.tools.browse {config.out}` for the reasons."
    )


def publish(config: TokenizeCorpusConfig, manifest: dict[str, Any], work: Work, tracker: Tracker) -> None:
    """Writes rate and report beside the shards, and metrics, lineage and pictures to MLflow."""
    metrics = report.summary(manifest)
    if work.masks:
        storage.write_bytes(storage.join(config.out, LAST_RUN), json.dumps(work.record(), indent=1).encode())
        metrics |= {f"throughput/{name}": value for name, value in work.record().items()}
    tracker.metrics(metrics)
    tracker.text(json.dumps(manifest["fingerprint"], indent=2), "lineage/fingerprint.json")
    tracker.text(json.dumps(manifest["totals"], indent=2), "lineage/totals.json")
    if not config.report_images:
        return
    tokenizer = tokenizer_of_reports(config.tokenizer, config.pool)
    report.write_report(config.out, tokenizer=tokenizer, max_images=config.report_images, seed=config.seed)
    track_report(config.out, tracker)


def tokenizer_of_reports(tokenizer: TokenizerConfig, pool: PoolConfig) -> MaskTokenizer:
    """Loads the tokenizer in the driver, on a GPU if the pool uses them and one is here."""
    device = "cuda" if pool.gpus_per_actor and _has_gpu() else "cpu"
    return MaskTokenizer.from_pretrained(tokenizer.uri, device=device, read=storage.read_bytes)


def track_report(out: str, tracker: Tracker) -> None:
    """Copies the page and the pictures of ``OUT/report`` to MLflow."""
    with tempfile.TemporaryDirectory() as folder:
        for info in storage.list_files(storage.join(out, report.FOLDER)):
            path = Path(folder) / info.uri.rpartition("/")[2]
            path.write_bytes(storage.read_bytes(info.uri))
            tracker.artifact(path, "report")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def print_table(
    config: TokenizeCorpusConfig, manifest: dict[str, Any], work: Work, seconds: float, tracker: Tracker
) -> None:
    """Prints what went in and out, how long it took, and where to look."""
    totals = manifest["totals"]
    lines = [
        f"images   in {totals['rows_in']}  out {totals['rows_out']}  rejected {totals['rows_rejected']}",
        f"masks    in {totals['masks_in']}  words {totals['masks_out']}  rejected {totals['masks_rejected']}"
        f"  filtered {totals['masks_filtered']}",
        f"time     {seconds:.0f} s in all, {work.seconds:.0f} s of it at {work.masks_per_s:.1f} masks/s",
        f"words    {storage.join(config.out, shards.MANIFEST)}",
    ]
    if config.report_images:
        lines.append(f"report   {storage.join(config.out, 'report/index.html')}")
    lines.append(f"mlflow   {tracker.link}")
    sys.stdout.write("\n".join(lines) + "\n")
