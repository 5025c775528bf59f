"""What tiny MLLMs read and write: chat templates, sentences, and byte-level BPE trained on them."""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from samtok.shapes import (
    KINDS,
    PALETTE,
    WorldConfig,
    grounded_caption,
    make_scene,
    referring_expressions,
    relations,
)

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Tokens of Qwen's chat format, those that its processor and adapter need, and those around phrases."""

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' and SYSTEM %}"
    "{{ '<|im_start|>system\n' + SYSTEM + '<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen's chat format; SYSTEM stands for the quoted text of its default system turn."""

_NO_THOUGHT = "'<think>\n\n</think>\n\n'"
_ASSISTANT = "{{ '<|im_start|>assistant\n' }}"
QWEN3_5_TEMPLATE = CHATML_TEMPLATE.replace(
    "{% if message['content'] is string %}",
    "{% if loop.last and message['role'] == 'assistant' %}{{ " + _NO_THOUGHT + " }}{% endif %}"
    "{% if message['content'] is string %}",
).replace(
    _ASSISTANT,
    _ASSISTANT
    + "{{ "
    + _NO_THOUGHT
    + " if enable_thinking is defined and not enable_thinking else '<think>\n' }}",
)
"""Qwen3.5's, which opens a thought unless ``enable_thinking`` is off, and drops those of earlier answers."""

LLAMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' and SYSTEM %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' + SYSTEM + '<|eot_id|>' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""PerceptionLM's chat format, likewise."""

_OWN_TOKENS = re.compile(r"<\|mt_[a-z0-9]+\|>|<\|object_ref_(?:start|end)\|>")
_ROLES = ("system\n", "user\n", "assistant\n")
_QUESTIONS = (
    "Segment {} in this image.",
    "Please find {}.",
    "Where is {}? Answer with its mask.",
    "Which region shows {}?",
    "Can you segment {}? If there is none, say so.",
    "Describe the picture and mark what you name.",
    "What is in this region? Give one short phrase.",
    "List every relation between the objects as triplets.",
)
_ANSWERS = (
    "No target.",
    "It is {}.",
    "Sure, {}",
    "There is no such object in this image.",
    '```json\n[{"label": "{}", "mask_2d": "', '"},\n{"label": "', '"}\n]\n```',
)  # fmt: skip


def default_texts() -> list[str]:
    """Returns sentences of the shapes language, questions and answers: the texts of a tiny MLLM."""
    return [*_QUESTIONS, *_ANSWERS] * 8 + [*KINDS, *PALETTE] + list(_sentences())


@functools.cache
def _sentences() -> tuple[str, ...]:
    rng = np.random.default_rng(0)
    texts: list[str] = []
    for index in range(64):
        scene = make_scene(0, index, WorldConfig())
        texts.append(grounded_caption(scene, rng)[0])
        names = [shape.kind for shape in scene.objects]
        texts += [f"{names[i]} {predicate} {names[j]}" for i, predicate, j in relations(scene)[:6]]
        for expression, *_ in referring_expressions(scene, rng):
            texts.append(expression)
            texts.append(_QUESTIONS[len(texts) % 5].format(expression))
    return tuple(texts)


def train_qwen_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Qwen2Tokenizer:
    """Trains Qwen's tokenizer class on texts; any text survives a round trip, up to Unicode's form NFC.

    Mask words and object tokens in the texts are left out. Of the ``vocab_size`` entries 256 are bytes; the
    tokens of the chat format come on top.
    """
    trainee = _trained(texts, vocab_size, Qwen2Tokenizer()._tokenizer.normalizer)
    model = json.loads(trainee.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab={str(token): int(id_) for token, id_ in model["vocab"].items()},
        merges=[tuple(pair) for pair in model["merges"]],  # pyright: ignore[reportArgumentType]
        additional_special_tokens=list(QWEN_TOKENS[1:]),
    )
    tokenizer.model_max_length = 32768
    return tokenizer


def train_llama_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a text tokenizer of Llama 3's kind, as PerceptionLM's; arguments as ``train_qwen_tokenizer``."""
    trainee = _trained(texts, vocab_size)
    trainee.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=trainee,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
        extra_special_tokens={"image_token": "<|image|>", "video_token": "<|video|>"},
        model_max_length=32768,
    )


def _trained(texts: Iterable[str], vocab_size: int, normalizer: Any = None) -> Tokenizer:
    trainee = Tokenizer(BPE())
    if normalizer is not None:
        trainee.normalizer = normalizer
    trainee.pre_tokenizer = Qwen2Tokenizer()._tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    trainee.train_from_iterator(_without_words(texts), trainer)
    return trainee


def _without_words(texts: Iterable[str]) -> Iterator[str]:
    yield from _ROLES * 200  # each turn has one, so they must be tokens of their own
    for text in texts:
        yield from (piece for piece in _OWN_TOKENS.split(text) if piece)
