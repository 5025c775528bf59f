"""Images that replies share give what repeated images give, forward and backward, and are seen once."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.loss import answer_logits, answer_loss
from samtok.mllm.packed_attention import attend_by_dialogue
from samtok.mllm.shared_images import vision_inputs
from tests.tiny_mllm import EACH_FAMILY, FAMILIES, QWEN, build, samples

TEXTS = ("input_ids", "labels", "mm_token_type_ids")
Pair = tuple[Adapter, Any]
REPEATS = ([3, 2, 2], [1, 4, 0], [0, 2, 1], [2, 0, 0], [1, 1, 1], [0, 0, 2])
"""Of dialogues with one image, with two and with none."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: build(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module", params=EACH_FAMILY)
def pair(request, folders) -> Pair:
    adapter = load_adapter(folders[request.param])
    return adapter, adapter.load_model(folders[request.param])


@pytest.fixture(scope="module", params=QWEN)
def qwen(request, folders) -> Pair:
    adapter = load_adapter(folders[request.param])
    return adapter, adapter.load_model(folders[request.param])


def passed(
    pair: Pair, prompts: list[Encoded], repeats: list[int], *, share: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns logits of the learnt tokens and the gradient of a loss that is another for each of them."""
    adapter, model = pair
    rows = [prompt for prompt, count in zip(prompts, repeats, strict=True) for _ in range(count)]
    texts = adapter.collate([Encoded(r.input_ids, r.labels, r.mm_token_type_ids) for r in rows])
    vision = vision_inputs(model, adapter, prompts, repeats) if share else adapter.vision_inputs(rows)
    model.zero_grad()
    logits, _ = answer_logits(model, {**texts, **vision})
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits).cos()
    (logits * weights).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


@contextmanager
def patches_seen(model: Any) -> Iterator[list[int]]:
    """Lists the patches that go into the vision model, pass by pass."""
    seen: list[int] = []
    handle = model.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["hidden_states"])),
        with_kwargs=True,
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("repeats", REPEATS, ids=str)
def test_shared_images_give_the_logits_and_gradients_of_repeated_ones(pair, repeats):
    prompts = samples(pair[0])
    shared, own = passed(pair, prompts, repeats, share=True), passed(pair, prompts, repeats, share=False)
    torch.testing.assert_close(shared[0], own[0], rtol=1e-4, atol=1e-5)
    assert shared[1].keys() == own[1].keys()
    scale = max(float(value.abs().max()) for value in own[1].values())
    assert scale > 0
    for name, value in own[1].items():
        torch.testing.assert_close(shared[1][name], value, rtol=1e-3, atol=1e-5 * scale, msg=name)
    images = any(count and prompt.vision for prompt, count in zip(prompts, repeats, strict=True))
    vision = [name for name in own[1] if "visual" in name or "vision_tower" in name]
    assert any(bool(own[1][name].any()) for name in vision) == images


def test_each_image_is_encoded_once(qwen):
    adapter, model = qwen
    prompts = samples(adapter)
    once = sum(len(prompt.vision.get("pixel_values", ())) for prompt in prompts)
    with patches_seen(model) as seen:
        passed(qwen, prompts, [3, 2, 2], share=True)
    assert seen == [once]
    with patches_seen(model) as seen:
        passed(qwen, prompts, [3, 2, 2], share=False)
    assert sum(seen) > 2 * once


def test_a_batch_without_repetitions_goes_the_same_way(qwen):
    """Else gradients would come in another order on such a worker, which ZeRO-2 cannot take."""
    adapter, model = qwen
    for repeats in ([1, 1, 1], [2, 1, 1], [1, 0, 0]):
        given = vision_inputs(model, adapter, samples(adapter), repeats)
        assert given.keys() == {"mm_encoder_outputs", "image_grid_thw"}


def test_another_image_changes_the_answer_of_its_own_dialogues_alone(qwen):
    adapter, _ = qwen
    prompts = samples(adapter)
    negative = Encoded(
        prompts[1].input_ids,
        prompts[1].labels,
        prompts[1].mm_token_type_ids,
        {**prompts[1].vision, "pixel_values": 255 - prompts[1].vision["pixel_values"]},
    )
    before, _ = passed(qwen, prompts, [2, 2, 2], share=True)
    after, _ = passed(qwen, [prompts[0], negative, prompts[2]], [2, 2, 2], share=True)
    learnt = [prompt.num_learnt for prompt in prompts for _ in range(2)]
    apart = [float(part.abs().max()) for part in (before - after).split(learnt)]
    assert max(*apart[:2], *apart[4:]) < 1e-6 and min(apart[2:4]) > 1e-3


def test_a_family_that_cannot_share_gets_its_pixels_again(folders):
    adapter = load_adapter(folders["perception_lm"])
    model = adapter.load_model(folders["perception_lm"])
    prompts = samples(adapter)
    vision = vision_inputs(model, adapter, prompts, [2, 1, 1])
    counts = [len(prompt.vision.get("pixel_values", ())) for prompt in prompts]
    assert list(vision) == ["pixel_values"] and len(vision["pixel_values"]) == 2 * counts[0] + counts[1]
    assert vision_inputs(model, adapter, prompts[2:], [3]) == {}


def test_a_blank_image_changes_no_loss_and_gives_the_vision_encoder_its_gradients_of_zero(pair):
    """In the same order as an image does, as ZeRO wants it of a worker whose batch has none."""
    adapter, model = pair
    image, _, text = samples(adapter)
    other = dataclasses.replace(image, vision={}, **{n: getattr(image, n)[-6:] for n in TEXTS})
    arrived: list[str] = []
    handles = [
        p.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
        for name, p in model.named_parameters()
    ]

    def passed(batch: list[Encoded], packed: bool) -> tuple[float, dict[str, Tensor], list[str]]:
        arrived.clear()
        model.zero_grad()
        loss = answer_loss(model, adapter.pack(batch) if packed else adapter.collate(batch))
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss.item(), gradients, list(arrived)

    for packed in {False, adapter.shares_images}:  # families that cannot share cannot be packed either
        if packed:
            attend_by_dialogue(model)
        plain, blank, seen = (
            passed([first, other], packed) for first in (text, adapter.with_blank_image(text), image)
        )
        assert blank[0] == pytest.approx(plain[0], rel=1e-6)
        assert blank[2] == seen[2] and len(plain[2]) < len(blank[2])
        for name, value in blank[1].items():
            if name in plain[1]:
                noise = 1e-6 * max(1.0, 10 * float(value.abs().max()))
                torch.testing.assert_close(value, plain[1][name], rtol=1e-4, atol=noise, msg=name)
            else:
                assert not value.any(), name
    for handle in handles:
        handle.remove()
