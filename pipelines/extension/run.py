"""Makes a checkpoint with mask words out of one without, or out of nothing; no Ray.

OUT/                  what Hugging Face's code reads: weights, config, tokenizer, processor
OUT/lineage.json      the resolved config, the tokenizer's hash, versions
OUT/samtok.json       what the words are; written last, so a folder without it is not finished
"""

import json
import logging
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from pipelines import job as runs
from pipelines import provenance, storage
from pipelines.chats import corpus as chats
from pipelines.extension.config import ExtendMllmConfig
from samtok import folders
from samtok.errors import CheckpointError, ConfigError
from samtok.mllm.adapters import (
    adapter_for,
    load_adapter,
    save_pretrained,
)
from samtok.mllm.folder import FAMILIES, SAMTOK_FILE, read_family
from samtok.mllm.pretrained import load_processor, read_model
from samtok.mllm.rows import extend
from samtok.mllm.tiny.models import build_tiny
from samtok.mllm.tiny.text import default_texts
from samtok.mllm.vocab import MaskVocabulary, mask_words_of
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)

LINEAGE_FILE = "lineage.json"


@dataclass(frozen=True)
class _Words:
    """What the mask tokenizer says about the words.

    Attributes:
        vocabulary: Which they are.
        sha256: Of its weights.
        geometry: What each code adds to a mask embedding, level x code x dim; None for rows of noise.
    """

    vocabulary: MaskVocabulary
    sha256: str
    geometry: Tensor | None


def extend_mllm(config: ExtendMllmConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _extend(config))


def _extend(config: ExtendMllmConfig) -> int:
    runs.refuse_lost_folders(config.out, "off")
    config = _resolved(config)
    words = _words_of(config)
    if config.dry_run:
        sys.stdout.write(provenance.config_json(config))
        sys.stdout.write(f"{config.model or config.tiny}: {words.vocabulary} as words, into {config.out}\n")
        return 0
    if _is_done(config):
        log.info("%s was made by the same config before; nothing to do.", config.out)
        return 0
    with tempfile.TemporaryDirectory(prefix="samtok-") as name:
        folder = Path(name)
        if config.tiny is not None:
            _build(config, words, folder)
        else:
            _extend_folder(config, words, folder)
        adapter = load_adapter(folder)  # what was written must be readable before it counts
        (folder / LINEAGE_FILE).write_text(_lineage(config, words))
        storage.put_folder(folder, config.out, last=SAMTOK_FILE)
    log.info(
        "%s knows %d mask words now, token ids %d to %d.",
        config.out,
        len(words.vocabulary.words),
        min(adapter.word_ids.all),
        max(adapter.word_ids.all),
    )
    return 0


def _resolved(config: ExtendMllmConfig) -> ExtendMllmConfig:
    """Returns the config with absolute places; it can be repeated anywhere."""
    return replace(
        config,
        out=storage.absolute(config.out),
        model=None if config.model is None else storage.absolute(config.model),
        chats=None if config.chats is None else storage.absolute(config.chats),
        tokenizer=storage.absolute(config.tokenizer) if "/" in config.tokenizer else config.tokenizer,
    )


def _words_of(config: ExtendMllmConfig) -> _Words:
    uri, read = config.tokenizer, storage.read_bytes
    if config.rows == "codebooks":
        tokenizer = MaskTokenizer.from_pretrained(uri, read=read)
        assert tokenizer.weights_sha256 is not None
        vectors = tokenizer.quantizer.code_vectors()
        return _Words(MaskVocabulary.of(tokenizer.config), tokenizer.weights_sha256, vectors)
    vocabulary = MaskVocabulary.of(folders.read_config(uri, read=read))
    return _Words(vocabulary, folders.weights_sha256(uri, read=read), None)


def _is_done(config: ExtendMllmConfig) -> bool:
    """Tells whether this config has made the folder; ConfigError if something else is there."""
    found = [file.uri for file in storage.list_files(config.out)]
    if not found:
        return False
    lineage = storage.join(config.out, LINEAGE_FILE)
    same = json.loads(provenance.config_json(config))
    if lineage in found:
        made = storage.read_json(lineage).get("config")
        if made == same and storage.join(config.out, SAMTOK_FILE) in found:
            return True
        if made == same:
            return False  # killed between the first file and the last
    raise ConfigError(
        f"--out {config.out} is not empty (it has {found[0].rpartition('/')[2]}), and was not made by this "
        "config. Choose another folder, or delete this one."
    )


def _build(config: ExtendMllmConfig, words: _Words, folder: Path) -> None:
    texts = default_texts() if config.chats is None else _texts_of(config.chats, words.vocabulary)
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
    )


def _texts_of(uri: str, vocabulary: MaskVocabulary) -> list[str]:
    corpus = chats.load_chat_corpus(uri)
    if (corpus.num_codes, corpus.num_levels) != (vocabulary.num_codes, vocabulary.num_levels):
        raise ConfigError(
            f"--chats {uri} has words of {corpus.num_levels} levels of {corpus.num_codes} codes, --tokenizer "
            f"makes {vocabulary.num_levels} of {vocabulary.num_codes}. Give the tokenizer of the corpus."
        )
    return [chats.text_of(message) for row in chats.rows_of(corpus) for message in row["messages"]]


def _extend_folder(config: ExtendMllmConfig, words: _Words, folder: Path) -> None:
    assert config.model is not None
    with storage.local_folder(config.model) as source:
        family = read_family(source)
        if family not in FAMILIES:
            raise CheckpointError(
                f"--model {config.model} is a {family}; mask words are known for {', '.join(FAMILIES)}."
            )
        processor = load_processor(source)
        if config.rows == "codebooks" and mask_words_of(processor.tokenizer):
            raise ConfigError(
                f"--model {config.model} has mask words already and keeps their rows; --rows codebooks "
                "would draw none. Extend the checkpoint without words, or leave --rows at noise."
            )
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


def _lineage(config: ExtendMllmConfig, words: _Words) -> str:
    body = {
        "config": json.loads(provenance.config_json(config)),
        "tokenizer_sha256": words.sha256,
        "versions": provenance.versions(),
    }
    return json.dumps(body, indent=2) + "\n"
