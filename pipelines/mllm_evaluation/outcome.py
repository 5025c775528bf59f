"""What came out of an evaluation: files, other runs beside it, MLflow, the closing table."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import provenance, shards, storage
from pipelines.job import aligned
from pipelines.mllm_evaluation.config import BASELINE, THIS_RUN, EvaluateMllmConfig
from pipelines.mllm_evaluation.prepare import Job, questions_digest
from pipelines.mllm_evaluation.scores import headlines, percent
from pipelines.tracking import Tracker
from samtok.errors import ConfigError, DataError

METRICS, LINEAGE = "metrics.json", "lineage.json"

Beside = Mapping[str, Mapping[str, Any]]
"""The metrics of other runs by the names that they are shown with."""


@dataclass
class Work:
    """What this call of the job did, as opposed to earlier ones."""

    shards: int = 0
    questions: int = 0
    seconds: float = 0.0

    def add(self, counts: Mapping[str, int], seconds: float) -> None:
        """Takes the counts of a shard that was committed ``seconds`` after the work began."""
        self.shards += 1
        self.questions += counts["samples_in"]
        self.seconds = seconds

    @property
    def questions_per_s(self) -> float:
        """Questions per second, start-up included."""
        return self.questions / self.seconds if self.seconds else 0.0


def measured_with(job: Job) -> dict[str, Any]:
    """Returns all that decided the numbers besides code: the fingerprint, and a hash of the questions."""
    return {**job.fingerprint, "questions": questions_digest(job.fingerprint)}


def tags_of(job: Job) -> dict[str, str]:
    """Returns what an MLflow run is found by."""
    found = {
        name: job.fingerprint[name] for name in ("benchmark", "model_sha256", "tokenizer_sha256", "chat")
    }
    return {**found, "fingerprint": shards.digest(dict(job.fingerprint)), **provenance.versions()}


def lineage_of(job: Job) -> dict[str, Any]:
    """Returns where everything came from: places, hashes, the chats' own fingerprint, versions."""
    config = job.config
    return {
        "model": {"uri": config.model, "sha256": job.fingerprint["model_sha256"]},
        "tokenizer": {"uri": config.tokenizer, "weights_sha256": job.fingerprint["tokenizer_sha256"]},
        "chat": {
            "uri": config.chat,
            "digest": job.fingerprint["chat"],
            "fingerprint": dict(job.chat.manifest["fingerprint"]),
        },
        "fingerprint": dict(job.fingerprint),
        "versions": provenance.versions(),
    }


def read_beside(job: Job) -> dict[str, Mapping[str, Any]]:
    """Reads the numbers of the runs that ``--beside`` names.

    Raises:
        ConfigError: If one is not finished, or answered other questions.
    """
    found = {}
    for text in job.config.beside:
        name, _, folder = text.partition("=")
        where = storage.join(folder, METRICS)
        if not storage.exists(where):
            raise ConfigError(
                f"--beside {name}: there is no {where}. Finish that run first, or leave it out."
            )
        metrics = storage.read_json(where)
        if metrics.get("measured_with", {}).get("questions") != questions_digest(job.fingerprint):
            raise ConfigError(
                f"--beside {name}: {folder} answered other questions, so its numbers cannot stand beside "
                "these. Evaluate it with the same --benchmark, --chat, --tasks, --turns and --limit."
            )
        found[name] = metrics
    return found


def write(job: Job, metrics: Mapping[str, Any]) -> None:
    """Writes the lineage and then ``metrics.json``; neither holds a time."""
    for name, value in ((LINEAGE, lineage_of(job)), (METRICS, metrics)):
        data = (json.dumps(value, indent=1) + "\n").encode()
        storage.write_bytes(storage.join(job.config.out, name), data)


