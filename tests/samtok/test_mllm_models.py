"""Losses, packed rows, freezing and generation of tiny models of every family."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from samtok.errors import CheckpointError
from samtok.mllm.adapters import load_adapter, save_pretrained
from samtok.mllm.chat import IGNORE, Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.generation import generate
from samtok.mllm.loss import answer_logits, answer_loss
from samtok.mllm.packed_attention import attend_by_dialogue, dialogue_lengths, resets_state
from tests.tiny_mllm import EACH_FAMILY, FAMILIES, QWEN, build, chat, picture, samples

Pair = tuple[Adapter, torch.nn.Module]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: build(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module", params=EACH_FAMILY)
def pair(request, folders) -> Pair:
    adapter = load_adapter(folders[request.param])
    return adapter, adapter.load_model(folders[request.param])


@pytest.fixture(scope="module", params=itertools.product(QWEN, ("sdpa", "eager")), ids="-".join)
def qwen(request, folders) -> Pair:
    family, attention = request.param
    adapter = load_adapter(folders[family])
    model = adapter.load_model(folders[family], attn=attention)
    if not resets_state(model):
        attend_by_dialogue(model)
    return adapter, model


def one_by_one(pair: Pair, three: list[Encoded]) -> float:
    adapter, model = pair
    return sum(float(answer_loss(model, adapter.collate([sample]))) for sample in three)


def per_token(loss: float | Tensor, three: list[Encoded]) -> float:
    return float(loss) / sum(sample.num_learnt for sample in three)


@torch.no_grad()
def test_the_loss_is_that_of_transformers_itself(pair):
    adapter, model = pair
    batch = adapter.collate(samples(adapter))
    theirs = model(**batch).loss  # a mean
    learnt = int((batch["labels"][:, 1:] != IGNORE).sum())
    assert float(answer_loss(model, batch)) / learnt == pytest.approx(float(theirs), abs=1e-5)
    logits, targets = answer_logits(model, batch)
    assert logits.shape[0] == len(targets) == learnt == sum(s.num_learnt for s in samples(adapter))


@torch.no_grad()
def test_older_transformers_give_the_same_logits_of_the_same_tokens(pair, monkeypatch):
    adapter, model = pair
    batch = adapter.collate(samples(adapter))
    newer, targets = answer_logits(model, batch)
    monkeypatch.setattr("samtok.mllm.loss.TAKES_MASKS", False)
    older, same = answer_logits(model, batch)
    assert torch.equal(same, targets)
    assert torch.allclose(older, newer, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_has_the_loss_of_its_dialogues_one_by_one(pair, side):
    adapter, model = pair
    three = samples(adapter)
    together = answer_loss(model, adapter.collate(three, side=side))
    assert per_token(together, three) == pytest.approx(per_token(one_by_one(pair, three), three), abs=1e-5)


@pytest.mark.slow
@pytest.mark.numerics
@torch.no_grad()
def test_a_packed_row_has_the_loss_of_its_dialogues_one_by_one(qwen):
    adapter, model = qwen
    three = samples(adapter)
    for order in (three, three[::-1]):
        packed = adapter.pack(order)
        assert packed["input_ids"].shape == (1, sum(map(len, three)))
        assert per_token(answer_loss(model, packed), three) == pytest.approx(
            per_token(one_by_one(qwen, three), three), abs=1e-5
        )


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("family", QWEN)
def test_attention_within_dialogues_gives_the_loss_and_gradients_of_one_by_one(folders, family):
    adapter = load_adapter(folders[family])
    model = adapter.load_model(folders[family])
    three = samples(adapter)
    alone = sum(answer_loss(model, adapter.collate([sample])) for sample in three)
    expected = gradients(model, alone)
    attend_by_dialogue(model)
    masks = seen_by(model.model.language_model.layers[-1])
    packed = answer_loss(model, adapter.pack(three))
    found = gradients(model, packed)
    assert [mask.shape for mask in masks] == [(0,)]  # no token's mask
    assert per_token(packed.detach(), three) == pytest.approx(per_token(alone.detach(), three), abs=1e-5)
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], atol=1e-4 * float(expected[name].abs().max())), name
    padded = answer_loss(model, adapter.collate(three))
    assert masks[1].shape[-2:] == (max(map(len, three)),) * 2
    assert per_token(padded.detach(), three) == pytest.approx(per_token(alone.detach(), three), abs=1e-5)


def seen_by(layer: torch.nn.Module) -> list[Tensor]:
    """Gathers the masks that a layer is given."""
    found: list[Tensor] = []
    layer.register_forward_pre_hook(
        lambda _, __, named: found.append(named["attention_mask"]), with_kwargs=True
    )
    return found


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    weights = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: one for name, one in zip(weights, found, strict=True) if one is not None}


def test_a_model_answers_the_same_with_attention_within_dialogues(folders):
    adapter = load_adapter(folders["qwen2_5_vl"])
    model = adapter.load_model(folders["qwen2_5_vl"])
    prompts = [adapter.encode_prompt(chat(f"{'Where? ' * n}")[:1], [picture(n)]) for n in (1, 5)]
    before = generate(model, adapter, prompts, max_new_tokens=8)
    attend_by_dialogue(model)
    assert generate(model, adapter, prompts, max_new_tokens=8) == before


def test_only_sdpa_is_replaced_by_attention_within_dialogues(folders):
    adapter = load_adapter(folders["qwen2_5_vl"])
    model = adapter.load_model(folders["qwen2_5_vl"], attn="eager")
    attend_by_dialogue(model)
    assert model.config.get_text_config()._attn_implementation == "eager"


def test_packed_attention_without_positions_is_refused(folders):
    adapter = load_adapter(folders["qwen2_5_vl"])
    model = adapter.load_model(folders["qwen2_5_vl"])
    attend_by_dialogue(model)
    attention = model.model.language_model.layers[0].self_attn
    hidden, turns = torch.zeros(1, 5, 64), (torch.ones(1, 5, 32), torch.zeros(1, 5, 32))
    with pytest.raises(ValueError, match="positions of its text.*did not hand them to Qwen2_5_VLAttention"):
        attention(hidden, attention_mask=torch.empty(0), position_embeddings=turns)


def test_a_dialogue_begins_where_positions_do_not_follow_on():
    assert dialogue_lengths(torch.tensor([0, 1, 2, 0, 1, 0])) == [3, 2, 1]
    assert dialogue_lengths(torch.tensor([4, 5, 6])) == [3]


LEAKS = ("cache", "attention mask", "three rows", "no positions")


@pytest.mark.slow
@pytest.mark.numerics
@torch.no_grad()
@pytest.mark.parametrize("leak", [None, *LEAKS])
def test_every_other_way_to_pack_leaks_and_is_refused(qwen, leak):
    """Without a leak the call by hand agrees, so that it is the leak that is seen."""
    adapter, model = qwen
    three = samples(adapter)
    batch = adapter.pack(three)
    labels = batch.pop("labels")
    options = {"use_cache": leak == "cache"}
    if leak == "attention mask":
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if leak == "three rows":
        batch["position_ids"] = batch["position_ids"][1:]
    if leak == "no positions":
        del batch["position_ids"]
    logits = model(**batch, **options).logits
    losses = cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORE, reduction="none")
    alone = [answer_logits(model, adapter.collate([sample])) for sample in three]
    expected = torch.cat([cross_entropy(*pair, reduction="none") for pair in alone])
    difference = (losses[labels[0, 1:] != IGNORE] - expected).abs().max()
    assert difference > 1e-2 if leak else difference < 1e-5
    if leak in ("attention mask", "three rows"):
        with pytest.raises(ValueError, match="dialogues see each other"):
            answer_loss(model, {**batch, "labels": labels})


def test_a_kernel_that_was_not_tried_is_refused_for_packed_rows(folders):
    adapter = load_adapter(folders["qwen2_5_vl"])
    model = adapter.load_model(folders["qwen2_5_vl"])
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match="sdpa, eager, sdpa_by_dialogue attention only, got flash_attention_2"
    ):
        answer_loss(model, adapter.pack(samples(adapter)))


@torch.no_grad()
def test_a_state_that_goes_on_into_the_next_dialogue_is_refused(folders):
    adapter = load_adapter(folders["qwen3_5"])
    model = adapter.load_model(folders["qwen3_5"])
    three = samples(adapter)
    batch = adapter.pack(three)
    with pytest.raises(ValueError, match="carries a state from one packed dialogue to the next"):
        answer_loss(model, batch)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[0, :-1]
    loss = cross_entropy(logits, labels[0, 1:], ignore_index=IGNORE, reduction="sum")
    assert abs(per_token(loss, three) - per_token(one_by_one((adapter, model), three), three)) > 5e-4
    attend_by_dialogue(model)
    assert per_token(answer_loss(model, batch | {"labels": labels}), three) == pytest.approx(
        per_token(one_by_one((adapter, model), three), three), abs=1e-5
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_no_padded_token_reaches_the_state(folders, side):
    """Whatever stands in the place of a padded token: another one, at the same mask."""
    adapter = load_adapter(folders["qwen3_5"])
    model = adapter.load_model(folders["qwen3_5"])
    batch = adapter.collate(samples(adapter), side=side)
    padded = batch["attention_mask"] == 0
    assert padded.any()
    other = batch["input_ids"].masked_fill(padded, int(adapter.word_ids.codes[0][3]))
    found = [
        gradients(model, answer_loss(model, batch | {"input_ids": ids}))
        for ids in (batch["input_ids"], other)
    ]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items() if "embed" not in name)


def test_positions_are_those_of_the_model(qwen):
    adapter, model = qwen
    for sample in samples(adapter):
        grids = sample.vision.get("image_grid_thw")
        expected, _ = model.model.get_rope_index(
            sample.input_ids[None],
            mm_token_type_ids=sample.mm_token_type_ids[None],
            **({} if grids is None else {"image_grid_thw": grids}),
        )
        positions = adapter.positions(sample)
        assert torch.equal(positions[1:], expected[:, 0])
        assert torch.equal(positions[0], torch.arange(len(sample)))


@torch.no_grad()
def test_another_image_gives_another_loss(pair):
    adapter, model = pair
    losses = [answer_loss(model, adapter.collate([adapter.encode(chat(), [picture(i)])])) for i in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-2


@torch.no_grad()
def test_a_batch_without_token_types_is_refused_since_it_would_be_wrong_in_silence(qwen):
    adapter, model = qwen
    batch = adapter.collate(samples(adapter)[:1])
    del batch["mm_token_type_ids"]
    with pytest.raises(ValueError, match="no mm_token_type_ids"):
        answer_loss(model, batch)
    text_only = adapter.collate(samples(adapter)[2:])
    del text_only["mm_token_type_ids"]
    answer_loss(model, text_only)


def test_a_batch_without_anything_to_learn_has_no_loss_and_zero_gradients(pair):
    adapter, model = pair
    batch = adapter.collate([adapter.encode_prompt(chat()[:1], [picture()])])
    model.zero_grad()
    loss = answer_loss(model, batch)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


PARTS = ("vision", "projector", "llm")


def part_of(name: str) -> str:
    if "merger" in name or "projector" in name:
        return "projector"
    return "vision" if "visual" in name or "vision_tower" in name else "llm"


@pytest.mark.parametrize("trained", [PARTS[:0], PARTS[:1], PARTS[1:2], PARTS[2:], PARTS[1:], PARTS], ids=str)
def test_freezing_trains_exactly_what_was_asked_for(pair, trained):
    adapter, model = pair
    adapter.freeze(model, **{part: part in trained for part in PARTS})
    found = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    frozen = {part_of(name) for name, p in model.named_parameters() if not p.requires_grad}
    assert (found, frozen) == (set(trained), set(PARTS) - set(trained))
    adapter.freeze(model, vision=True, projector=True, llm=True)


def test_word_rows_get_gradients_from_the_words_that_are_said(pair):
    adapter, model = pair
    model.zero_grad()
    adapter.freeze(model, vision=False, projector=True, llm=True)
    answer_loss(model, adapter.collate([adapter.encode(chat(), [picture()])])).backward()
    rows = model.get_input_embeddings().weight.grad.abs().sum(1)
    assert rows[adapter.word_ids.codes[0][3]] > 0
    assert all(p.grad is None for n, p in model.named_parameters() if part_of(n) == "vision")
    assert all(
        p.grad is not None for n, p in model.named_parameters() if "projector" in n or "merger.mlp" in n
    )
    adapter.freeze(model, vision=True, projector=True, llm=True)
    model.zero_grad()


@torch.no_grad()
def test_a_saved_model_comes_back_bit_for_bit(pair, tmp_path):
    adapter, model = pair
    save_pretrained(model, adapter, tmp_path)
    again = load_adapter(tmp_path)
    other = again.load_model(tmp_path)
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (again.vocabulary, again.word_ids, again.stop_ids) == (
        adapter.vocabulary,
        adapter.word_ids,
        adapter.stop_ids,
    )
    batches = [a.collate(samples(a)) for a in (adapter, again)]
    assert torch.equal(answer_loss(model, batches[0]), answer_loss(other, batches[1]))


def test_a_model_of_another_family_is_refused(folders):
    with pytest.raises(CheckpointError, match="holds a qwen3_vl; this adapter is for qwen2_5_vl"):
        load_adapter(folders["qwen2_5_vl"]).load_model(folders["qwen3_vl"])


def test_broken_weights_are_refused(tmp_path):
    folder = build(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_adapter(folder).load_model(folder)


def prompts(adapter: Adapter) -> list[Encoded]:
    questions = ["Where is the blue star?", "Segment the red ring and then the blue star.", "Be brief."]
    images = [picture(5), picture(6, (40, 90)), picture(7)]
    asked = [
        adapter.encode_prompt([Turn("user", (0, question))], [image])
        for question, image in zip(questions, images, strict=True)
    ]
    return [*asked, adapter.encode_prompt([Turn("user", ("Be brief.",))], [])]


@pytest.mark.slow
@pytest.mark.numerics
def test_a_batch_is_answered_like_its_prompts_one_by_one(pair):
    adapter, model = pair
    asked = prompts(adapter)
    together = generate(model, adapter, asked, max_new_tokens=12, grammar=False)
    alone = [generate(model, adapter, [prompt], max_new_tokens=12, grammar=False)[0] for prompt in asked]
    assert together == alone
    assert len({tuple(answer) for answer in together}) > 1


@torch.no_grad()
def test_greedy_answers_follow_the_logits_that_training_sees(pair):
    """The parity that reinforcement learning rests on: no other positions, no stale ones."""
    adapter, model = pair
    prompt = prompts(adapter)[0]
    (answer,) = generate(model, adapter, [prompt], max_new_tokens=8, grammar=False)
    ids = torch.cat([prompt.input_ids, torch.tensor(answer)])
    labels = ids.clone()
    labels[: len(prompt)] = IGNORE
    types = torch.cat([prompt.mm_token_type_ids, torch.zeros(len(answer), dtype=torch.long)])
    logits, targets = answer_logits(model, adapter.collate([Encoded(ids, labels, types, prompt.vision)]))
    logits[:, list(adapter.suppressed_ids)] = -torch.inf
    assert logits.argmax(-1).tolist() == targets.tolist() == answer


@pytest.mark.slow
@pytest.mark.numerics
def test_samples_are_the_same_for_a_seed_and_leave_the_generator_and_the_mode_alone(pair):
    adapter, model = pair
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    answers = [
        generate(model, adapter, prompts(adapter), max_new_tokens=8, temperature=1.0, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    model.eval()
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("grammar", [True, False])
def test_places_of_images_are_never_generated(pair, grammar):
    adapter, model = pair
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(
        lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor(adapter.suppressed_ids), 50.0)
    )
    answers = generate(model, adapter, prompts(adapter), max_new_tokens=4, grammar=grammar, temperature=2.0)
    hook.remove()
    assert not {id_ for answer in answers for id_ in answer} & set(adapter.suppressed_ids)


def test_an_answer_ends_with_the_token_that_ends_the_turn(pair):
    adapter, model = pair
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(
        lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor(adapter.stop_ids[:1]), 99.0)
    )
    answers = generate(model, adapter, prompts(adapter), max_new_tokens=4)
    hook.remove()
    assert answers == [[adapter.stop_ids[0]]] * len(answers)
    assert adapter.text_of(answers[0]) == ""


def test_no_prompts_give_no_answers_and_wrong_settings_are_refused(pair):
    adapter, model = pair
    assert generate(model, adapter, [], max_new_tokens=4) == []
    for settings in ({"max_new_tokens": 0}, {"max_new_tokens": 4, "temperature": -1.0}):
        with pytest.raises(ValueError, match="temperature must be >= 0"):
            generate(model, adapter, prompts(adapter), **settings)
