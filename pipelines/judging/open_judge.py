"""The judge that a config names. Loads torch only for a model in this process."""

from typing import TypeVar

from pipelines import storage
from pipelines.ingestion.records import parse_json
from pipelines.judging.config import JudgeConfig
from pipelines.judging.judge import Backend, Judge
from pipelines.judging.record import Record
from samtok.errors import ConfigError
from samtok.metrics.judged import Wording, wording_of

W = TypeVar("W", bound=Wording)


def open_judge(config: JudgeConfig, *, record: str, device: str = "cpu") -> Judge | None:
    """Returns the judge, None for the kind ``none``.

    Args:
        record: Where judgements go if the config does not say it.
        device: Of a model in this process.

    Raises:
        ConfigError: The record is in use, or of several judges of which none is named; no or several models
            at a server.
        CheckpointError: The model cannot be loaded.
        ClusterError: The server does not answer.
        DataError: The record has lines that are no judgements.
        StorageError: The record cannot be read or written.
    """
    if config.kind == "none":
        return None
    try:
        kept = Record(config.record or record, writes=config.kind != "replay")
        try:
            backend = None if config.kind == "replay" else _backend(config, device)
            name = backend.name if backend is not None else _recorded(config, kept)
        except BaseException:
            kept.close()
            raise
    except ConfigError as error:
        error.owner = error.owner or config
        raise
    return Judge(config, backend, kept, name=name)


def check_judge(config: JudgeConfig) -> None:
    """Makes sure of what can be known before anything is judged; raises ConfigError if the judgements to be
    replayed are not there."""
    if config.kind == "replay" and not storage.exists(config.record or ""):
        error = ConfigError(f"--.record {config.record} does not exist, so there is nothing to replay.")
        error.owner = config
        raise error


def read_wording(config: JudgeConfig, kind: type[W]) -> W:
    """Returns the wording of a benchmark: ours, with the texts of ``--.wording`` in their places.

    Raises:
        ConfigError: As ``wording_of``, or the file is not there or no JSON object.
    """
    if config.wording is None:
        return kind()
    where = f"--.wording {config.wording}"
    try:
        if not storage.exists(config.wording):
            raise ConfigError(f"{where} does not exist.")
        texts = parse_json(storage.read_bytes(config.wording), where)
        if not isinstance(texts, dict):
            raise ConfigError(f"{where} holds a {type(texts).__name__}, expected an object of texts.")
        return wording_of(kind, texts, where)
    except ConfigError as error:
        error.owner = error.owner or config
        raise


def _backend(config: JudgeConfig, device: str) -> Backend:
    if config.kind == "http":
        from pipelines.judging.served import ServedJudge  # the library of requests takes its time

        assert config.url is not None
        return ServedJudge(config.url, config.model, concurrency=config.concurrency, answer_s=config.answer_s)
    from pipelines.judging.local import LocalJudge

    assert config.folder is not None
    return LocalJudge(config.folder, device=device, precision=config.precision, batch_size=config.batch_size)


def _recorded(config: JudgeConfig, record: Record) -> str:
    """Returns the name of the judge whose judgements are replayed."""
    if config.model is not None:
        return config.model
    if len(record.judges) != 1:
        listed = ", ".join(sorted(record.judges)[:8]) or "none"
        raise ConfigError(f"--.record {record.uri} has judgements by {listed}; name one with --.model.")
    (name,) = record.judges
    return name