def track(tracker: Tracker, job: Job, metrics: Mapping[str, Any], work: Work) -> None:
    """Sends numbers, the rate of what this call did, and lineage to MLflow."""
    rate = {"throughput/questions_per_s": work.questions_per_s} if work.questions else {}
    tracker.metrics(flat_metrics(metrics) | rate)
    tracker.text(json.dumps(lineage_of(job), indent=2), "lineage/lineage.json")


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers for tracking: ``evaluation/strict/gres/giou``, ``evaluation/counts/skipped``,
    ``evaluation/strict/tag/NAME/gres/giou``, ``baseline/strict/gres/giou``.

    What there is no number for is left out.
    """
    flat = {f"evaluation/counts/{name}": float(value) for name, value in metrics["counts"].items()}
    for mode, found in metrics["modes"].items():
        flat |= _flat(found["model"], f"evaluation/{mode}")
        flat |= _flat({k: v for k, v in found["no_target"].items() if k != "by_tag"}, f"baseline/{mode}")
    return flat


def _flat(section: Mapping[str, Any], prefix: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in section.items():
        if name == "by_tag":
            for tag, found in value.items():
                flat |= _flat(found, f"{prefix}/tag/{_mlflow_name(tag)}")
        elif isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}/{name}")
        elif isinstance(value, int | float):
            flat[f"{prefix}/{name}"] = float(value)
    return flat


def _mlflow_name(tag: str) -> str:
    """Tags come from datasets; MLflow takes letters, digits and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "_-. " else "_" for sign in tag)


def columns_of(metrics: Mapping[str, Any], beside: Beside, mode: str) -> dict[str, Mapping[str, Any]]:
    """Returns what stands side by side in a mode's table: this run, the baseline, other runs."""
    own = metrics["modes"][mode]
    others = {name: found["modes"][mode]["model"] for name, found in beside.items() if mode in found["modes"]}
    return {THIS_RUN: own["model"], BASELINE: own["no_target"], **others}


def table_of(metrics: Mapping[str, Any], beside: Beside, mode: str) -> list[list[str]]:
    """Returns the table of one mode as texts: a head, then a line per number, times 100."""
    columns = columns_of(metrics, beside, mode)
    numbers = [headlines(metrics["benchmark"], section) for section in columns.values()]
    lines = [[name, *(percent(found[name]) for found in numbers)] for name in numbers[0]]
    return [[f"{mode}, x 100", *columns], *lines]


def tag_table(metrics: Mapping[str, Any], mode: str) -> list[list[str]]:
    """Returns this run's numbers by tag as texts: a head, then a line per tag."""
    found = metrics["modes"][mode]["model"]
    sections = {**found["by_tag"], "all": found}
    names = list(headlines(metrics["benchmark"], found))
    lines: list[list[str]] = []
    for tag, section in sections.items():
        numbers = headlines(metrics["benchmark"], section)
        lines.append([tag, str(section["counts"]["expected"]), *(percent(numbers[name]) for name in names)])
    return [["tag", "questions", *names], *lines]


def check_rejects(config: EvaluateMllmConfig, counts: Mapping[str, int]) -> None:
    """Compares the share of questions that could not be asked with what is allowed.

    Raises:
        DataError: If it is larger. The numbers and the reject table are complete all the same.
    """
    share = counts["skipped"] / max(counts["expected"], 1)
    reasons = f"{storage.join(config.out, 'rejects')} has the reasons"
    if counts["expected"] and not counts["scored"]:
        raise DataError(
            f"none of the {counts['expected']} questions could be asked; {reasons}. Are the images of "
            f"{config.chat} where it says, and mounted? Then choose another --out."
        )
    if share > config.max_reject_rate:
        raise DataError(
            f"{share:.1%} of the questions could not be asked; --max-reject-rate allows "
            f"{config.max_reject_rate:.1%}. {reasons}."
        )


def print_table(
    job: Job,
    metrics: Mapping[str, Any],
    beside: Beside,
    work: Work,
    seconds: float,
    tracker: Tracker,
) -> None:
    """Prints the numbers of each mode beside the baseline and other runs, counts, and where to look."""
    config, counts = job.config, metrics["counts"]
    lines: Sequence[str] = [
        *(line for mode in metrics["modes"] for line in [*aligned(table_of(metrics, beside, mode)), ""]),
        f"questions  {counts['expected']}  asked {counts['scored']}  skipped {counts['skipped']}  "
        f"without target {counts['no_target']}",
        f"answers    {counts['malformed_words']} broken words in {counts['answers_with_malformed']} of them, "
        f"{counts['answers_cut']} cut at {config.generation.max_new_tokens} tokens",
        f"time       {seconds:.0f} s in all, {work.seconds:.0f} s of it at {work.questions_per_s:.2f} "
        "questions/s",
        f"numbers    {storage.join(config.out, METRICS)}",
    ]
    if config.report_pictures:
        lines = [*lines, f"report     {storage.join(config.out, 'report/index.html')}"]
    sys.stdout.write("\n".join([*lines, f"mlflow     {tracker.link}"]) + "\n")
