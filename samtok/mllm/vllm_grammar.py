"""The grammar of mask words inside vLLM's engine, for all requests at once.

    LLM(model=FOLDER, logits_processors=["samtok.mllm.vllm_grammar:MaskWordProcessor"])

Only vLLM imports this module. Its releases pin another torch than ours, so it lives in an environment of its
own with this package beside it; for the same reason our tests run the class on a copy of the interface of
``vllm.v1.sample.logits_processor``, and never inside an engine. ``structural_tag`` is the alternative that
needs no code in the engine.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor  # pyright: ignore[reportMissingImports]
from vllm.v1.sample.logits_processor.builtin import process_dict_updates  # pyright: ignore[reportMissingImports]

from samtok.errors import ConfigError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.grammar import MaskWordGrammar

SWITCH = "mask_word_grammar"
"""Key of ``SamplingParams.extra_args``: False turns the grammar off for a request."""


class MaskWordProcessor(LogitsProcessor):
    """Restricts requests to whole mask words, those of the served folder, which has a ``samtok.json``."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        adapter = load_adapter(vllm_config.model_config.model)
        self.grammar = MaskWordGrammar(adapter.word_ids, len(adapter.tokenizer), adapter.suppressed_ids)
        self.device = device
        self.texts: dict[int, tuple[list[int], list[int]]] = {}  # row to prompt and new tokens

    def is_argmax_invariant(self) -> bool:
        """Returns False: the grammar changes the output of greedy decoding."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Updates the tokens of each row when requests are added, removed or moved."""
        process_dict_updates(self.texts, batch_update, _text_of)

    def apply(self, logits: Tensor) -> Tensor:
        """Restricts the logits (row x vocabulary) of requests with the grammar, in place."""
        if self.texts:
            rows = list(self.texts)
            recent = torch.tensor([self._recent(*self.texts[row]) for row in rows]).to(self.device)
            logits[rows] = self.grammar(recent, logits[rows])
        return logits

    def _recent(self, prompt: list[int], new: list[int]) -> list[int]:
        """Returns the last tokens of prompt and response, padded in front with the end of a word."""
        size = self.grammar.num_levels + 1
        last = [*prompt[-size:], *new[-size:]][-size:]
        if min(last, default=0) < 0:
            raise ConfigError(
                "vLLM has not filled in the newest token of a request, so the grammar state is unknown; "
                "start the engine with --no-async-scheduling."
            )
        return [self.grammar.word_ids.end] * (size - len(last)) + last


def _text_of(params: Any, prompt: list[int] | None, new: list[int]) -> tuple[list[int], list[int]] | None:
    restricted = (params.extra_args or {}).get(SWITCH, True)
    return (prompt or [], new) if restricted else None
