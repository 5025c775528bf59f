"""Responses for reinforcement learning: several samples of each prompt, with log-probs of their tokens.

Tokens are kept as they were sampled and never made from text again. The learner computes log-probs of the
same tokens with ``response_log_probs``; both divide by the temperature and exclude the same tokens, so they
agree but for rounding, and where they do not, something is wrong (weights, images, positions).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LogitsProcessor, PreTrainedModel, TemperatureLogitsWarper

from samtok.mllm.chat import IGNORE, Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.generation import processor_of, run_generate, settings_of, until_stop
from samtok.mllm.grammar import SuppressTokens
from samtok.mllm.loss import answer_logits, mllm_of
from samtok.mllm.rows import check_rows
from samtok.mllm.shared_images import vision_inputs
from samtok.rl.entropy import chosen_log_probs


@dataclass(frozen=True)
class Sampled:
    """One response.

    Attributes:
        ids: Token ids, int32, with the token that ends the turn if it came.
        log_probs: Of each token under the distribution that it was drawn from, float32.
        complete: Whether the turn ended before the limit of tokens.
    """

    ids: np.ndarray
    log_probs: np.ndarray
    complete: bool

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of each token that is drawn; stands last, behind all that shapes scores."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.columns: list[Tensor] = []
        self._scores: Tensor | None = None

    def __call__(
        self, input_ids: Int[Tensor, "batch token"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Remembers the scores, unchanged; the token that was drawn from them is known the next time."""
        self._take(input_ids[:, -1])
        self._scores = scores
        return scores

    def _take(self, drawn: Int[Tensor, " batch"]) -> None:
        if self._scores is not None:
            drawn_scores = self._scores.gather(1, drawn[:, None])[:, 0]
            self.columns.append(drawn_scores - self._scores.logsumexp(dim=1))

    def finish(self, new: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new"]:
        """Returns all log-probabilities; those of padding mean nothing."""
        self._take(new[:, -1])
        return torch.stack(self.columns, dim=1)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    adapter: Adapter,
    prompts: Sequence[Encoded],
    *,
    num_responses: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    grammar: bool = False,
    seed: int = 0,
) -> list[list[Sampled]]:
    """Samples responses to each prompt, all in one batch. Each image is encoded once.

    Args:
        prompts: From ``Adapter.encode_prompt``.
        temperature: Above 0. There is no other filter (top-k, top-p): those would make the learner's
            probabilities wrong.
        grammar: Allow whole mask words only; ``response_log_probs`` then needs the same processor.
        seed: Equal batches with equal seeds and weights give equal responses on one device.

    Raises:
        CheckpointError: The model has fewer rows than the adapter's tokenizer has tokens, or lost its tie.
        ValueError: For numbers out of range.
    """
    if temperature <= 0 or max_new_tokens < 1 or num_responses < 1:
        raise ValueError(
            "temperature must be > 0, max_new_tokens and num_responses >= 1, got "
            f"{temperature}, {max_new_tokens} and {num_responses}."
        )
    if not prompts:
        return []
    check_rows(model, len(adapter.tokenizer))
    texts = [replace(prompt, vision={}) for prompt in prompts for _ in range(num_responses)]
    batch: dict[str, Any] = {
        **adapter.collate(texts, side="left"),
        **vision_inputs(model, adapter, prompts, [num_responses] * len(prompts)),
    }
    recorder = _Recorder(batch["input_ids"].shape[1])
    processors = [processor_of(adapter, grammar=grammar), TemperatureLogitsWarper(temperature), recorder]
    settings = settings_of(adapter, max_new_tokens, 1.0)  # ours is among the processors, before the recorder
    new = run_generate(model, batch, processors, settings, seed=seed)
    log_probs = recorder.finish(new).float().cpu().numpy()
    rows = []
    for ids, row in zip(new.tolist(), log_probs, strict=True):
        kept = until_stop(ids, adapter.stop_ids)
        complete = bool(kept) and kept[-1] in adapter.stop_ids
        rows.append(Sampled(np.array(kept, np.int32), row[: len(kept)].astype(np.float32), complete))
    return [rows[first : first + num_responses] for first in range(0, len(rows), num_responses)]


def with_response(prompt: Encoded, ids: Int[np.ndarray, " token"]) -> Encoded:
    """Returns prompt and response as one text whose response is learnt.

    ``mm_token_type_ids`` are made for both together: without them positions are silently wrong.
    """
    response = torch.from_numpy(ids.astype(np.int64))
    return Encoded(
        input_ids=torch.cat([prompt.input_ids, response]),
        labels=torch.cat([torch.full_like(prompt.input_ids, IGNORE), response]),
        mm_token_type_ids=torch.cat([prompt.mm_token_type_ids, torch.zeros_like(response)]),
        vision=prompt.vision,
    )


@dataclass(frozen=True)
class ResponseLogits:
    """Log-probs of the tokens of all responses, one after the other, and the response of each, from 0.

    Logits are restricted to the tokens that could be drawn, and not divided by the temperature.
    """

    log_probs: Float[Tensor, " token"]
    logits: Float[Tensor, "token vocab"]
    sequence: Int[Tensor, " token"]


def response_log_probs(
    model: nn.Module,
    adapter: Adapter,
    prompts: Sequence[Encoded],
    responses: Sequence[Sequence[np.ndarray]],
    processor: SuppressTokens,
    *,
    temperature: float = 1.0,
    blank_image: bool = False,
    packed: bool = False,
) -> ResponseLogits:
    """Returns log-probabilities of responses under a model, as they were when the responses were sampled.

    Args:
        model: An MLLM, or what DeepSpeed has made of it.
        responses: Token ids of some responses to each prompt, none empty.
        processor: ``processor_of`` with the same grammar as the sampling had.
        temperature: Of the sampling.
        blank_image: Of prompts without images: go through the vision encoder all the same
            (``Adapter.with_blank_image``).
        packed: Put all texts into one row (``Adapter.pack``) instead of padding them.

    Raises:
        ValueError: For an empty response, or as ``answer_logits``.
    """
    if any(len(ids) == 0 for group in responses for ids in group):
        raise ValueError("a response has no token; every response has at least the one that ends the turn.")
    device = next(model.parameters()).device
    rows = [with_response(p, ids) for p, group in zip(prompts, responses, strict=True) for ids in group]
    lengths = [len(ids) for group in responses for ids in group]
    seen, repeats = prompts, [len(group) for group in responses]
    if blank_image:
        rows[0] = adapter.with_blank_image(rows[0])
        seen, repeats = [rows[0]], [1]
    batch: dict[str, Any]
    if packed:
        batch = adapter.pack(rows, device=device, see=False)
    else:
        batch = adapter.collate([replace(row, vision={}) for row in rows], device=device)
    batch |= vision_inputs(mllm_of(model), adapter, seen, repeats)
    logits, targets = answer_logits(model, batch)
    learnt = torch.zeros_like(batch["labels"], dtype=torch.bool)
    learnt[:, :-1] = batch["labels"][:, 1:] != IGNORE
    states = processor.states(batch["input_ids"])[learnt]
    logits = processor.restrict(logits, states)
    sequence = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths)).to(device)
    return ResponseLogits(chosen_log_probs(logits, targets, temperature), logits, sequence)
