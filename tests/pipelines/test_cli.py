"""Flags, presets, config files and help pages, as every job has them."""

import json
import os
import subprocess
import sys
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from annotated_types import Ge

from pipelines import cli, help
from pipelines.config import AtLeast1, RunConfig, Share, config
from pipelines.renamed_flags import RENAMED, successor
from samtok.errors import ConfigError

ROOT = Path(__file__).parents[2]


@config
class Optimizer:
    """Shared by several jobs, so it knows no prefix."""

    lr: Annotated[float, Ge(0)] = 0.1
    """Highest learning rate."""
    warmup: AtLeast1 = 1
    """Steps of warm-up."""

    def check(self) -> None:
        if self.warmup > 10 and self.lr < 0.5:
            raise ConfigError("--.warmup above 10 needs --.lr of 0.5.")


@config
class Job(RunConfig):
    """A job."""

    MAIN = ("out", "optimizer.lr", "kinds")

    kinds: tuple[Literal["a", "b"], ...] = ("a",)
    """Which kinds are done."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    share: Share = 0.5
    """A share."""

    def check(self) -> None:
        super().check()
        if self.out == "nowhere":
            raise ConfigError("--.out must be somewhere.")


PRESETS = {
    # Runs in a second. It needs nothing.
    "smoke": Job(out="runs/x"),
    "paper": Job(out=tyro.MISSING, optimizer=Optimizer(lr=2.0)),
}


def parse(*argv: str) -> Job:
    return cli.parse(Job, PRESETS, list(argv), doc="Does it.")


def refused(capsys: pytest.CaptureFixture, *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 2
    return capsys.readouterr().err


def shown(capsys: pytest.CaptureFixture, *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_flags_win_over_a_preset_and_that_over_defaults():
    assert parse("--preset", "paper", "--out", "o", "--optimizer.warmup", "3") == Job(
        out="o", optimizer=Optimizer(lr=2.0, warmup=3)
    )
    assert parse("--out", "o", "--kinds", "b", "a").kinds == ("b", "a")


def test_a_job_without_flags_runs_smoke_and_says_so(capsys):
    assert parse() == PRESETS["smoke"]
    assert capsys.readouterr().out == "no flags: running --preset smoke (see --help)\n"
    with pytest.raises(SystemExit):
        cli.parse(Job, {"paper": PRESETS["paper"]}, [], doc="")  # nothing to fall back on


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--share", "2"], "error: --share must be in [0, 1], got 2.0.\n"),
        (["--seed", "-1"], "error: --seed must be >= 0, got -1.\n"),
        (["--optimizer.lr", "-1"], "error: --optimizer.lr must be >= 0, got -1.0.\n"),
        (["--optimizer.warmup", "11"], "error: --optimizer.warmup above 10 needs --optimizer.lr of 0.5.\n"),
        (["--out", "nowhere"], "error: --out must be somewhere.\n"),
        (["--tracking", "http://me:secret@host"], "error: --tracking must not hold a user or password"),
    ],
)
def test_wrong_values_end_with_2_and_name_the_flag_as_it_was_written(flags, message, capsys):
    assert refused(capsys, "--out", "o", *flags).startswith(message)


def test_fields_are_checked_together_once_all_are_known():
    assert parse("--out", "o", "--optimizer.warmup", "20", "--optimizer.lr", "0.5").optimizer.warmup == 20


def test_an_unknown_flag_is_refused(capsys):
    assert "--optimizer.rate" in refused(capsys, "--out", "o", "--optimizer.rate", "1")


# ---------------------------------------------------------------- config files


def config_file(tmp_path: Path, **changes: object) -> list[str]:
    path = tmp_path / "config.json"
    body = {"out": "o", "kinds": ["b"], "optimizer": {"lr": 3.0, "warmup": 1}, **changes}
    path.write_text(json.dumps(body))
    return ["--config", str(path)]


def test_a_config_file_is_read_and_flags_win(tmp_path):
    kept = parse(*config_file(tmp_path), "--optimizer.warmup", "2")
    assert kept == Job(out="o", kinds=("b",), optimizer=Optimizer(lr=3.0, warmup=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wings": 2}, "wings is no key of this job."),
        ({"optimizer": {"wings": 2}}, "optimizer.wings is no key of this job."),
        ({"seed": "many"}, "seed is 'many': Input should be a valid integer"),
        ({"share": 2}, "share is 2: Input should be less than or equal to 1"),
        ({"optimizer": {"lr": 0.1, "warmup": 12}}, "--optimizer.warmup above 10 needs --optimizer.lr"),
    ],
)
def test_a_wrong_config_file_is_refused_with_the_key(changes, message, tmp_path, capsys):
    error = refused(capsys, *config_file(tmp_path, **changes))
    assert error.startswith(f"error: --config {tmp_path}/config.json: ") and message in error


def test_a_config_file_that_cannot_be_read_is_refused(tmp_path, capsys):
    assert "none.json cannot be used" in refused(capsys, "--config", str(tmp_path / "none.json"))
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be used" in refused(capsys, "--config", str(tmp_path / "config.json"))


# ---------------------------------------------------------------- help


def test_the_first_page_has_presets_and_the_main_flags(capsys):
    page = shown(capsys, "--help")
    assert "Does it." in page and "--help-all lists every flag" in page
    assert "  smoke                   Runs in a second.\n" in page
    assert "--out STR               URI of the folder that receives the results" in page
    assert "--optimizer.lr FLOAT    Highest learning rate. (default: 0.1)" in page
    assert "--kinds {a,b} ...       Which kinds are done. (default: a)" in page
    assert "--share" not in page and "--optimizer.warmup" not in page


def test_the_first_page_shows_the_values_of_a_preset(capsys):
    assert "Highest learning rate. (default: 2.0)" in shown(capsys, "--preset", "paper", "-h")


def test_the_full_help_has_every_flag(capsys):
    page = shown(capsys, "--help-all")
    for flag in help.flags_of(Job):
        assert flag.name in page


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_ends_quietly_when_nobody_reads_on(flag):
    """As in ``--help | head -1``: here the reader has gone before the first byte."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "jobs" / "train_tokenizer.py"), flag]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, env=environment, check=False
    )
    os.close(writer)
    assert done.stderr == b"" and done.returncode == 0


