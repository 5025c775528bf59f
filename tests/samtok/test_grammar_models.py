"""The grammar where it is used: in ``generate`` of a tiny MLLM, and behind the interface of vLLM."""

import pytest
import torch

from samtok import words
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.generation import generate
from samtok.mllm.grammar import MaskWordGrammar
from samtok.mllm.tiny.models import TinyConfig, build_tiny
from samtok.mllm.vocab import MaskVocabulary

CODES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny untrained MLLM with a short vocabulary, so that it stumbles over words often."""
    home = str(tmp_path_factory.mktemp("tiny"))
    build_tiny(
        "qwen2_5_vl",
        home,
        vocabulary=MaskVocabulary(CODES, 2),
        texts=["Segment the red ring.", "It is here."],
        seed=0,
        config=TinyConfig(vocab_size=300, padded_rows=40),
    )
    return home


@pytest.fixture(scope="module")
def adapter(folder: str) -> Adapter:
    return load_adapter(folder)


def prompts_of(adapter: Adapter, count: int) -> list[Encoded]:
    """Prompts of several lengths, every third with a word in it."""
    texts = ["Where?", "Segment the red ring.", f"Is {words.format_words((1, 2), num_codes=CODES)} red?"]
    return [adapter.encode_prompt([Turn("user", (text,))], []) for text in texts * -(-count // 3)][:count]


@pytest.mark.slow
@pytest.mark.numerics
def test_two_thousand_answers_of_an_untrained_model_hold_no_malformed_word_and_without_it_they_do(
    folder: str, adapter: Adapter
):
    model, prompts = adapter.load_model(folder), prompts_of(adapter, 500)

    def malformed(grammar: bool, seed: int) -> tuple[int, int, int]:
        """Counts whole words, malformed ones, and those of them that the limit of tokens has cut."""
        answers = generate(
            model, adapter, prompts, max_new_tokens=24, grammar=grammar, temperature=1.0, seed=seed
        )
        texts = [adapter.text_of(answer) for answer in answers]
        read = [words.parse_words_lenient(text, num_codes=CODES) for text in texts]
        cut = sum(
            text.rfind(words.START) > text.rfind(words.END) and len(answer) == 24
            for text, answer in zip(texts, answers, strict=True)
        )
        return sum(len(r.codes) for r in read), sum(r.num_malformed for r in read), cut

    whole, wrong, cut = map(sum, zip(*(malformed(True, seed) for seed in range(4)), strict=True))
    assert wrong == cut
    assert whole > 30 and cut > 5
    assert malformed(False, 0)[1] > 100


def test_greedy_answers_that_were_well_formed_stay_the_same(folder: str, adapter: Adapter):
    model, prompts = adapter.load_model(folder), prompts_of(adapter, 60)
    free = generate(model, adapter, prompts, max_new_tokens=3, grammar=False)
    bound = generate(model, adapter, prompts, max_new_tokens=3)
    grammar = MaskWordGrammar(adapter.word_ids, len(adapter.tokenizer), adapter.suppressed_ids)
    same = 0
    for prompt, one, other in zip(prompts, free, bound, strict=True):
        whole = torch.cat([prompt.input_ids, torch.tensor(one)]).unsqueeze(0)
        zeros = torch.zeros(*whole.shape, len(adapter.tokenizer))
        scores = grammar.restrict(zeros, grammar.states(whole))[0]
        allowed = scores[torch.arange(len(prompt) - 1, whole.shape[1] - 1), whole[0, len(prompt) :]] == 0
        if allowed.all():
            assert one == other
            same += 1
    assert same > 10
