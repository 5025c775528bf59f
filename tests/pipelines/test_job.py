"""The frame of jobs: places, tracking, limits on rejects, exit codes, configs that are read back."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from pipelines import cli, job, rejects
from pipelines.config import located
from pipelines.provenance import config_json
from pipelines.rejects import Reason
from pipelines.reports import html
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
        (["--decoders", "0"], "--decoders must be >= 1"),
        (["--decoders", "some"], "auto"),
        (["--precision", "float16"], "tf32"),
        (["--worker.gpus", "1.5"], "--worker.gpus above 1 must be whole"),
        (["--tokenizer-options.masks-per-batch", "0"], "--tokenizer-options.masks-per-batch must be >= 1"),
    ],
)
def test_wrong_values_are_refused_with_their_flag(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(TokenizeCorpusConfig, PRESETS, ["--preset", "smoke", *flags], doc=None)
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def config(**changes) -> TokenizeCorpusConfig:
    return dataclasses.replace(PRESETS["smoke"], **changes)


def submitted(monkeypatch, home: Path) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("SAMTOK_HOME", str(home))


def test_relative_places_start_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = job.resolved(config())
    assert found.out == str(tmp_path / "runs/words")
    assert found.corpus.images == str(tmp_path / "runs/embedded/shapes/val")
    assert found.tokenizer == "tiny"  # the name of what ships stays


def test_relative_places_of_a_submitted_job_start_from_its_home(tmp_path, monkeypatch):
    submitted(monkeypatch, tmp_path / "home")
    found = job.resolved(config(tracking="sqlite:///a/b.db"))
    assert found.out == str(tmp_path / "home/runs/words")
    assert found.corpus.source.startswith(str(tmp_path / "home/runs/embedded/"))
    assert found.tracking == f"sqlite:///{tmp_path}/home/a/b.db"
    anchored = job.resolved(config(out="s3://b/words", tracking="off"))
    assert anchored.out == "s3://b/words"


@pytest.mark.parametrize(
    ("variable", "flag", "expected"),
    [
        (None, None, "sqlite:///{home}/runs/mlflow.db"),
        ("http://server", None, "http://server"),
        ("http://server", "off", "off"),
        ("http://server", "http://other", "http://other"),
    ],
)
def test_runs_are_tracked_by_flag_then_variable_then_beside_the_output(
    tmp_path, monkeypatch, variable, flag, expected
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert job.resolved(config(tracking=flag)).tracking == expected.format(home=tmp_path)


def test_an_output_on_object_storage_needs_a_place_to_be_tracked(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="Give --tracking, .* or set MLFLOW_TRACKING_URI"):
        job.resolved(config(out="s3://bucket/words"))


@pytest.mark.parametrize(
    ("total", "out", "rejected", "limit", "message"),
    [
        (10, 9, 1, 0.1, None),
        (0, 0, 0, 0.1, "there are no images"),
        (10, 0, 0, 0.0, "none of the 10 images could be used: 0 were rejected, 10 filtered"),
        (10, 8, 2, 0.1, "20.0% of the images cannot be used; --max-reject-rate allows 10.0%"),
        (10, 0, 10, 1.0, "none of the 10 images could be used"),
    ],
)
def test_rejects_are_compared_with_the_limit(total, out, rejected, limit, message):
    items = job.Items("images", total, out, rejected, total - out - rejected)
    if message is None:
        items.check(limit, "OUT")
    else:
        with pytest.raises(DataError, match=message):
            items.check(limit, "OUT")


def test_counts_stand_on_one_line():
    assert job.Items("masks", 12, 5, 6, 1).line() == "in 12  out 5  rejected 6  filtered 1"


HOSTILE = "a\x1b[2J\x07\rb\u202ec\x9bd"


def test_control_characters_of_data_reach_neither_terminal_nor_page(capsys):
    reason = Reason("read", "json", 1, HOSTILE)

    assert job.guard(raising(DataError(f"{HOSTILE} cannot be read."))) == 3
    job._print([*rejects.table_of([reason]), ("plan", HOSTILE)])
    printed = "".join(capsys.readouterr())
    page = html.page("t", HOSTILE, html.paragraph(HOSTILE), html.join(HOSTILE, html.code(HOSTILE)))
    for text in (printed, page):
        assert "a?[2J??b?c?d" in text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_an_error_of_an_inner_config_is_given_the_place_of_that_config():
    whole = config()

    def fail() -> int:
        raise ConfigError("--.threads does not fit.", owner=whole.worker)

    assert job.guard(fail, whole) == 2
    with pytest.raises(ConfigError, match="--worker.threads does not fit"):
        raise located(ConfigError("--.threads does not fit.", owner=whole.worker), whole)
