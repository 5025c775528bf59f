"""Makes a checkpoint with mask words out of one without, or out of nothing."""

import json
import logging
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from pipelines import provenance, storage
from pipelines.chats import corpus as chats
from pipelines.extension.config import ExtendMllmConfig
from pipelines.extension.prepare import LINEAGE_FILE
from samtok import folders
from samtok.checkpoint import to_authors
from samtok.mllm.adapters import adapter_for, load_adapter, save_pretrained
from samtok.mllm.folder import SAMTOK_FILE, read_family
from samtok.mllm.image_size import limit_pixels
from samtok.mllm.pretrained import load_processor, read_model
from samtok.mllm.rows import extend
from samtok.mllm.tiny.models import build_tiny
from samtok.mllm.tiny.text import default_texts
from samtok.mllm.vocab import MaskVocabulary
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Words:
    """What is known of the words from their mask tokenizer.

    Attributes:
        vocabulary: Which they are.
        sha256: Of its weights.
        geometry: What each code adds to a mask embedding, level x code x dim; None for rows of noise.
        files: Of the tokenizer, to lie beside the model.
    """

    vocabulary: MaskVocabulary
    sha256: str
    geometry: Tensor | None
    files: dict[str, bytes]


def extend_model(config: ExtendMllmConfig) -> range:
    """Writes the checkpoint; returns the token ids from the first to the last mask word."""
    words = _words_of(config)
    with tempfile.TemporaryDirectory(prefix="samtok-") as name:
        folder = Path(name)
        if config.tiny is not None:
            _build(config, words, folder)
        else:
            _extend_folder(config, words, folder)
        for name, data in words.files.items():
            (folder / name).write_bytes(data)
        adapter = load_adapter(folder)  # what was written must be readable before it counts
        lineage = {
            "config": provenance.as_json(config),
            "tokenizer_sha256": words.sha256,
            "versions": provenance.versions(),
        }
        (folder / LINEAGE_FILE).write_text(json.dumps(lineage, indent=2) + "\n")
        storage.put_folder(folder, config.out, last=SAMTOK_FILE)
    return range(min(adapter.word_ids.all), max(adapter.word_ids.all) + 1)


def _words_of(config: ExtendMllmConfig) -> _Words:
    uri, read = config.tokenizer, storage.read_bytes
    if config.rows == "noise" and not config.carry_tokenizer:
        vocabulary = MaskVocabulary.of(folders.read_config(uri, read=read))
        return _Words(vocabulary, folders.weights_sha256(uri, read=read), None, {})
    tokenizer = MaskTokenizer.from_pretrained(uri, read=read)
    assert tokenizer.weights_sha256 is not None
    vectors = tokenizer.quantizer.code_vectors() if config.rows == "codebooks" else None
    sam2 = None if config.sam2 is None else read(config.sam2)
    files = to_authors(tokenizer, sam2=sam2) if config.carry_tokenizer else {}
    return _Words(MaskVocabulary.of(tokenizer.config), tokenizer.weights_sha256, vectors, files)


def _build(config: ExtendMllmConfig, words: _Words, folder: Path) -> None:
    texts = default_texts()
    if config.chats is not None:
        rows = islice(chats.rows_of(chats.load_chat_corpus(config.chats)), config.limit)
        texts = [chats.text_of(message) for row in rows for message in row["messages"]]
    assert config.tiny is not None
    build_tiny(
        config.tiny,
        folder,
        vocabulary=words.vocabulary,
        texts=texts,
        seed=config.seed,
        config=config.numbers,
        tokenizer_sha256=words.sha256,
        geometry=words.geometry,
        pretrained_vision=config.vision == "tiny",
        min_pixels=config.image.min_pixels,
        max_pixels=config.image.max_pixels,
    )


def _extend_folder(config: ExtendMllmConfig, words: _Words, folder: Path) -> None:
    assert config.model is not None
    with storage.local_folder(folders.resolve(config.model, read=storage.read_bytes)) as source:
        family = read_family(source)
        processor = load_processor(source)
        limit_pixels(processor, min_pixels=config.image.min_pixels, max_pixels=config.image.max_pixels)
        model = read_model(source)
        extend(
            model,
            processor.tokenizer,
            words.vocabulary,
            seed=config.seed,
            pad_to_multiple_of=config.pad_to_multiple_of,
            geometry=words.geometry,
        )
        adapter = adapter_for(family, processor, words.vocabulary, tokenizer_sha256=words.sha256)
        save_pretrained(model, adapter, folder)
