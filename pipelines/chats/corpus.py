"""Chat corpora for whoever reads them: training, generation, metrics, rewards. Loads neither torch nor Ray.

for row in rows_of(load_chat_corpus("runs/chats")): turns_of(row), answer_words(row)
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import shards, storage
from samtok.errors import ConfigError, DataError
from samtok.mllm.folder import MllmFolder

if TYPE_CHECKING:
    from samtok.mllm.chat import Turn
    from samtok.mllm.family import Adapter


@dataclass(frozen=True)
class ChatShard:
    """One file of a chat corpus, in row groups of ``ROW_GROUP_ROWS`` rows."""

    uri: str
    rows: int


@dataclass(frozen=True)
class ChatCorpus:
    """A finished chat corpus."""

    uri: str
    manifest: Mapping[str, Any]  # ``totals`` has ``samples_out``, and ``gres/samples_out`` and so on
    shards: tuple[ChatShard, ...]  # its files in order

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def num_codes(self) -> int:
        """Codes per level of the words."""
        return self.manifest["fingerprint"]["num_codes"]

    @property
    def num_levels(self) -> int:
        """Codes of a word."""
        return self.manifest["fingerprint"]["num_levels"]

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 of the tokenizer's weights; None if the texts were imported."""
        return self.manifest["fingerprint"]["weights_sha256"]

    @property
    def thinking(self) -> bool:
        """Whether its answers have thoughts before them (jobs/cold_start.py)."""
        return bool(self.manifest["fingerprint"].get("thinking"))

    @property
    def digest(self) -> str:
        """Hash of the contents, wherever the corpus lies: of its settings and its data files."""
        files = [record["data"]["sha256"] for record in self.manifest["shards"]]
        return shards.digest([dict(self.manifest["fingerprint"]), files])


def load_chat_corpus(uri: str, *, flag: str | None = None) -> ChatCorpus:
    """Reads the manifest of a finished chat corpus.

    Raises:
        ConfigError: If it is not finished, where a flag names it; names the command that makes it.
        DataError: If it is not finished otherwise, or no corpus of chats.
    """
    uri = uri.rstrip("/")
    if flag is None:
        manifest = shards.load_manifest(uri)
    else:
        manifest = shards.require_manifest(uri, flag=flag, job="compose_dialogues")
    kind = shards.kind_of(manifest["fingerprint"])
    if kind != "chat":
        raise DataError(
            f"{uri} is a corpus of {kind}, expected one of chats: the --out of jobs/compose_dialogues.py."
        )
    files = tuple(
        ChatShard(storage.join(uri, record["data"]["file"]), record["counts"]["samples_out"])
        for record in manifest["shards"]
    )
    return ChatCorpus(uri, manifest, files)


def read_group_table(corpus: ChatCorpus, *, shard: int, group: int) -> pa.Table:
    """Reads the rows ``group * ROW_GROUP_ROWS`` and following of one shard, in the shape of ``CHAT_ROW``."""
    with storage.open_input(corpus.shards[shard].uri) as file:
        return pq.ParquetFile(file).read_row_group(group)


def rows_of(corpus: ChatCorpus) -> Iterator[dict[str, Any]]:
    """Yields all samples in order, holding one row group at a time."""
    for shard in corpus.shards:
        yield from rows_of_shard(shard)


def rows_of_shard(shard: ChatShard) -> Iterator[dict[str, Any]]:
    """Yields the samples of one shard in order."""
    with storage.open_input(shard.uri) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            yield from parquet.read_row_group(group).to_pylist()


def turns_of(row: Mapping[str, Any]) -> "list[Turn]":
    """Returns the messages of a chat row as a dialogue in memory."""
    from samtok.mllm.chat import Turn  # loads torch

    unlearnt = unlearnt_of(row)
    return [
        Turn(
            message["role"],
            tuple(part["text"] if part["text"] is not None else part["image"] for part in message["content"]),
            learnt=place not in unlearnt,
        )
        for place, message in enumerate(row["messages"])
    ]


def unlearnt_of(row: Mapping[str, Any]) -> frozenset[int]:
    """Returns the places of answers that only stand before later ones (``unlearnt`` of a row's meta)."""
    return frozenset(json.loads(row.get("meta") or "{}").get("unlearnt", ()))


def text_of(message: Mapping[str, Any]) -> str:
    """Returns the text of one message, without its images."""
    return "".join(part["text"] for part in message["content"] if part["text"] is not None)


def answer_words(row: Mapping[str, Any]) -> list[list[tuple[int, ...]]]:
    """Returns the true codes of each assistant's message, in the order of its words; none is a no-target.

    Raises:
        DataError: ``missing_mask`` if a message names a mask that the row does not have.
    """
    codes = {mask["mask_id"]: tuple(mask["codes"]) for mask in row["masks"]}
    found = []
    for message in row["messages"]:
        missing = [mask_id for mask_id in message["mask_ids"] if mask_id not in codes]
        if missing:
            raise DataError(
                f"sample {row['sample_id']!r} names the mask {missing[0]!r}, which it does not have",
                reason="missing_mask",
            )
        if message["role"] == "assistant":
            found.append([codes[mask_id] for mask_id in message["mask_ids"]])
    return found


@dataclass(frozen=True)
class Words:
    """The mask words of something that a flag names."""

    where: str  # the flag with its value
    num_codes: int
    num_levels: int
    sha256: str | None  # of the weights of their mask tokenizer; None where not known, then not compared

    @classmethod
    def of_model(cls, where: str, model: "MllmFolder | Adapter") -> "Words":
        """Returns the words of an MLLM."""
        vocabulary = model.vocabulary
        return cls(where, vocabulary.num_codes, vocabulary.num_levels, model.tokenizer_sha256)

    @classmethod
    def of_chats(cls, where: str, corpus: ChatCorpus) -> "Words":
        """Returns the words of a chat corpus."""
        return cls(where, corpus.num_codes, corpus.num_levels, corpus.weights_sha256)


def require_same_words(first: Words, *others: Words, remedy: str) -> None:
    """Makes sure that one word means one mask to all of them.

    Raises:
        ConfigError: Names two that differ, and ends with ``remedy``.
    """
    for other in others:
        if (other.num_codes, other.num_levels) != (first.num_codes, first.num_levels):
            raise ConfigError(
                f"{other.where} has words of {other.num_levels} x {other.num_codes} codes, {first.where} of "
                f"{first.num_levels} x {first.num_codes}. {remedy}"
            )
    known = [words for words in (first, *others) if words.sha256 is not None]
    for other in known[1:]:
        if other.sha256 != known[0].sha256:
            raise ConfigError(
                f"{other.where} and {known[0].where} have the words of different mask tokenizers "
                f"({other.sha256:.12} and {known[0].sha256:.12}), so equal words mean different "
                f"masks. {remedy}"
            )
