"""What a sweep is told, what its trials are made from, and how a trial's end becomes a row. No Ray."""

import dataclasses
import json
import sqlite3

import pytest

from pipelines import cli, provenance
from pipelines.sweeps.config import PRESETS, STOPPED_FILE, SchedulerConfig, SweepConfig, flags_of
from pipelines.sweeps.job import sweep_codebook
from pipelines.sweeps.run import Children, _row
from pipelines.tokenizer_training.architecture import architecture_of, check_quantize_from
from pipelines.tokenizer_training.config import QuantizerFlags, StartConfig
from pipelines.tokenizer_training.prepare import PreparedTokenizer
from pipelines.training.config import EngineConfig
from samtok.errors import ConfigError
from tests.corpora import save_micro_tokenizer
from tests.training import record_of, short, task_for, train

SMOKE = PRESETS["smoke"]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("rq-256x2", QuantizerFlags(kind="rq", num_codes=256, num_levels=2, shared=False)),
        ("rq-1024x4", QuantizerFlags(kind="rq", num_codes=1024, num_levels=4, shared=False)),
        ("rq-shared-256x2", QuantizerFlags(kind="rq", num_codes=256, num_levels=2, shared=True)),
        ("vq-1024", QuantizerFlags(kind="vq", num_codes=1024, num_levels=1, shared=False)),
        ("fsq-16x16", QuantizerFlags(kind="fsq", num_codes=256, num_levels=1, grid=(16, 16))),
        ("fsq-8x8x4-3", QuantizerFlags(kind="fsq", num_codes=256, num_levels=3, grid=(8, 8, 4))),
        ("fsq-64", QuantizerFlags(kind="fsq", num_codes=64, num_levels=1, grid=(64,))),
    ],
)
def test_the_name_of_a_quantizer_says_all_of_it(name, flags):
    assert flags_of(name) == flags


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is no quantizer; write rq-256x2"),
        ("pq-256x2", "is no quantizer"),
        ("rq-256x2 ", "is no quantizer"),
        ("RQ-256x2", "is no quantizer"),
        ("rq-256x-2", "is no quantizer"),
        ("fsq-shared-16x16", "is no quantizer"),
        ("rq-256", "rq is written as rq-CODESxLEVELS"),
        ("rq-256x2x2", "rq is written as rq-CODESxLEVELS"),
        ("rq-256x2-2", "rq is written as rq-CODESxLEVELS"),
        ("rq-shared-256", "rq-shared is written as rq-shared-CODESxLEVELS"),
        ("vq-1024x2", "vq is written as vq-CODES"),
        ("vq-1024-2", "vq is written as vq-CODES"),
        ("vq-1", "num_codes must be >= 2"),
        ("rq-64x0", "num_levels >= 1"),
        ("fsq-16x16-0", "num_levels >= 1"),
        ("fsq-1x16", "grid with 2 to 256 steps"),
        ("fsq-512", "grid with 2 to 256 steps"),
    ],
)
def test_what_is_no_quantizer_is_refused_with_its_flag(name, message):
    with pytest.raises(ConfigError) as refused:
        dataclasses.replace(SMOKE, quantizers=("rq-64x2", name))
    assert str(refused.value).startswith(f"--quantizers {name!r}") and message in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantizers"], "--quantizers must not be empty"),
        (["--quantizers", "vq-64", "rq-64x2", "vq-64"], "--quantizers names vq-64 twice"),
        (["--base-steps", "-1"], "--base-steps must be >= 0, got -1"),
        (["--train.workers", "2"], "got --train.workers 2; run more trials at a time"),
        (["--scheduler.concurrent", "0"], "--scheduler.concurrent must be >= 1, got 0"),
        (["--scheduler.reduction", "1"], "--scheduler.reduction must be >= 2, got 1"),
        (["--scheduler.grace-steps", "0"], "--scheduler.grace-steps must be >= 1, got 0"),
        (["--scheduler.max-failures", "-1"], "--scheduler.max-failures must be >= 0, got -1"),
        (["--scheduler.kind", "asha"], "--scheduler.grace-steps 500 is more than the 20 --train.steps"),
        (["--tracking", "https://me:secret@host"], "--tracking must not hold a user or password"),
    ],
)
def test_wrong_values_are_refused_with_their_flag(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(SweepConfig, PRESETS, ["--preset", "smoke", *flags], doc=None)
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def preset(name: str) -> SweepConfig:
    """Returns a preset with what only the user knows filled in."""
    told = {
        "paper": [
            *("--out", "sweep", "--train.start.sam2", "sam2.pt", "--train.corpora", "corpus"),
            *("--train.validation.corpora", "held-out"),
        ]
    }
    return cli.parse(SweepConfig, PRESETS, ["--preset", name, *told.get(name, [])], doc=None)


@pytest.mark.parametrize("name", PRESETS)
def test_all_trials_of_a_preset_can_be_built_and_quantized(name):
    config = preset(name)
    for quantizer in config.quantizers:
        trial = config.trial(quantizer, None)
        found = architecture_of(trial).quantizer
        told = {k: v for k, v in dataclasses.asdict(flags_of(quantizer)).items() if v is not None}
        assert told.items() <= dataclasses.asdict(found).items()
        check_quantize_from(trial)


def test_the_paper_preset_has_the_sizes_of_its_tables():
    config = preset("paper")
    words = {
        name: architecture_of(config.trial(name, None)).quantizer.num_words for name in config.quantizers
    }
    assert words["rq-256x2"] == 512 and words["rq-1024x4"] == 4096
    assert words["vq-65536"] == words["fsq-16x16x16x16"] == 65536


def test_a_sweep_is_read_back_equal(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(provenance.config_json(SMOKE))
    assert cli.parse(SweepConfig, PRESETS, ["--config", str(path)], doc=None) == SMOKE


def test_a_trial_differs_from_the_given_run_in_folder_quantizer_and_tracking_only():
    sweep = dataclasses.replace(SMOKE, out="s3://bucket/sweep/")
    changed = {
        "out": "s3://bucket/sweep/trials/vq-64",
        "quantizer": flags_of("vq-64"),
        "tracking": "off",
    }
    assert sweep.trial("vq-64", None) == dataclasses.replace(sweep.train, **changed)


def test_trials_go_on_from_the_common_steps():
    trial = SMOKE.trial("vq-64", "base/final")
    assert trial.start == StartConfig(tokenizer="base/final")
    assert trial.freeze is False
    assert trial.steps == SMOKE.train.steps and trial.quantize_from == SMOKE.train.quantize_from


@pytest.mark.parametrize(
    ("freeze", "sam2", "frozen"),
    [(None, "sam2.pt", True), (None, None, False), (False, "sam2.pt", False), (True, None, True)],
)
def test_what_the_common_steps_freeze_stays_frozen(freeze, sam2, frozen):
    """Trials start from a tokenizer, for which the default would be to train everything."""
    run = dataclasses.replace(SMOKE.train, freeze=freeze, start=StartConfig(sam2=sam2))
    assert dataclasses.replace(SMOKE, train=run).trial("vq-64", "base/final").freeze is frozen


def test_the_common_steps_never_quantize():
    base = dataclasses.replace(SMOKE, out="sweep", base_steps=30, tracking="sqlite:///x.db").base()
    assert (base.out, base.steps, base.tracking) == ("sweep/base", 30, "off")
    assert base.quantize_from == 1.0 and base.quantization_step == base.steps
    assert base.optimizer == SMOKE.train.optimizer and base.seed == SMOKE.train.seed


def test_a_dry_run_prints_all_trials_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quantizers = ("rq-64x2", "rq-shared-64x2", "vq-128", "fsq-8x8-2")
    config = dataclasses.replace(SMOKE, out="sweep", quantizers=quantizers, dry_run=True)
    assert sweep_codebook(config) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("trial ")] == [
        "trial rq-64x2: 128 words, 12.0 bits a mask, 20 steps",
        "trial rq-shared-64x2: 128 words, 12.0 bits a mask, 20 steps",
        "trial vq-128: 128 words, 7.0 bits a mask, 20 steps",
        "trial fsq-8x8-2: 128 words, 12.0 bits a mask, 20 steps",
    ]
    body = printed[printed.index("{") : printed.rindex("}") + 1]
    assert json.loads(body)["quantizers"] == list(quantizers)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- what became of a trial


def trial_task(folder, name: str = "fsq-8x8") -> PreparedTokenizer:
    sweep = dataclasses.replace(SMOKE, out=str(folder), train=short(folder, steps=4))
    return PreparedTokenizer(config=sweep.trial(name, None), fingerprint={}, lineage={})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> PreparedTokenizer:
    """A trial that ran to its end."""
    task = trial_task(tmp_path_factory.mktemp("sweep"))
    train(task.config)
    return task_for(task.config)


def test_the_row_of_a_finished_trial_has_its_final_measures(finished):
    row, record = _row(finished, None), record_of(finished.config.out)
    assert (row["name"], row["status"], row["steps"]) == ("fsq-8x8", "finished", 4)
    assert (row["kind"], row["num_codes"], row["num_levels"], row["grid"]) == ("fsq", 64, 1, [8, 8])
    assert (row["words"], row["bits_per_mask"], row["seconds"]) == (64, 6.0, record["times"]["training_s"])
    assert record["final"].items() <= row.items() and "error" not in row


def test_the_row_of_a_stopped_trial_has_its_last_look(tmp_path):
    task = trial_task(tmp_path, "rq-shared-64x2")
    (tmp_path / "trials" / "rq-shared-64x2").mkdir(parents=True)
    (tmp_path / "trials" / "rq-shared-64x2" / STOPPED_FILE).write_text(
        json.dumps({"fingerprint": task.digest, "final": {"step": 20.0, "iou": 0.25}})
    )
    row = _row(task, None)
    assert (row["status"], row["steps"], row["iou"], row["seconds"]) == ("stopped", 20, 0.25, None)
    assert (row["kind"], row["shared"]) == ("rq-shared", True)
    other = dataclasses.replace(task, fingerprint={"seed": 99})
    assert _row(other, None)["status"] == "failed", "what was ended with other settings was counted"


@pytest.mark.parametrize(("error", "told"), [("out of memory", "out of memory"), (None, "it did not end")])
def test_the_row_of_a_failed_trial_says_why(tmp_path, error, told):
    row = _row(trial_task(tmp_path, "rq-64x2"), error)
    assert (row["status"], row["error"], row["bits_per_mask"]) == ("failed", told, 12.0)
    assert "iou" not in row


def metrics_in(database) -> dict[str, int]:
    """Returns how many values of each metric there are."""
    with sqlite3.connect(database) as connection:
        return dict(connection.execute("select key, count(*) from metrics group by key").fetchall())


@pytest.mark.slow
@pytest.mark.numerics
def test_a_trial_that_ended_unseen_is_closed_by_the_next_driver_and_only_once(finished, database):
    from mlflow import MlflowClient

    uri = f"sqlite:///{database}"
    tasks = {"fsq-8x8": finished}
    killed = Children(uri, "parent", tasks).of("fsq-8x8")  # a driver that saw it begin
    client = MlflowClient(uri)
    assert killed.run_id is not None
    assert client.get_run(killed.run_id).info.status == "RUNNING"
    for _ in range(2):
        Children(uri, "parent", tasks).close("fsq-8x8")
    run = client.get_run(killed.run_id)
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "finished")
    assert run.data.params["trial"] == "fsq-8x8" and run.data.params["quantizer.kind"] == "fsq"
    assert run.data.metrics["final/iou"] == pytest.approx(_row(finished, None)["iou"])
    counts = metrics_in(database)
    assert counts["train/loss"] == 4 and counts["final/iou"] == 1
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_scheduler_that_is_not_used_may_have_any_grace():
    plain = SchedulerConfig(kind="plain", grace_steps=10_000)
    assert dataclasses.replace(SMOKE, scheduler=plain).scheduler == plain


def test_trials_of_any_quantizer_may_go_on_from_the_same_tokenizer(tmp_path):
    base = save_micro_tokenizer(tmp_path / "base")
    for name in ("rq-32x3", "vq-64", "fsq-8x8"):
        trial = SMOKE.trial(name, base)
        assert architecture_of(trial).quantizer.kind == flags_of(name).kind
        check_quantize_from(trial)


def test_a_trial_that_could_not_quantize_is_refused_before_the_base_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(SMOKE, out="sweep", quantizers=("rq-64x2", "vq-512"), tracking="off")
    assert sweep_codebook(config) == 2
    assert not (tmp_path / "sweep").exists()


def test_a_trial_has_no_use_for_deepspeed():
    engine = EngineConfig(deepspeed="infra/deepspeed/zero1.json")
    with pytest.raises(ConfigError, match="--train.engine.deepspeed"):
        dataclasses.replace(SMOKE, train=dataclasses.replace(SMOKE.train, engine=engine))
