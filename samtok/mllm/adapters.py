"""Checkpoints of MLLMs with mask words: a folder of Hugging Face's, and ``samtok.json``.

``load_adapter`` finds the family by the folder's ``config.json``. ``samtok.json`` states what the words mean:
levels, codes, and the SHA-256 of the mask tokenizer that they belong to, where that is known.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from samtok.mllm.family import Adapter
from samtok.mllm.folder import read_folder, write_vocabulary
from samtok.mllm.older import make_readable
from samtok.mllm.pretrained import load_processor
from samtok.mllm.registry import family_of
from samtok.mllm.rows import check_rows
from samtok.mllm.vocab import MaskVocabulary


def load_adapter(folder: str | Path) -> Adapter:
    """Loads the adapter of a local checkpoint folder, without its model.

    Without ``samtok.json`` its words are taken for two levels, as in the authors' checkpoints.

    Raises:
        CheckpointError: A file is missing or wrong, the family is unknown, or the text tokenizer does not
            have the words.
    """
    stated = read_folder(folder)
    processor = load_processor(folder)
    adapter = adapter_for(
        stated.family, processor, stated.vocabulary, tokenizer_sha256=stated.tokenizer_sha256
    )
    adapter.thinking = stated.thinking
    return adapter


def adapter_for(
    family: str, processor: ProcessorMixin, vocabulary: MaskVocabulary, *, tokenizer_sha256: str | None = None
) -> Adapter:
    """Returns the adapter of a family; CheckpointError if there is none or the processor lacks the words."""
    return family_of(family).load("adapter")(processor, vocabulary, tokenizer_sha256=tokenizer_sha256)


def save_pretrained(
    model: PreTrainedModel, adapter: Adapter, folder: str | Path, *, state: Mapping[str, Tensor] | None = None
) -> None:
    """Writes model, processor and, last, ``samtok.json``; ``load_adapter`` and any HF code read the folder,
    that of transformers 4.57 too.

    ``state`` is the model's whole state, where its own weights are spread over workers or of another type;
    the type of its first one is stated for all.

    Raises:
        CheckpointError: Model or tokenizer lack the adapter's words; nothing is written then.
    """
    adapter.vocabulary.check(adapter.tokenizer)
    check_rows(model, len(adapter.tokenizer))
    model.save_pretrained(folder, state_dict=None if state is None else dict(state))
    adapter.processor.save_pretrained(folder)
    if state is not None:
        _state_precision(Path(folder) / "config.json", next(iter(state.values())).dtype)
    if family_of(adapter.family).older:
        make_readable(folder)
    write_vocabulary(folder, adapter.vocabulary, adapter.tokenizer_sha256, thinking=adapter.thinking)


def _state_precision(file: Path, dtype: torch.dtype) -> None:
    """States the type of weights that are not the model's own; transformers states that of its own."""
    name = str(dtype).removeprefix("torch.")

    def state(body: dict[str, Any]) -> dict[str, Any]:
        told = {key: name for key in ("dtype", "torch_dtype") if key in body}
        return {key: state(part) if isinstance(part, dict) else part for key, part in body.items()} | told

    file.write_text(json.dumps(state(json.loads(file.read_text())), indent=2, sort_keys=True) + "\n")
