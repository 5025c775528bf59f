"""Checkpoints of MLLMs that speak mask words: a folder of Hugging Face's, and ``samtok.json``.

``load_adapter`` finds the family by the folder's ``config.json``. ``samtok.json`` says what the words mean:
levels, codes, and the SHA-256 of the mask tokenizer that they belong to, where that is known.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from samtok.errors import CheckpointError
from samtok.mllm.family import Adapter, Picture
from samtok.mllm.folder import (
    SAMTOK_FILE,
    load_processor,
    read_family,
    read_vocabulary,
    write_vocabulary,
)
from samtok.mllm.loss import answer_logits, answer_loss
from samtok.mllm.perception_lm import PerceptionLMAdapter
from samtok.mllm.qwen import Qwen2_5VLAdapter, Qwen3VLAdapter
from samtok.mllm.vocab import MaskVocabulary, infer

__all__ = [
    "FAMILIES",
    "SAMTOK_FILE",
    "Adapter",
    "Picture",
    "adapter_for",
    "answer_logits",
    "answer_loss",
    "load_adapter",
    "load_processor",
    "read_family",
    "save_pretrained",
]

FAMILIES: dict[str, type[Adapter]] = {
    kind.family: kind for kind in (Qwen2_5VLAdapter, Qwen3VLAdapter, PerceptionLMAdapter)
}
"""Adapters by ``model_type``."""


def load_adapter(folder: str | Path, *, read: Callable[[str], bytes] | None = None) -> Adapter:
    """Loads the adapter of a checkpoint folder, without its model.

    Args:
        folder: A local folder as ``save_pretrained`` or Hugging Face writes it. Without ``samtok.json`` its
            words are taken for two levels, as in the authors' checkpoints.
        read: Reads a file by its path, so that callers can bring their own errors and retries; the processor
            is read by transformers.

    Raises:
        CheckpointError: A file is missing or wrong, the family is unknown, or the text tokenizer does not
            have the words.
    """
    family = read_family(folder, read=read)
    kind = _kind_of(family)
    processor = load_processor(folder)
    stated = read_vocabulary(folder, read=read)
    if stated is None:
        vocabulary, sha256 = infer(processor.tokenizer, where=str(folder)), None
    else:
        vocabulary, sha256 = stated
    return kind(processor, vocabulary, tokenizer_sha256=sha256)


def adapter_for(
    family: str,
    processor: ProcessorMixin,
    vocabulary: MaskVocabulary,
    *,
    tokenizer_sha256: str | None = None,
) -> Adapter:
    """Returns the adapter of a family; CheckpointError if there is none or the processor lacks the words."""
    return _kind_of(family)(processor, vocabulary, tokenizer_sha256=tokenizer_sha256)


def save_pretrained(
    model: PreTrainedModel,
    adapter: Adapter,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes model, processor and ``samtok.json`` to a folder; ``load_adapter`` and any HF code read it.

    Args:
        model: The model.
        adapter: Its adapter.
        folder: Where to write; ``samtok.json`` comes last.
        state: Its whole state, where the model's own weights are spread over workers.

    Raises:
        CheckpointError: Model and tokenizer do not speak the adapter's words; nothing is written then.
    """
    adapter.vocabulary.check(adapter.tokenizer, model)
    model.save_pretrained(folder, state_dict=None if state is None else dict(state))
    adapter.processor.save_pretrained(folder)
    write_vocabulary(folder, adapter.vocabulary, adapter.tokenizer_sha256)


def _kind_of(family: str) -> type[Adapter]:
    if family not in FAMILIES:
        raise CheckpointError(
            f"There is no adapter for {family!r}; known families are {', '.join(FAMILIES)}. A new one is a "
            "subclass of samtok.mllm.family.Adapter."
        )
    return FAMILIES[family]
