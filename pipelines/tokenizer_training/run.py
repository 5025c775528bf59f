"""Lists the corpora of a tokenizer training and runs its workers on Ray Train."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import storage
from pipelines.ingestion.corpora import CorpusSpec
from pipelines.tokenizer_training.corpus import Index, build_index
from pipelines.tokenizer_training.prepare import PreparedTokenizer
from pipelines.tokenizer_training.progress import progress_of
from pipelines.tokenizer_training.worker import TokenizerTask, train_worker
from pipelines.tracking import Tracker
from pipelines.training.fit import fit_on_ray
from pipelines.training.resume import claim, has_begun
from samtok.errors import ConfigError, DataError


def task_of(ready: PreparedTokenizer, lineage: Mapping[str, Any] | None = None) -> TokenizerTask:
    """Lists the corpora, and returns what workers are given.

    Args:
        ready: From ``prepare``.
        lineage: Instead of its own.

    Raises:
        ConfigError: If --out holds a run with other settings.
        DataError: If more of a listing is rejected than --max-reject-rate allows.
    """
    config = ready.config
    claim(config.out, ready.fingerprint)
    training, validation = (
        _index(specs, storage.join(config.out, name), config.out)
        for specs, name in ((ready.corpora, "train"), (ready.held_out, "validation"))
    )
    if training is not None:
        _judge_listing(training, config.max_reject_rate)
    return TokenizerTask(
        config=config,
        fingerprint=ready.digest,
        lineage=ready.lineage if lineage is None else lineage,
        training_index=training,
        validation_index=validation,
        deepspeed=ready.deepspeed,
    )


def _index(specs: Sequence[CorpusSpec], folder: str, out: str) -> Index | None:
    """Lists corpora; the list of an attempt that trained nothing makes place for one of other corpora."""
    if not specs:
        return None
    try:
        return build_index(specs, folder)
    except ConfigError:
        if has_begun(out):
            raise
        storage.delete_folder(folder)
        return build_index(specs, folder)


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
