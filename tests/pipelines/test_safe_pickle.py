"""Pickles of plain data: what loads, and what is refused before it can cost anything."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingestion import safe_pickle
from samtok.errors import DataError

REF = {"ref_id": 7, "ann_id": 1, "image_id": 5, "split": "val", "sentences": [{"sent_id": 70, "sent": "a"}]}


def test_texts_of_two_encodings_in_one_file_are_read_each_by_its_own():
    raw = b"(lp0\nS'caf\\xe9'\np1\naS'caf\\xc3\\xa9'\np2\naS'plain'\np3\na."
    assert safe_pickle.load_plain(raw, "x") == ["café", "café", "plain"]


def unfolding():
    value = []
    for _ in range(60):
        value = [value, value]
    return value


def endless():
    value = []
    value.append(value)
    return value


def deep():
    value = []
    for _ in range(200):
        value = [value]
    return value


@pytest.mark.parametrize("make", [unfolding, endless, deep])
def test_pickles_that_unfold_without_end_are_refused(make):
    with pytest.raises(DataError, match="unfolds to .* or nests deeper than 32|it nests deeper than 32"):
        safe_pickle.load_plain(pickle.dumps(make()), "x")


@pytest.mark.parametrize("raw", [b"]r\xff\xff\xff\x7f.", b"(lp2147483647\n.", b"(]r\xff\xff\xff\x7f."])
def test_a_pickle_that_only_asks_for_memory_is_refused(raw):
    with pytest.raises(DataError, match="memo slot 2147483647|of protocol 1 in a file of protocol 0"):
        safe_pickle.load_plain(raw, "x")


NESTED = b"\x80\x02]}" + b")" + b"\x85" * 200_000 + b"K\x01sa."  # tuples in a tuple, as a key


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (NESTED, "nests deeper than 32"),
        (b"\x80\x02" + b"(" * 5 + b"]" + b"\x85" * 100_000 + b".", "nests deeper than 32"),
        (pickle.dumps([{number * (2**61 - 1): 0 for number in range(2_000)}]), "a key .* that is no text"),
        (pickle.dumps([{("a",): 1}]), "a key .* that is no text"),
        (pickle.dumps([{frozenset(("a",)), ("b",)}]), "a key .* that is no text"),
        (b"\x80\x02]Nb.", "BUILD at byte 4, which plain data does not need"),
        (
            pickle.dumps([{"sent": text} for text in ["x" * 50_000] for _ in range(5000)]),
            "64 times as many characters",
        ),
    ],
    ids=["key", "nested", "colliding", "tuple", "set", "operation", "shared"],
)
def test_pickles_that_would_cost_too_much_are_refused_before_they_are_loaded(raw, message):
    with pytest.raises(DataError, match=message) as caught:
        safe_pickle.load_plain(raw, "x")
    assert caught.value.reason == "pickle"


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.floats(allow_nan=False) | st.booleans(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(st.text(), inner, max_size=4)
        ),
    ),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_any_plain_data_are_loaded_as_they_are(value, protocol):
    assert safe_pickle.load_plain(pickle.dumps([value], protocol), "x") == [value]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.binary(max_size=30), st.sampled_from((0, 2, 4)))
def test_a_broken_pickle_is_a_data_error_or_plain_data(cut, byte, raw, protocol):
    whole = pickle.dumps([REF], protocol)
    for broken in (whole[:cut], whole[:cut] + bytes([byte]) + whole[cut + 1 :], raw):
        try:
            safe_pickle.load_plain(broken, "x")
        except DataError as error:
            assert error.reason in ("pickle", "pickle_global")
