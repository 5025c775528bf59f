"""Words of a corpus come from one kind of GPU, unless that is allowed and recorded."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pipelines.ingestion.corpora import CorpusConfig
from pipelines.reports.words import load_corpus
from pipelines.tokenization import gpus
from pipelines.tokenization.job import tokenize_corpus
from samtok.errors import ConfigError
from tests.corpora import save_micro_tokenizer, tokenization, write_shapes
from tests.jobs import data_digests, read_manifest

H200, A100 = "NVIDIA H200, PyTorch 2.15.0", "NVIDIA A100-SXM4-80GB, PyTorch 2.15.0"


def test_the_first_kind_holds_and_another_is_refused_or_recorded(tmp_path: Path, lines):
    first = gpus.Gpus(str(tmp_path), allow_other=False)
    first.add("")  # a CPU
    assert not (tmp_path / "gpus.json").exists()
    first.add(H200)
    first.add(H200)
    resumed = gpus.Gpus(str(tmp_path), allow_other=False)
    with pytest.raises(ConfigError, match=r"made on NVIDIA H200, .* now on NVIDIA A100.*--allow-other-gpus"):
        resumed.add(A100)
    assert json.loads((tmp_path / "gpus.json").read_text()) == [H200]
    allowed = gpus.Gpus(str(tmp_path), allow_other=True)
    allowed.add(A100)
    allowed.add(A100)
    assert json.loads((tmp_path / "gpus.json").read_text()) == [H200, A100]
    assert sum("now on NVIDIA A100" in line for line in lines) == 1


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_is_refused_before_anything_is_committed(tmp_path: Path, monkeypatch):
    """The kind is what the process with the network says; here it is told what to say."""
    write_shapes(tmp_path / "shapes", num_images=12)
    corpus = CorpusConfig(
        reader="coco",
        source=str(tmp_path / "shapes/annotations/instances_train.json"),
        images=str(tmp_path / "shapes/train"),
        dataset="shapes",
    )
    common = {"shard_rows": 4, "chunk_rows": 2, "workers": 0, "report_images": 2, "tracking": "off"}
    tokenizer = save_micro_tokenizer(tmp_path / "micro")

    def run(out: str, kind: str, **more) -> int:
        monkeypatch.setattr(gpus, "kind_of", lambda _: kind)
        options = {**common, "corpus": corpus, "out": str(tmp_path / out), **more}
        return tokenize_corpus(dataclasses.replace(tokenization(tokenizer), **options))

    assert run("whole", H200) == run("mixed", H200) == 0
    for name in ("_MANIFEST.json", "commits/shard-00001.json"):
        (tmp_path / "mixed" / name).unlink()
    shutil.rmtree(tmp_path / "mixed" / "commit-groups", ignore_errors=True)
    assert run("mixed", A100) == 2
    assert not (tmp_path / "mixed/commits/shard-00001.json").exists()
    assert run("mixed", A100, allow_other_gpus=True) == 0
    assert load_corpus(str(tmp_path / "mixed")).gpus == (H200, A100)
    assert load_corpus(str(tmp_path / "whole")).gpus == (H200,)
    assert f"{H200}; {A100}" in (tmp_path / "mixed/report/index.html").read_text()
    digests = [data_digests(read_manifest(tmp_path / name)) for name in ("whole", "mixed")]
    assert digests[0] == digests[1]
