"""The structural tag: as data, and as xgrammar understands it.

The comparison runs where xgrammar is installed, and is skipped elsewhere. Its version 0.2.8, the processor of
``generate`` and the reference machine agreed on 10,000 random prefixes of words with 1, 2 and 4 levels.
"""

import json

import numpy as np
import pytest
import torch

from samtok.mllm.grammar import MaskWordGrammar
from samtok.mllm.structural_tag import mask_word_tag
from samtok.mllm.vocab import WordIds
from tests.grammars import PADS, STOP, VOCAB, WIDTH, Machine, some_words

PREFIXES = 10_000


def test_the_tag_is_plain_data_that_names_every_word_once():
    tag = mask_word_tag(WordIds(5, 6, ((10, 11), (20, 21))), [30])
    assert json.loads(json.dumps(tag)) == tag
    assert tag["format"]["trigger_tokens"] == [5]
    assert tag["format"]["exclude_tokens"] == [10, 11, 20, 21, 6, 30]
    (word,) = tag["format"]["tags"]
    assert (word["begin"], word["end"]) == ({"type": "token", "token": 5}, {"type": "token", "token": 6})
    levels = [[token["token"] for token in level["elements"]] for level in word["content"]["elements"]]
    assert levels == [[10, 11], [20, 21]]


@pytest.mark.parametrize("num_levels", [1, 2, 4])
def test_xgrammar_the_processor_and_the_machine_agree(num_levels: int):
    xgrammar = pytest.importorskip("xgrammar")
    ids, rng = some_words(num_levels), np.random.default_rng(num_levels)
    grammar = MaskWordGrammar(ids, VOCAB, PADS)
    names = [f"<{token}>" for token in range(VOCAB)]
    info = xgrammar.TokenizerInfo(
        names, vocab_type=xgrammar.VocabType.RAW, vocab_size=WIDTH, stop_token_ids=[STOP]
    )
    compiled = xgrammar.GrammarCompiler(info).compile_structural_tag(json.dumps(mask_word_tag(ids, PADS)))
    bits, seen = xgrammar.allocate_token_bitmask(1, WIDTH), 0
    while seen < PREFIXES // 3:
        matcher, machine, text = xgrammar.GrammarMatcher(compiled), Machine(ids), [ids.end]
        while text[-1] != STOP and len(text) < 60:
            allowed = machine.allowed()
            matcher.fill_next_token_bitmask(bits)
            theirs = torch.zeros(1, WIDTH)
            xgrammar.apply_token_bitmask_inplace(theirs, bits)
            ours = grammar(torch.tensor([text]), torch.zeros(1, WIDTH))
            assert torch.equal(theirs, ours), text
            assert set((ours[0] == 0).nonzero().flatten().tolist()) == allowed, text
            refused = int(rng.choice(sorted(set(range(VOCAB)) - allowed)))
            assert not matcher.accept_token(refused)
            likely = ids.start if machine.place is None and rng.random() < 0.4 else None
            token = int(rng.choice(sorted(allowed))) if likely is None else likely
            assert matcher.accept_token(token)
            machine.read(token)
            text.append(token)
            seen += 1
