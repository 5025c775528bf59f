"""Weights on their way from learners to samplers: whole, checked, and all of them or none."""

import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.grpo.groups import Group
from pipelines.grpo.transport import Piece, Weights, WeightTransport
from samtok.errors import CheckpointError
from tests.grpo import Store, World, learner_of, rolled

EMBEDDINGS = "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("transport"), images=1)


def ids_of(groups: list[Group]) -> list[list[int]]:
    return [said.ids.tolist() for group in groups for said in group.responses]


def test_tensors_of_all_types_arrive_as_they_left():
    store = Store()
    state = {
        "odd": torch.arange(3, dtype=torch.int8),  # what follows does not lie on its alignment
        "half": torch.randn(5, 3).bfloat16(),
        "full": torch.randn(2, 3, 4),
        "turned": torch.randn(4, 6).t(),
        "one": torch.tensor(2.5),
        "none": torch.empty(0, 7),
        "long": torch.arange(4),
    }
    transport = store.transport()
    got = dict(transport.fetch(transport.publish(state.items(), 3)))
    assert list(got) == list(state)
    for name, value in state.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name
    assert got["odd"].data_ptr() == store.objects[0].ctypes.data  # no copy of the store's memory


def test_weights_travel_in_the_precision_of_the_samplers_and_numbers_that_are_no_floats_as_they_are():
    state = {"weight": torch.randn(9), "half": torch.randn(3).bfloat16(), "counts": torch.arange(5)}
    transport = Store().transport(precision="bfloat16")
    weights = transport.publish(state.items(), 0)
    got = dict(transport.fetch(weights))
    assert [value.dtype for value in got.values()] == [torch.bfloat16, torch.bfloat16, torch.int64]
    for name, value in state.items():
        assert torch.equal(got[name], value.to(got[name].dtype))
    assert weights.shapes == {name: value.shape for name, value in state.items()}


def test_no_more_weights_are_held_at_a_time_than_make_two_pieces():
    held: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for number in range(20):
            tensor = torch.full((10,), float(number))
            held.append(weakref.ref(tensor))
            most = max(most, sum(one() is not None for one in held))
            yield str(number), tensor

    store = Store()
    weights = store.transport(piece_bytes=120).publish(made(), 0)  # three to a piece
    assert len(weights.pieces) == 7 and most <= 6


def test_pieces_are_given_up_as_they_are_read():
    store = Store()
    transport = store.transport(piece_bytes=8)
    weights = transport.publish([(name, torch.zeros(2)) for name in "abc"], 0)
    given: list[weakref.ref[np.ndarray]] = []

    def get(ref: int) -> np.ndarray:
        data = store.get(ref).view()
        given.append(weakref.ref(data))
        return data

    reading = WeightTransport(store.put, get, piece_bytes=8).fetch(weights)
    alive = []
    for _, tensor in reading:
        del tensor
        alive.append(sum(one() is not None for one in given))
    assert alive == [3, 2, 1]


def test_pieces_are_cut_by_size_and_a_large_tensor_is_alone():
    state = {name: torch.zeros(n) for name, n in (("a", 10), ("b", 10), ("c", 100), ("d", 5), ("e", 20))}
    weights = Store().transport(piece_bytes=100).publish(state.items(), 0)
    assert [[entry[0] for entry in piece.entries] for piece in weights.pieces] == [
        *(["a", "b"], ["c"]),
        ["d", "e"],
    ]


def test_version_and_content_make_the_digest():
    transport = Store().transport()
    state = {"a": torch.zeros(3), "b": torch.ones(2)}
    first = transport.publish(state.items(), 1)
    assert first.digest == transport.publish(state.items(), 1).digest
    assert first.digest != transport.publish(state.items(), 2).digest
    changed = {**state, "b": torch.tensor([1.0, 1.0 + 1e-7])}
    assert first.digest != transport.publish(changed.items(), 1).digest


def test_a_damaged_piece_is_named():
    store = Store()
    transport = store.transport(piece_bytes=8)
    weights = transport.publish({"a": torch.zeros(2), "b": torch.zeros(3)}.items(), 7)
    store.spoil(1, 5)
    with pytest.raises(CheckpointError, match="piece 1 of 2 of weights version 7 is not what was published"):
        transport.fetch(weights)


