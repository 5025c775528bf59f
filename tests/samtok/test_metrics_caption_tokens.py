"""Words of captions: those of pycocoevalcap's tokenizer, recorded here and asked again where it can run."""

import importlib.util
import shutil
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.metrics.caption_tokens import words_of

# Captions, and the words that pycocoevalcap 1.2 has of them (recorded with OpenJDK 17; a space that does not
# break, as in its "1 1/2", parts words here, since its CIDEr splits there).
PUBLISHED = [
    ("A dog runs on the green grass near a fence.", "a dog runs on the green grass near a fence"),
    (
        "A red double-decker bus, a t-shirt and a 10-year-old; state-of-the-art.",
        "a red double-decker bus a t-shirt and a 10-year-old state-of-the-art",
    ),
    (
        "\"Hello,\" she said - 'quite' loudly -- and left... Really?",
        "hello she said quite loudly and left really",
    ),
    (
        "The sign says \u201cSTOP\u201d and \u2018GO\u2019 … don\u2019t — it\u2019s over\u2013here",
        "the sign says stop and go do n't it 's over here",
    ),
    (
        "I can't, won't, don't, isn't, shouldn't've and they're, we've, I'd, he'll, I'm, it's DON'T",
        "i ca n't wo n't do n't is n't should n't 've and they 're we 've i 'd he 'll i 'm it 's do n't",
    ),
    (
        "The dog's bone, the dogs' bones, James' and Jesus's, women's shoes.",
        "the dog 's bone the dogs bones james and jesus 's women 's shoes",
    ),
    (
        "You cannot; I'm gonna, wanna, gotta, gimme, lemme - 'tis, 'twas",
        "you can not i 'm gon na wan na got ta gim me lem me 't is 't was",
    ),
    (
        "rock 'n' roll in the '90s and 1980s, o'clock, O'Brien, ma'am, y'all, 'em",
        "rock 'n' roll in the '90s and 1980s o'clock o'brien ma'am y' all 'em",
    ),
    (
        "It is 3.5 m (10 ft) high [sic] {x}, 1,000, 10:30, 10:30am, 5pm, 1st",
        "it is 3.5 m -lrb- 10 ft -rrb- high -lsb- sic -rsb- -lcb- x -rcb- 1,000 10:30 10:30 am 5pm 1st",
    ),
    (
        "Half: 1/2, 1 1/2 and ½ cup, 2½, 24/7, 9/11/2001, 555-1234, 2x4, 3D, F-16s",
        "half 1/2 1 1/2 and 1/2 cup 2 1/2 24/7 9/11/2001 555-1234 2x4 3d f-16s",
    ),
    (
        "and/or black/white his/her w/o A/C red-and-white/blue a/b/c/d",
        "and/or black/white his/her w/o a/c red-and-white/blue a/b/c / d",
    ),
    (
        "$5, $5.00, £3, 5¢, US$5, 50%, #1, @home, A&B, AT&T, salt & pepper, 20°C, 5 \u00d7 5",
        "$ 5 $ 5.00 # 3 5 cents us$ 5 50 % # 1 @home a&b at&t salt & pepper 20 ° c 5 \u00d7 5",
    ),
    (
        "The U.S. flag at 5 p.m., e.g. this, i.e. that, etc. U.S.-made, U.S",
        "the u.s. flag at 5 p.m. e.g. this i.e. that etc. u.s.-made u.s",
    ),
    (
        "Mr. and Mrs. Smith, Dr. Who on St. John Ave. and No. 5, no. Or 6 ft. tall in. wide",
        "mr. and mrs. smith dr. who on st. john ave. and no. 5 no or 6 ft. tall in wide",
    ),
    ("A. The cat B. The dog; plan B. is A. J. Smith's", "a the cat b the dog plan b. is a. j. smith 's"),
    ("word.Word end.Start it!Then why?So 3.Then 5.5.", "word.word end.start it!then why?so 3 then 5.5"),
    ("wait... no.... yes!! what?! ok?? !", "wait no yes !! what ?! ok ??"),
    ("5'10\" tall and 6' high, 12\" wide", "5 10 tall and 6 high 12 wide"),
    ("café, naïve, Zürich's 日本語 El Niño", "café naïve zürich 's 日本語 el niño"),
    (
        "http://example.com/a?b=1 www.example.com me@example.com #tag C++ under_score",
        "http://example.com/a?b=1 www.example.com me@example.com #tag c++ under_score",
    ),
    ("- a -b -5 +5 c- a--b --- well-known-", "a b -5 +5 c a b well-known"),
    ("* ** + = / | ~ \\ ^ & %", "* ** + = / | ~ \\ ^ & %"),
    (
        "Wi-Fi, check-in's, 3-D, mid-1990s, 1990-2000, 10%-off, 2nd-floor, 7.5e-9",
        "wi-fi check-in 's 3-d mid-1990s 1990-2000 10 % off 2nd-floor 7.5e-9",
    ),
    ('A man is , standing . Next to " it " !', "a man is standing next to it"),
]


@pytest.mark.parametrize(("text", "words"), PUBLISHED)
def test_the_words_of_a_caption_are_the_published_ones(text, words):
    assert words_of(text, mode="official") == words.split(" ")


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
@pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap: samtok[captions]"
)
def test_pycocoevalcap_has_the_same_words():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]

    # Every other caption is a plain word, since the program lets the next caption decide on full stops.
    captions = {n: [{"caption": text}] for n, (text, _) in enumerate(PUBLISHED)}
    between = {f"after {n}": [{"caption": "x"}] for n in captions}
    order = [name for pair in zip(captions, between, strict=True) for name in pair]
    found = PTBTokenizer().tokenize({name: (captions | between)[name] for name in order})
    assert {n: found[n][0].split() for n in captions} == {
        n: words_of(text, mode="official") for n, (text, _) in enumerate(PUBLISHED)
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat (black) [sic] {x}!!", "a cat black sic x"),
        ("What?! A dog; an apple.", "what a dog an apple"),
        ("", ""),
        (" . ", ""),
        ("50 % & more", "50 % & more"),
    ],
)
def test_strict_words_have_no_brackets_and_no_repeated_marks(text, words):
    assert words_of(text) == words.split()


def test_curly_signs_are_read_as_straight_ones():
    assert words_of("the dog\u2019s \u201cball\u201d isn\u2019t 5\u20136 o\u2019clock") == (
        ["the", "dog", "'s", "ball", "is", "n't", "5", "6", "o'clock"]
    )


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(["strict", "official"]))
def test_any_text_has_words_of_lower_case_without_spaces(text, mode):
    words = words_of(text, mode=mode)
    assert all(word and word == word.lower() and not any(c.isspace() for c in word) for word in words)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.sampled_from("abcxyz"), min_size=4, max_size=9), max_size=9))
def test_plain_words_stay_as_they_are_whatever_stands_between_them(words):
    for between in (" ", "  ", ", ", "; ", " - ", ' " ', "\n", "... "):
        assert words_of(between.join(words)) == words
        assert words_of(between.join(words).upper()) == words


@pytest.mark.parametrize("piece", ["a", ".", "a.-", "1,", "<a", "a@"])
def test_long_texts_take_linear_time(piece):
    start = time.process_time()
    words_of(piece * (20_000 // len(piece)))
    assert time.process_time() - start < 2  # under 0.2 s on a small machine
