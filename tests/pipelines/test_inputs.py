"""Models by shipped name, folder, URI and hub id: the same for every job, with errors that say what fits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config import with_places
from pipelines.extension.config import ExtendMllmConfig
from pipelines.inputs import require_model, require_tokenizer
from pipelines.tokenizer_training.config import StartConfig
from samtok import folders
from samtok.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent


def test_names_of_both_kinds_are_told_apart():
    assert folders.shipped_names("tokenizer") == ["tiny", "tour"]
    assert folders.shipped_names("mllm") == ["tour-mllm"]
    require_tokenizer("tour")
    require_model("tour-mllm")
    with pytest.raises(
        ConfigError, match=r"--tokenizer: tour-mllm is not a mask tokenizer. .*\(tiny, tour\)"
    ):
        require_tokenizer("tour-mllm")
    with pytest.raises(
        ConfigError, match=r"--model: tiny is not an MLLM. It may be a shipped name \(tour-mllm\)"
    ):
        require_model("tiny")


@pytest.mark.parametrize(
    ("uri", "said"),
    [("/nowhere/model", "there is no /nowhere/model/config.json"), ("tinny", "there is no tinny")],
)
def test_what_is_not_there_is_refused_with_all_that_fits(uri: str, said: str):
    ending = r".*It may be a shipped name \(tiny, tour\), a folder, .* s3://.*, or a .* hub id, owner/name.$"
    with pytest.raises(ConfigError, match=said + ending):
        require_tokenizer(uri)


def test_a_hub_id_stays_and_a_path_is_made_absolute(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()

    def placed(model: str) -> str | None:
        config = ExtendMllmConfig(model=model, tokenizer="tiny", out="out")
        return with_places(config, lambda place: str(tmp_path / place)).model

    hub = "hf://Qwen/Qwen2.5-VL-3B-Instruct"
    assert placed("Qwen/Qwen2.5-VL-3B-Instruct") == placed(hub) == hub
    assert placed("mine/model") == f"{tmp_path}/mine/model"  # its folder is here, so it is a misspelt path
    for path in ("model", "./owner/name", "runs/mllm", "a/b/c", "owner/na me", "../owner"):
        assert placed(path) == str(tmp_path / path)
    start = StartConfig(sam2="facebook/sam2.1-hiera-large")
    assert with_places(start, str).sam2 == "hf://facebook/sam2.1-hiera-large"


ASK = "from pipelines.inputs import require_tokenizer as r; r('hf://owner/tokenizer'); r('hf://owner/other')"


@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_the_cache_is_used_and_what_it_lacks_is_said_in_a_sentence(network, tmp_path: Path):
    cached = tmp_path / "hub/models--owner--tokenizer"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    (snapshot / "config.json").write_bytes((folders.SHIPPED / "tiny/config.json").read_bytes())
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **network}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True)
    assert "owner/tokenizer" not in done.stderr.splitlines()[-1]
    assert "ConfigError: --tokenizer: there is no folder owner/other" in done.stderr.splitlines()[-1]
    assert "only what `hf download owner/other` has put into" in done.stderr.splitlines()[-1]
