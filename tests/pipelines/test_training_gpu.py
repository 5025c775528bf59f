"""Tokenizer training on a CUDA device, in both precisions. Skipped where there is none."""

import pytest
import torch

from pipelines.tokenizer_training.worker import train_worker
from tests.training import curve_of, record_of, short, task_for, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("precision", "rel"), [("float32", 0.02), ("bfloat16", 0.1)])
def test_a_gpu_learns_what_a_cpu_learns(tmp_path, precision, rel):
    train(short(tmp_path / "cpu"))
    task = task_for(short(tmp_path / "gpu", precision=precision))
    train_worker(task, lambda kind, body: None, "cuda")
    for ours, theirs in zip(curve_of(tmp_path / "gpu"), curve_of(tmp_path / "cpu"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=rel)
    assert record_of(tmp_path / "gpu")["final"]["quantized"]