def test_a_short_piece_is_refused_also_without_a_checksum():
    store = Store()
    transport = store.transport(checksum=False)
    weights = transport.publish({"a": torch.zeros(4)}.items(), 7)
    assert weights.pieces[0].sha256 is None
    store.objects[0] = store.objects[0][:-4]
    with pytest.raises(CheckpointError, match="piece 0 of 1 .* it has 12 bytes, expected 16"):
        transport.fetch(weights)


def test_a_changed_parameter_changes_digest_version_and_what_is_said(world):
    store = Store()
    learner, sampler = learner_of(world.config(), store), world.sampler(store=store)
    assert (sampler.version, sampler.digest) == (-1, "")
    first = learner.publish(0)
    assert first is not None and sampler.sync(first) == (0, first.digest)
    before = ids_of(rolled(sampler, 2))
    with torch.no_grad():
        dict(learner.model.named_parameters())[learner.trained[-1]].mul_(-1)
    second = learner.publish(1)
    assert second is not None and second.digest != first.digest
    assert sampler.sync(second) == (1, second.digest) and sampler.version == 1
    groups = rolled(sampler, 2)
    assert ids_of(groups) != before and {group.version for group in groups} == {1}
    assert learner.parity(*groups)["max"] < 1e-5
    assert sampler.sync(first)[0] == 0 and ids_of(rolled(sampler, 2)) == before


def _renamed(weights: Weights, number: int, entry: tuple[str, str, tuple[int, ...]]) -> Weights:
    pieces = list(weights.pieces)
    old = pieces[number]
    pieces[number] = Piece((*old.entries[:-1], entry), old.sha256, old.ref)
    return dataclasses.replace(weights, pieces=tuple(pieces))


@pytest.mark.parametrize("damage", ["byte", "name", "shape"])
def test_weights_that_do_not_fit_leave_the_sampler_as_it_was(world, damage):
    store = Store()
    learner, sampler = learner_of(world.config(), store), world.sampler(store=store)
    good = learner.publish(4)
    assert good is not None and len(good.pieces) > 3
    sampler.sync(good)
    before = {name: value.clone() for name, value in sampler.engine.model.state_dict().items()}  # pyright: ignore
    with torch.no_grad():
        for _, parameter in learner.model.named_parameters():
            parameter.add_(1.0)
    bad = learner.publish(5)
    assert bad is not None
    name, kind, shape = bad.pieces[-1].entries[-1]
    if damage == "byte":
        store.spoil(bad.pieces[-1].ref, 0)
    elif damage == "name":
        bad = _renamed(bad, -1, ("model.nobody.weight", kind, shape))
    else:
        bad = _renamed(bad, -1, (name, kind, (*shape, 1)))
    expected = {
        "byte": "the checksum of its .* differs",
        "name": "nobody.* missing",
        "shape": "another architecture",
    }
    with pytest.raises(CheckpointError, match=expected[damage]):
        sampler.sync(bad)
    assert (sampler.version, sampler.digest) == (4, good.digest)
    after = sampler.engine.model.state_dict()  # pyright: ignore
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_tied_embeddings_travel_once_and_the_head_follows(world):
    store = Store()
    learner, sampler = learner_of(world.config(), store), world.sampler(store=store)
    with torch.no_grad():
        learner.model.get_parameter(EMBEDDINGS).mul_(2)
    weights = learner.publish(0)
    assert weights is not None
    names = [name for piece in weights.pieces for name, _, _ in piece.entries]
    assert len(names) == len(set(names)) and names == learner.trained
    assert EMBEDDINGS in names and "lm_head.weight" not in names
    assert not any("visual.blocks" in name for name in names)  # frozen, so it stays where it is
    sampler.sync(weights)
    own: Any = sampler.engine.model  # pyright: ignore
    assert torch.equal(own.get_output_embeddings().weight, learner.model.get_parameter(EMBEDDINGS))
    assert own.get_output_embeddings().weight.data_ptr() == own.get_input_embeddings().weight.data_ptr()
