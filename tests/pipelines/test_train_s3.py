"""The training job on object storage: killed and run again, it ends as on a local disk."""

import pytest

from pipelines import run as runs
from pipelines import storage
from pipelines.training import checkpoints
from samtok.model.tokenizer import MaskTokenizer
from tests.jobs import job, run_job
from tests.training import curve_of, record_of, short, train, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_killed_run_on_object_storage_goes_on_and_ends_as_on_a_local_disk(bucket, tmp_path):
    settings = {"steps": 36, "quantize_from": 0.5}
    train(short(tmp_path / "local", **settings))
    out = storage.join(bucket, "tokenizer")
    (tmp_path / "config.json").write_text(runs.config_json(short(out, **settings)))
    command = ("--config", str(tmp_path / "config.json"))
    with job("train_tokenizer", *command, log=tmp_path / "log") as running:
        running.until(lambda: max(checkpoints.steps(out), default=0) >= 8)
        running.kill()
    code, output = run_job("train_tokenizer", *command, log=tmp_path / "again")
    assert code == 0 and "resumed at step" in output, output[-3000:]
    assert curve_of(out) == curve_of(tmp_path / "local")
    assert record_of(out)["final"] == record_of(tmp_path / "local")["final"]
    weights = MaskTokenizer.from_pretrained(
        storage.join(out, "final"), read=storage.read_bytes
    ).weights_sha256
    assert weights == weights_of(tmp_path / "local")
    assert storage.exists(storage.join(out, "report/index.html"))
    assert not storage.list_files(storage.join(out, "ray"))