# ---------------------------------------------------------------- renamed flags


def test_an_old_flag_fails_with_its_new_name(capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(Renamed, {}, ["--out=o", "--tokenizer.no-compile"], doc="")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: --tokenizer.no-compile is now --tokenizer-options.compile (CHANGELOG.md).\n"


def test_an_old_key_of_a_config_file_is_named_too(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"out": "o", "pool": {"actors": 2, "wings": 1}}))
    with pytest.raises(SystemExit):
        cli.parse(Renamed, {}, ["--config", str(path)], doc="")
    error = capsys.readouterr().err
    assert "pool.actors is now workers; pool.wings is no key of this job." in error


@config
class TokenizerOptions:
    """How a tokenizer runs."""

    compile: bool = False
    """Compile it."""


@config
class Renamed(RunConfig):
    """A job after flags of it were renamed."""

    tokenizer_options: TokenizerOptions = field(default_factory=TokenizerOptions)
    workers: AtLeast1 = 1
    """Processes."""


def test_a_name_that_the_job_still_has_is_no_old_one():
    assert successor("corpora", {"corpora", "chats"}) is None
    assert successor("corpora", {"chats"}) == "chats"
    assert successor("validation-corpora", {"validation.corpora"}) == "validation.corpora"
    assert successor("watch.stop_on", {"alarms.stop-on"}) == "alarms.stop-on"
    assert successor("pool.actors", {"workers", "worker.gpus"}) == "workers"
    assert successor("nothing", {"chats"}) is None


def test_renamed_flags_differ_from_their_successors():
    assert all(old != new and not old.startswith("--") for old, new in RENAMED)


def test_a_process_ends_with_its_code_though_a_thread_still_runs():
    """As threads of Arrow and torch do, whose end Python would abort."""
    text = (
        "import atexit, threading, time; from pipelines import cli\n"
        "atexit.register(print, 'left')\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('done'); cli.leave(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (3, ["done", "left"], "")


def test_every_job_ends_that_way():
    for path in sorted((ROOT / "jobs").glob("*.py")):
        assert path.read_text().endswith("    cli.leave(main())\n"), path
