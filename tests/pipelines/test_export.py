"""Exports of MLLMs: the type of their weights."""

from pathlib import Path

import pytest
import torch

from pipelines.generation import models
from pipelines.training import mllm
from samtok.mllm.adapters import load_adapter, save_pretrained
from samtok.mllm.pretrained import read_model
from samtok.mllm.tiny.models import TinyConfig, build_tiny
from samtok.mllm.vocab import MaskVocabulary

TINY = TinyConfig(image_size=28, dim=32, num_heads=2, hidden_dim=48, vocab_size=280)


@pytest.mark.slow
@pytest.mark.numerics
def test_a_model_of_bfloat16_is_exported_as_such_unless_float32_is_asked_for(tmp_path: Path):
    start, rounded = tmp_path / "start", tmp_path / "rounded"
    texts = ["Segment it.", "It is here."]
    build_tiny("qwen2_5_vl", start, vocabulary=MaskVocabulary(4, 2), texts=texts, seed=0, config=TINY)
    adapter = load_adapter(start)
    save_pretrained(adapter.load_model(start, dtype=torch.bfloat16), adapter, rounded)
    assert mllm.precision_of("model", str(start)) == "float32"
    assert mllm.precision_of("model", str(rounded)) == "bfloat16"
    assert mllm.precision_of("float32", str(rounded)) == "float32"

    adapter, model = models.load(str(rounded), device="cpu", precision="float32", attention="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-4
    state, sizes = model.state_dict(), {}
    for precision in ("float32", "bfloat16"):
        out, dtype = tmp_path / precision, getattr(torch, precision)
        mllm.export(model, state, adapter, str(out), {}, precision=precision)
        loaded = read_model(out)
        assert loaded.dtype == dtype and models.stated_precision(str(out)) == precision
        again = loaded.state_dict()
        assert all(torch.equal(again[name], tensor.to(dtype)) for name, tensor in state.items())
        assert again["lm_head.weight"].data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
        sizes[precision] = (out / "model.safetensors").stat().st_size
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]
