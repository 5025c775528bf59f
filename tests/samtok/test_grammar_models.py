"""The grammar where it is used: in ``generate`` of a tiny MLLM, and behind the interface of vLLM."""

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from samtok import words
from samtok.errors import ConfigError
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


@pytest.fixture
def vllm_grammar(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our module on a copy of the part of vLLM's interface that it uses."""
    names = ("vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.sample.logits_processor")
    for name in (*names, f"{names[-1]}.builtin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].LogitsProcessor = object  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[f"{names[-1]}.builtin"].process_dict_updates = follow  # pyright: ignore[reportAttributeAccessIssue]
    yield importlib.import_module("samtok.mllm.vllm_grammar")
    del sys.modules["samtok.mllm.vllm_grammar"]


def follow(entries: dict, update: SimpleNamespace | None, new_state: Callable[..., Any]) -> bool:
    """As vLLM documents it: requests go, come, and move or swap, in this order."""
    if update is None:
        return False
    for row in update.removed:
        entries.pop(row, None)
    for row, params, prompt, new in update.added:
        state = new_state(params, prompt, new)
        entries.pop(row, None)
        if state is not None:
            entries[row] = state
    for first, second, swap in update.moved:
        one, other = entries.pop(first, None), entries.pop(second, None)
        entries.update({second: one} if one is not None else {})
        entries.update({first: other} if swap and other is not None else {})
    return True


def batch_update(added: list, removed: tuple = (), moved: tuple = ()) -> SimpleNamespace:
    return SimpleNamespace(added=added, removed=removed, moved=moved)


def test_vllm_requests_come_go_and_move_and_are_restricted_row_by_row(
    vllm_grammar: Any, folder: str, adapter: Adapter
):
    ids, width = adapter.word_ids, len(adapter.tokenizer) + 8
    config = SimpleNamespace(model_config=SimpleNamespace(model=folder))
    processor = vllm_grammar.MaskWordProcessor(config, torch.device("cpu"), False)
    on, off = SimpleNamespace(extra_args=None), SimpleNamespace(extra_args={vllm_grammar.SWITCH: False})
    free, opened, answer = torch.zeros(3, width), [ids.start], []
    assert not processor.is_argmax_invariant()
    assert torch.equal(processor.apply(free.clone()), free)

    processor.update_state(
        batch_update([(0, on, [5, 6], answer), (1, off, [ids.start], []), (2, on, None, opened)])
    )
    allowed = (processor.apply(free.clone()) == 0).sum(dim=1)
    outside = len(adapter.tokenizer) - (2 * CODES + 1) - len(adapter.suppressed_ids)
    assert allowed.tolist() == [outside, width, CODES]
    answer += [ids.start, ids.codes[0][1], ids.codes[1][3]]  # the lists are vLLM's own and grow
    opened += [ids.codes[0][0]]
    processor.update_state(None)
    scores = processor.apply(free.clone())
    assert (scores[0] == 0).nonzero().flatten().tolist() == [ids.end]
    assert (scores[2] == 0).nonzero().flatten().tolist() == sorted(ids.codes[1])
    processor.update_state(batch_update([], removed=(1,), moved=((2, 1, False),)))
    scores = processor.apply(torch.zeros(2, width))
    assert (scores == 0).sum(dim=1).tolist() == [1, CODES]


def test_vllm_a_newest_token_that_is_not_known_yet_is_an_error(vllm_grammar: Any, folder: str):
    config = SimpleNamespace(model_config=SimpleNamespace(model=folder))
    processor = vllm_grammar.MaskWordProcessor(config, torch.device("cpu"), False)
    processor.update_state(batch_update([(0, SimpleNamespace(extra_args=None), [5], [6, -1])]))
    with pytest.raises(ConfigError, match="no-async-scheduling"):
        processor.apply(torch.zeros(1, 500))
