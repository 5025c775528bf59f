"""Checks an extension before anything runs: model, words, chats, and what is in --out. Loads no torch."""

from pipelines import provenance, storage
from pipelines.chats.corpus import load_chat_corpus
from pipelines.extension.config import ExtendMllmConfig, ImageConfig
from pipelines.inputs import require_model, require_tokenizer
from samtok import folders
from samtok.errors import CheckpointError, ConfigError
from samtok.mllm.folder import SAMTOK_FILE, read_family, read_folder
from samtok.mllm.registry import Family, family_of, known
from samtok.mllm.vocab import MaskVocabulary

LINEAGE_FILE = "lineage.json"


def prepare(config: ExtendMllmConfig) -> MaskVocabulary:
    """Checks a config with absolute places before weights are read; returns the words.

    Raises:
        SamtokError: For a model, a tokenizer or chats that cannot be used together.
    """
    require_tokenizer(config.tokenizer)
    vocabulary = MaskVocabulary.of(folders.read_config(config.tokenizer, read=storage.read_bytes))
    if config.model is not None:
        require_model(config.model)
        place = folders.resolve(config.model, read=storage.read_bytes)
        try:
            family = family_of(read_family(place, read=storage.read_bytes))
        except CheckpointError as error:
            raise CheckpointError(f"--model {config.model}: {error}") from error
        _check_words(config, config.model)
    else:
        family = _tiny(config)
    if config.image != ImageConfig() and not family.sized:
        raise ConfigError(
            f"--.image.min-pixels and --.image.max-pixels: a {family.name} has no limits of pixels. Leave "
            "them out, or give None for both.",
            owner=config,
        )
    if config.chats is not None:
        _check_chats(config, config.chats, vocabulary)
    is_done(config)
    return vocabulary


def _tiny(config: ExtendMllmConfig) -> Family:
    families = {name: family for name, family in known().items() if family.tiny}
    if config.tiny not in families:
        raise ConfigError(
            f"--.tiny {config.tiny} is no family that can be built tiny; give one of {', '.join(families)}.",
            owner=config,
        )
    return families[config.tiny]


def _check_words(config: ExtendMllmConfig, model: str) -> None:
    """Refuses what does not fit the words that a model has already; it keeps their rows."""
    try:
        place = folders.resolve(model, read=storage.read_bytes)
        sha256 = read_folder(place, read=storage.read_bytes).tokenizer_sha256
    except CheckpointError:
        return  # it has none
    if config.rows == "codebooks":
        raise ConfigError(
            f"--.model {model} has mask words already and keeps their rows; --.rows codebooks "
            "would draw none. Extend the checkpoint without words, or leave --.rows at noise.",
            owner=config,
        )
    if sha256 not in (None, folders.weights_sha256(config.tokenizer, read=storage.read_bytes)):
        raise ConfigError(
            f"--.model {model} has the words of another mask tokenizer than --.tokenizer {config.tokenizer} "
            f"(its samtok.json names SHA-256 {sha256}). Give that one, or extend the checkpoint without "
            "words.",
            owner=config,
        )


def _check_chats(config: ExtendMllmConfig, uri: str, vocabulary: MaskVocabulary) -> None:
    corpus = load_chat_corpus(uri, flag="--chats")
    if (corpus.num_codes, corpus.num_levels) != (vocabulary.num_codes, vocabulary.num_levels):
        raise ConfigError(
            f"--.chats {uri} has words of {corpus.num_levels} levels of {corpus.num_codes} codes, "
            f"--.tokenizer makes {vocabulary.num_levels} of {vocabulary.num_codes}. Give the tokenizer "
            "of the corpus.",
            owner=config,
        )


def is_done(config: ExtendMllmConfig) -> bool:
    """Returns whether this config has made the folder.

    Raises:
        ConfigError: If something else is there.
    """
    found = [file.uri for file in storage.list_files(config.out)]
    if not found:
        return False
    lineage = storage.join(config.out, LINEAGE_FILE)
    if lineage in found and _decisive(storage.read_json(lineage).get("config")) == _decisive(
        provenance.as_json(config)
    ):
        return storage.join(config.out, SAMTOK_FILE) in found  # else killed between first and last file
    raise ConfigError(
        f"--.out {config.out} is not empty (it has {found[0].rpartition('/')[2]}), and was not made by this "
        "config. Choose another folder, or delete this one.",
        owner=config,
    )


def _decisive(config: dict | None) -> dict:
    """Returns the settings that decide the model, also of one from before there were the others."""
    free = ("out", "tracking", "dry_run", "max_reject_rate")
    return {name: value for name, value in _given(config or {}).items() if name not in free}


def _given(settings: dict) -> dict:
    """Returns the settings without those that are unset."""
    found = {name: _given(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in found.items() if value not in (None, False, {})}
