"""What is known of a training run before anything runs: engine, fingerprint, lineage. Loads no torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipelines import provenance, shards
from pipelines.config import RunConfig
from pipelines.training.config import MllmEngineConfig
from pipelines.training.resume import check_same
from samtok.errors import ConfigError
from samtok.mllm.registry import family_of

C = TypeVar("C", bound=RunConfig)

_FREE = (
    *("out", "tracking", "dry_run", "max_reject_rate", "checkpoints", "max_bad_steps", "log_every_s"),
    *("workers", "worker", "num_cpus", "micro_batch", "micro_batch_tokens", "engine", "export_precision"),
)
"""Fields that a resumed run may change: they do not change what is learnt, but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Prepared(Generic[C]):
    """A run that was checked: everything it needs is there and fits.

    Workers are given it; picklable. Without the body of a DeepSpeed file it trains with the plain engine.
    """

    config: C  # with absolute places and all that preparing filled in
    fingerprint: Mapping[str, Any]  # all that decides what is learnt, as JSON values
    lineage: Mapping[str, Any]  # where weights and data come from; it goes along with every export
    deepspeed: Mapping[str, Any] | None = None

    @property
    def digest(self) -> str:
        """Hash of the fingerprint."""
        return shards.digest(self.fingerprint)

    def check_folder(self) -> None:
        """Makes sure that no run with other settings is in --out; raises as ``check_same``."""
        check_same(self.config.out, self.fingerprint)


def check_packing(engine: MllmEngineConfig, family: str) -> None:
    """Refuses to pack where no call is known that keeps packed texts apart."""
    if engine.packing and not family_of(family).mrope:
        raise ConfigError(
            f"--.packing: no call is known that keeps packed texts of {family} apart; leave the flag out. "
            "Micro-batches of like lengths cost little.",
            owner=engine,
        )


def settings_of(config: RunConfig, *, without: Collection[str]) -> dict[str, Any]:
    """Returns the settings that decide what is learnt, as JSON values.

    Args:
        without: Fields of this kind of training that do not, or are in the fingerprint in another form; a
            field of a part is written ``part.field``.
    """
    body = provenance.as_json(config)
    for name in (*_FREE, *without):
        *parts, last = name.split(".")
        inner = body
        for part in parts:
            inner = inner[part]
        inner.pop(last, None)
    if body["limit"] is None:  # as in fingerprints of runs from before there was one
        del body["limit"]
    if not body.get("lora", {}).get("rank"):  # likewise
        body.pop("lora", None)
    if not body.get("train", {}).get("new_rows_only", True):
        del body["train"]["new_rows_only"]
    return body


def lineage_of(fingerprint: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Returns what goes along with every export of a run."""
    return {"fingerprint": shards.digest(fingerprint), **facts, "versions": provenance.versions()}
