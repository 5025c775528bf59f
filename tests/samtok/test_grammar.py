"""The grammar of mask words, against a machine that reads token by token."""

import numpy as np
import pytest
import torch

from samtok import words
from samtok.mllm.grammar import MaskWordGrammar, SuppressTokens
from samtok.mllm.vocab import WordIds
from tests.grammars import (
    NUM_CODES,
    PADS,
    STOP,
    VOCAB,
    WIDTH,
    allowed_after,
    random_texts,
    some_words,
    text_of,
)


def grammar_of(num_levels: int) -> MaskWordGrammar:
    return MaskWordGrammar(some_words(num_levels), VOCAB, PADS)


def table_of(allowed: list[set[int]]) -> torch.Tensor:
    table = torch.zeros(len(allowed), WIDTH, dtype=torch.bool)
    for row, ids in zip(table, allowed, strict=True):
        row[sorted(ids)] = True
    return table


def sampled(processor: SuppressTokens, ids: WordIds, *, count: int, length: int) -> list[list[int]]:
    """Texts of a model that says anything with equal probability; nothing follows the end of a text."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.full((count, 1), ids.end)
    for _ in range(length):
        scores = processor(texts, torch.randn(count, WIDTH, generator=generator))
        texts = torch.cat([texts, scores.softmax(-1).multinomial(1, generator=generator)], dim=1)
    found = [text[1:] for text in texts.tolist()]
    return [text[: text.index(STOP) + 1] if STOP in text else text for text in found]


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("num_levels", [1, 2, 4])
def test_it_allows_what_the_machine_allows_on_ten_thousand_prefixes(num_levels: int):
    grammar, length = grammar_of(num_levels), 14
    seen = set()
    for end in range(1, length + 1):
        prefixes = random_texts(grammar.word_ids, count=240, length=end, seed=end)
        expected = table_of([allowed_after(prefix, grammar.word_ids) for prefix in prefixes])
        scores = grammar(torch.from_numpy(prefixes), torch.zeros(len(prefixes), WIDTH))
        assert torch.equal(scores == 0, expected)
        assert torch.equal(scores == -torch.inf, ~expected)  # 10,080 prefixes with the other levels
        seen |= {int(row.sum()) for row in expected}
    assert {1, NUM_CODES, VOCAB - (NUM_CODES * num_levels + 1) - len(PADS)} == seen


@pytest.mark.parametrize("num_levels", [1, 2, 4])
def test_whole_texts_are_restricted_as_they_were_when_sampled(num_levels: int):
    grammar = grammar_of(num_levels)
    texts = torch.from_numpy(random_texts(grammar.word_ids, count=30, length=20, seed=0))
    logits = torch.randn(30, 20, WIDTH)
    together = grammar.restrict(logits, grammar.states(texts))
    for position in range(20):
        assert torch.equal(together[:, position], grammar(texts[:, : position + 1], logits[:, position]))


def test_probabilities_of_a_sampled_text_are_those_it_was_sampled_with_and_take_gradients():
    grammar = grammar_of(2)
    ids = grammar.word_ids
    text = torch.tensor([[3, ids.start, ids.codes[0][1], ids.codes[1][2], ids.end]])
    logits = torch.randn(1, 5, WIDTH, requires_grad=True)
    log_probs = grammar.restrict(logits, grammar.states(text)).log_softmax(-1)
    chosen = log_probs[0, torch.arange(4), text[0, 1:]]
    assert chosen[3] == 0  # nothing but the end could follow
    chosen.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert set(logits.grad[0, 1].nonzero().flatten().tolist()) == set(ids.codes[0])
    assert not logits.grad[0, 3].any()


@pytest.mark.parametrize("num_levels", [1, 2, 4])
def test_what_is_sampled_holds_no_malformed_word_but_a_last_one_cut_by_the_limit(num_levels: int):
    grammar = grammar_of(num_levels)
    ids, cut, whole = grammar.word_ids, 0, 0
    for tokens in sampled(grammar, ids, count=300, length=40):
        text = text_of(tokens, ids)
        complete, _, rest = text.rpartition(words.START)
        if words.END not in rest and words.START in text:
            cut, text = cut + 1, complete
            assert tokens[-1] != STOP
        whole += len(words.parse_words(text, num_codes=NUM_CODES, num_levels=num_levels))
        assert not {*tokens} & {*PADS, *range(VOCAB, WIDTH)}
    assert whole > 50 and cut > 3


def test_without_it_the_same_model_says_malformed_words():
    ids = some_words(2)
    texts = sampled(SuppressTokens(VOCAB, PADS), ids, count=50, length=40)
    read = [words.parse_words_lenient(text_of(t, ids), num_codes=NUM_CODES) for t in texts]
    assert sum(found.num_malformed for found in read) > 50
    assert not {token for text in texts for token in text} & {*PADS, *range(VOCAB, WIDTH)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_allowed_keeps_its_score_to_the_bit_and_the_input_is_left_alone(dtype: torch.dtype):
    grammar = grammar_of(2)
    texts = torch.from_numpy(random_texts(grammar.word_ids, count=50, length=6, seed=1))
    scores = torch.randn(50, WIDTH).to(dtype)
    before = scores.clone()
    found = grammar(texts, scores)
    allowed = table_of([allowed_after(text, grammar.word_ids) for text in texts.tolist()])
    assert found.dtype == dtype
    assert torch.equal(found[allowed], before[allowed])
    assert torch.equal(scores, before)


def test_rows_of_a_batch_do_not_see_each_other():
    grammar = grammar_of(2)
    texts = torch.from_numpy(random_texts(grammar.word_ids, count=40, length=9, seed=2))
    scores = torch.randn(40, WIDTH)
    together = grammar(texts, scores)
    for row in range(40):
        assert torch.equal(together[row : row + 1], grammar(texts[row : row + 1], scores[row : row + 1]))


def test_padding_in_front_changes_nothing():
    grammar = grammar_of(4)
    texts = torch.from_numpy(random_texts(grammar.word_ids, count=200, length=3, seed=3))
    scores = torch.randn(200, WIDTH)
    padded = torch.cat([torch.full((200, 5), STOP), texts], dim=1)
    assert torch.equal(grammar(padded, scores), grammar(texts, scores))


def test_a_text_cannot_end_inside_a_word():
    grammar = grammar_of(2)
    ids = grammar.word_ids
    word = [ids.start, ids.codes[0][0], ids.codes[1][0], ids.end]
    ends = [grammar(torch.tensor([[2, *word[:n]]]), torch.zeros(1, WIDTH))[0, STOP] for n in range(5)]
    assert [bool(end == 0) for end in ends] == [True, False, False, False, True]


def test_a_prompt_that_ends_in_an_open_word_is_continued():
    grammar = grammar_of(2)
    ids = grammar.word_ids
    prompt = torch.tensor(
        [[5, ids.start, ids.codes[0][0], ids.codes[1][1], ids.end, 6, ids.start, ids.codes[0][2]]]
    )
    scores = grammar(prompt, torch.zeros(1, WIDTH))
    assert set((scores[0] == 0).nonzero().flatten().tolist()) == set(ids.codes[1])


def test_logits_of_several_widths_can_follow_each_other():
    grammar, text = grammar_of(2), torch.tensor([[3]])
    for width in (VOCAB, WIDTH, VOCAB):
        scores = grammar(text, torch.zeros(1, width))
        assert scores.shape == (1, width)
        assert (scores[0, VOCAB:] == -torch.inf).all() and scores[0, 3] == 0


def test_logits_narrower_than_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="scores 59 tokens, its tokenizer knows 60.*extend_mllm"):
        grammar_of(2)(torch.tensor([[3]]), torch.zeros(1, VOCAB - 1))


def test_ids_that_cannot_be_meant_are_refused():
    ids = some_words(2)
    with pytest.raises(ValueError, match=r"token 60 is not in the vocabulary: expected ids in \[0, 60\)"):
        MaskWordGrammar(ids, VOCAB, [VOCAB])
    with pytest.raises(ValueError, match="token -1 is not"):
        SuppressTokens(VOCAB, [-1])
    with pytest.raises(ValueError, match="a token is two mask words"):
        MaskWordGrammar(ids, VOCAB, [ids.codes[1][0]])
    with pytest.raises(ValueError, match="a token is two mask words"):
        MaskWordGrammar(WordIds(ids.start, ids.start, ids.codes), VOCAB)


def test_levels_may_have_different_numbers_of_codes():
    grammar = MaskWordGrammar(WordIds(0, 1, ((2,), (3, 4, 5))), VOCAB)
    counts = [
        int((grammar(torch.tensor([text]), torch.zeros(1, WIDTH)) == 0).sum())
        for text in ([9], [0], [0, 2], [0, 2, 4], [0, 2, 4, 1])
    ]
    assert counts == [VOCAB - 5, 1, 3, 1, VOCAB - 5]


def test_suppression_alone_lets_words_go_wrong():
    processor = SuppressTokens(VOCAB, PADS)
    ids = some_words(2)
    text = torch.tensor([[ids.start], [ids.end]])
    allowed = sorted(set(range(VOCAB)) - set(PADS))
    for row in processor(text, torch.zeros(2, WIDTH)):
        assert (row == 0).nonzero().flatten().tolist() == allowed
    logits = torch.randn(2, 1, WIDTH)
    assert torch.equal(
        processor.restrict(logits, processor.states(text))[:, 0], processor(text, logits[:, 0])
    )


def test_states_count_the_codes_of_the_open_word():
    grammar = grammar_of(2)
    ids = grammar.word_ids
    text = [
        4,
        ids.start,
        ids.codes[0][0],
        ids.codes[1][0],
        ids.end,
        ids.start,
        ids.start,
        ids.codes[1][0],
        ids.codes[0][0],
    ]
    assert grammar.states(torch.tensor([text])).tolist() == [[0, 1, 2, 3, 0, 1, 1, 0, 0]]
    assert np.array_equal(SuppressTokens(VOCAB).states(torch.tensor([text])), np.zeros((1, 9)))
