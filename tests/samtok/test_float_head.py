"""A head in float32 on models of any type."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from samtok.mllm.adapters import load_adapter
from samtok.mllm.float_head import use_float32_head
from samtok.mllm.loss import answer_logits
from tests.tiny_mllm import EACH_FAMILY, build, samples


@pytest.fixture(scope="module", params=EACH_FAMILY)
def folder(request, tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp(request.param), request.param)


def head_of(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head


def logits_of(model: Any, adapter: Any) -> torch.Tensor:
    return answer_logits(model, adapter.collate(samples(adapter)))[0]


def test_nothing_changes_in_float32(folder):
    adapter = load_adapter(folder)
    model = adapter.load_model(folder)
    before = logits_of(model, adapter)
    use_float32_head(model)
    assert torch.equal(logits_of(model, adapter), before)


def test_logits_of_bfloat16_models_are_exact_products_and_carry_gradient(folder):
    adapter = load_adapter(folder)
    model = adapter.load_model(folder, dtype=torch.bfloat16)
    head = head_of(model)
    hidden: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    rough = logits_of(model, adapter)
    use_float32_head(model)
    logits = logits_of(model, adapter)
    exact = hidden[-1].double() @ head.weight.double().T
    assert (logits - exact.view_as(logits)).abs().max() < 1e-4 < (rough - logits).abs().max()
    logits.sum().backward()
    assert head.weight.dtype == torch.bfloat16
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.bfloat16
    assert head.weight.grad.any()


def test_autocast_does_not_reach_the_head(folder):
    adapter = load_adapter(folder)
    model = adapter.load_model(folder)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits_of(model, adapter)
        use_float32_head(model)
        outputs: list[Any] = []
        head_of(model).register_forward_hook(lambda module, args, out: outputs.append(out))
        fine = logits_of(model, adapter)
    assert outputs[0].dtype == torch.float32 and not torch.equal(rough, fine)


def test_a_copy_computes_with_its_own_weights(folder):
    """The reference model is a copy; a method that is bound to the first model would follow its learning."""
    model = load_adapter(folder).load_model(folder)
    use_float32_head(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        head_of(model).weight.zero_()
    hidden = torch.ones(1, head_of(other).in_features)
    assert head_of(other)(hidden).any() and not head_of(model)(hidden).any()


def test_a_head_that_is_no_matrix_is_refused(folder):
    model = load_adapter(folder).load_model(folder)
    model.set_output_embeddings(nn.Identity())
    with pytest.raises(TypeError, match="the output embeddings of .* are a Identity"):
        use_float32_head(model)
