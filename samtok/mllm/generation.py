"""Answers of an MLLM: batched generation with transformers, greedy or sampled, with or without grammar."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.grammar import MaskWordGrammar, SuppressTokens
from samtok.mllm.rows import check_rows


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    adapter: Adapter,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    grammar: bool = True,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Generates one answer per prompt, all in one batch, padded on the left.

    Places of images and rows of the padded vocabulary are never generated, with or without the grammar: a
    place without an image ends the next forward. No other filter is on, so that a learner who divides logits
    by the temperature and applies the same processor sees the probabilities that were sampled from.

    Args:
        model: The model, on any device; its mode is as before afterwards.
        prompts: From ``Adapter.encode_prompt``; no prompts give no answers.
        max_new_tokens: Most tokens of an answer. An answer cut there can end inside a mask word.
        temperature: Of the sampling; 0 takes the likeliest token.
        seed: Of the sampling; equal batches with equal seeds give equal answers on one device.

    Returns:
        New token ids per prompt, up to and with the token that ends the turn, if it came.

    Raises:
        CheckpointError: The model has fewer rows than the adapter's tokenizer has tokens, or lost its tie.
        ValueError: For a temperature below 0 or ``max_new_tokens`` below 1.
    """
    if temperature < 0 or max_new_tokens < 1:
        raise ValueError(
            f"temperature must be >= 0 and max_new_tokens >= 1, got {temperature} and {max_new_tokens}."
        )
    if not prompts:
        return []
    check_rows(model, len(adapter.tokenizer))  # the tokenizer was checked with the adapter
    batch = adapter.collate(prompts, side="left", device=model.device)
    processors = [processor_of(adapter, grammar=grammar)]
    settings = settings_of(adapter, max_new_tokens, temperature)
    new = run_generate(model, batch, processors, settings, seed=seed)
    return [until_stop(row, adapter.stop_ids) for row in new.tolist()]


def run_generate(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    processors: Sequence[LogitsProcessor],
    settings: GenerationConfig,
    *,
    seed: int,
) -> Int[Tensor, "batch new"]:
    """Runs transformers' generation on a batch padded on the left; returns the new tokens, padded.

    Of the checkpoint's own ``generation_config.json`` nothing holds: any of its three dozen settings changes
    what is drawn, behind the recorder of log-probabilities. It is back in place afterwards, as are the mode
    of the model and the state of random generators.
    """
    inputs = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    devices = [model.device] if model.device.type == "cuda" else []
    training, theirs = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()  # a checkpoint's fills in what settings leave out
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            rows = model.generate(  # pyright: ignore[reportCallIssue]
                **inputs, generation_config=settings, logits_processor=LogitsProcessorList(processors)
            )
    finally:
        model.train(training)
        model.generation_config = theirs
    return rows[:, inputs["input_ids"].shape[1] :]


def processor_of(adapter: Adapter, *, grammar: bool) -> SuppressTokens:
    """Returns what restricts each next token: the grammar, or only what is never generated."""
    num_tokens = len(adapter.tokenizer)
    if grammar:
        return MaskWordGrammar(adapter.word_ids, num_tokens, adapter.suppressed_ids)
    return SuppressTokens(num_tokens, adapter.suppressed_ids)


def settings_of(adapter: Adapter, max_new_tokens: int, temperature: float) -> GenerationConfig:
    """States every filter that transformers would set by default."""
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(adapter.stop_ids),
        pad_token_id=adapter.pad_id,
        repetition_penalty=1.0,
        use_cache=True,
        **(sampling if temperature else {"do_sample": False}),
    )


def until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """Cuts new tokens, which are padded, behind the token that ends the turn."""
    ends = [position for position, id_ in enumerate(ids) if id_ in stop_ids]
    return ids[: ends[0] + 1] if ends else ids
