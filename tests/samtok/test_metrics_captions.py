"""CIDEr equals published numbers, and what captions without text, reference or company score."""

import importlib.util
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.errors import DataError
from samtok.metrics.caption_tokens import words_of
from samtok.metrics.captions import CaptionSample, cider, counts, meteor

# Computed with pycocoevalcap 1.2 (OpenJDK 17): references, captions, CIDEr of each.
PUBLISHED = [
    ("A dog runs on the green grass near a fence.", "A brown dog is running on the grass.", 1.2324490683),
    (
        "Two people are sitting on a wooden bench in the park.",
        "Two people sit on a bench in the park.",
        3.9902277899,
    ),
    (
        "A red double-decker bus drives down a busy city street.",
        "A red bus is parked on the street.",
        1.3903539389,
    ),
]


def samples(*rows: tuple[str | None, ...]) -> list[CaptionSample]:
    """Builds samples of a caption and its references each."""
    return [
        CaptionSample(image_id=str(n), references=tuple(map(str, row[1:])), predicted=row[0])
        for n, row in enumerate(rows)
    ]


FIXTURE = samples(*((caption, reference) for reference, caption, _ in PUBLISHED))


@pytest.mark.parametrize("mode", ["strict", "official"])
def test_cider_equals_the_published_numbers(mode):
    found = cider(FIXTURE, mode=mode)
    assert found.score == pytest.approx(2.2043435990, abs=1e-10)
    assert found.segments == pytest.approx([segment for *_, segment in PUBLISHED], abs=1e-10)
    assert found.missing is None


def test_words_can_be_given_instead_of_text():
    split = samples(
        *((" ".join(words_of(caption)), " ".join(words_of(reference))) for reference, caption, _ in PUBLISHED)
    )
    assert cider(split, tokenized=True) == cider(FIXTURE)
    assert cider(samples(("A.", "A."), ("b", "b")), tokenized=True).segments == (2.5, 2.5)
    assert cider(samples(("A.", "a"), ("b", "b")), tokenized=True).segments == (0, 2.5)


def test_cider_by_hand():
    """Two images, so a word of one of them weighs log 2, and one of both nothing."""
    one_word = samples(("cat", "cat"), ("dog", "dog"))  # only sequences of one word: a quarter of 10
    assert cider(one_word).segments == (2.5, 2.5)
    assert cider(samples(("cat", "cat"), ("cat", "cat"))).segments == (0, 0)
    clipped = samples(("cat cat", "cat"), ("dog", "dog"))  # log2 * log2 / (2 log2 * log2), one pair too many
    assert cider(clipped).segments[0] == pytest.approx(10 / 4 / 2 * math.exp(-1 / 72), abs=1e-12)
    several = samples(("cat", "cat", "bird"), ("dog", "dog"))  # the mean over references
    assert cider(several).segments == pytest.approx((1.25, 2.5), abs=1e-12)


def test_a_caption_without_words_scores_0():
    for caption in ("", " ", "...", None):
        rows = samples((caption, "a cat"), ("a dog", "a dog"))
        assert cider(rows).segments[0] == 0
        assert cider(rows).score == cider(rows).segments[1] / 2 > 0
    assert cider(samples(("a cat", ""), ("a dog", "a dog"))).segments[0] == 0


def test_one_image_alone_scores_0_and_none_nothing():
    assert cider(samples(("a cat", "a cat"))).score == 0
    assert cider([]).score is None and cider([]).segments == ()


def test_official_leaves_out_what_has_no_prediction_and_strict_takes_it_for_empty():
    rows = [*FIXTURE, CaptionSample(image_id="more", references=("A red bird.",), predicted=None)]
    assert cider(rows, mode="official") == cider(FIXTURE)
    assert cider(rows).segments[3] == 0 and len(cider(rows).segments) == 4
    assert counts(rows) == {"expected": 4, "scored": 3, "skipped": 1}


def test_brackets_are_words_in_official_mode():
    rows = samples(("a (red) cat", "a red cat"), ("dog", "dog"))
    perfect = cider(samples(("a red cat", "a red cat"), ("dog", "dog"))).segments[0]
    assert cider(rows).segments[0] == perfect > cider(rows, mode="official").segments[0]


@pytest.mark.parametrize("score", [cider, meteor])
def test_samples_that_cannot_be_scored_are_refused(score):
    twice = [FIXTURE[0], FIXTURE[0]]
    with pytest.raises(DataError, match="two captions have the image id '0', expected one") as error:
        score(twice)
    assert error.value.reason == "duplicate_image"
    with pytest.raises(DataError, match="image '0' has no reference caption") as error:
        score(samples(("a cat",)))
    assert error.value.reason == "no_reference"


WORDS = st.sampled_from(["a", "b", "c", "d", "e", "the", "cat", "dog"])
TEXTS = st.lists(WORDS, max_size=7).map(" ".join)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(ROWS, st.randoms())
def test_cider_lies_between_0_and_10_whatever_the_order(rows, random):
    found = cider(samples(*rows))
    assert all(0 <= segment <= 10 + 1e-9 for segment in found.segments)
    shuffled = random.sample(rows, len(rows))
    assert cider(samples(*shuffled)).score == pytest.approx(found.score, abs=1e-9)
    turned = samples(*((caption, *references[::-1]) for caption, *references in rows))
    assert cider(turned).segments == pytest.approx(found.segments, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_no_caption_scores_more_than_its_only_reference(rows):
    first = cider(samples(*((caption, reference) for caption, reference, _ in rows))).segments
    perfect = cider(samples(*((reference, reference) for _, reference, _ in rows))).segments
    assert all(a <= b + 1e-9 for a, b in zip(first, perfect, strict=True))


@pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap: samtok[captions]"
)
@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_cider_equals_that_of_pycocoevalcap(rows):
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports]

    truth = {n: list(references) for n, (_, *references) in enumerate(rows)}
    if not any(" ".join(texts).split() for texts in truth.values()):
        return  # it fails where no reference has a word
    score, segments = Cider().compute_score(truth, {n: [row[0]] for n, row in enumerate(rows)})
    found = cider(samples(*rows), tokenized=True)
    assert found.score == pytest.approx(score, abs=1e-12)
    assert found.segments == pytest.approx(segments, abs=1e-12)
