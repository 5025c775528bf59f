"""Micro-batches by tokens: nothing lost, nothing over the limit, as many passes on every worker."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from samtok.mllm.token_budget import computed, cut, dealt

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=25)


def sizes(batches: list[list[int]], lengths: list[int], packed: bool) -> list[int]:
    return [computed([lengths[n] for n in batch], packed=packed) for batch in batches]


@given(LENGTHS, st.integers(1, 200), st.booleans())
def test_every_item_is_in_one_batch_that_fits(lengths, tokens, packed):
    batches = cut(lengths, tokens=tokens, packed=packed)
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    found = sizes(batches, lengths, packed)
    assert all(size <= tokens or len(batch) == 1 for size, batch in zip(found, batches, strict=True))
    assert [lengths[n] for batch in batches for n in batch] == sorted(lengths)


@given(LENGTHS, st.integers(1, 30))
def test_without_a_limit_of_tokens_batches_have_so_many_items(lengths, items):
    batches = cut(lengths, items)
    assert [len(batch) for batch in batches[:-1]] == [items] * (len(batches) - 1)
    assert len(batches) == -(-len(lengths) // items) and len(cut(lengths)) == 1


@given(LENGTHS, st.integers(1, 200), st.integers(1, 5), st.booleans())
def test_workers_have_as_many_passes_of_like_size(lengths, tokens, workers, packed):
    deal = dealt(lengths, tokens, workers, packed=packed)
    assert len(deal) == workers and len({len(own) for own in deal}) == 1
    assert sorted(n for own in deal for batch in own for n in batch) == list(range(len(lengths)))
    found = [sizes(own, lengths, packed) for own in deal]
    for own, batches in zip(found, deal, strict=True):
        assert all(size <= tokens or len(batch) == 1 for size, batch in zip(own, batches, strict=True))
    places = list(zip(*found, strict=True))
    for smaller, larger in pairwise(places):
        assert max(smaller) <= min(larger)


def test_two_workers_halve_a_batch_rather_than_wait():
    assert dealt([5, 5, 5, 5], 100, 2) == [[[0, 1]], [[2, 3]]]
    assert dealt([5], 100, 2) == [[[]], [[0]]]
