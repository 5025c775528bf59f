"""Exit codes, and configs that are read back."""

import json
from pathlib import Path

import pytest

from pipelines import cli, job
from pipelines.provenance import config_json
from pipelines.tokenization.config import PRESETS, TokenizeCorpusConfig
from samtok.errors import CheckpointError, ConfigError, DataError, StorageError


class Wrapped(Exception):
    """As Ray's errors: the cause is an attribute."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("wrapped")
        self.cause = cause


def raising(error: Exception):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (DataError("b"), 3),
        (StorageError("c"), 4),
        (CheckpointError("d"), 6),
        (Wrapped(Wrapped(StorageError("deep"))), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error, code):
    assert job.guard(raising(error)) == code


def test_a_chained_error_of_ours_is_found():
    try:
        try:
            raise DataError("inner")
        except DataError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as outer:
        assert job.guard(raising(outer)) == 3


def test_an_unknown_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        job.guard(lambda: 1 // 0)


def test_a_resolved_config_is_read_back_equal(tmp_path: Path):
    path = tmp_path / "config.json"
    config = PRESETS["smoke"]
    path.write_text(config_json(config))
    again = cli.parse(TokenizeCorpusConfig, PRESETS, ["--config", str(path)], doc=None)
    assert again == config
    changed = cli.parse(TokenizeCorpusConfig, PRESETS, ["--config", str(path), "--seed", "5"], doc=None)
    assert changed.seed == 5 and changed.corpus == config.corpus


def test_an_unknown_key_in_a_config_file_is_named(tmp_path: Path, capsys):
    path = tmp_path / "config.json"
    body = json.loads(config_json(PRESETS["smoke"]))
    body["tokenizer_options"]["wings"] = 2
    path.write_text(json.dumps(body))
    with pytest.raises(SystemExit) as end:
        cli.parse(TokenizeCorpusConfig, PRESETS, ["--config", str(path)], doc=None)
    assert end.value.code == 2
    assert "tokenizer_options.wings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reconstruct", "2"], "--reconstruct must be in [0, 1], got 2"),
        (["--shard-rows", "0"], "--shard-rows must be >= 1"),
        (["--workers", "0"], "--workers must be >= 1"),
        (["--worker.gpus", "1.5"], "--worker.gpus above 1 must be whole"),
        (["--tokenizer-options.masks-per-batch", "0"], "--tokenizer-options.masks-per-batch must be >= 1"),
    ],
)
def test_wrong_values_are_refused_with_their_flag(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(TokenizeCorpusConfig, PRESETS, ["--preset", "smoke", *flags], doc=None)
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
