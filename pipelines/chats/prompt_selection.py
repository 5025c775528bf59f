"""Which samples of chat corpora become prompts: one pass over a few columns, no text and no image is read."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import shards, storage
from pipelines.chats.corpus import load_chat_corpus
from pipelines.chats.prompts import PromptsConfig, PromptSource
from pipelines.chats.source import ChatSource, require_images
from pipelines.chats.spec import chat_specs_of
from pipelines.storage.threads import map_ahead
from pipelines.training.mixture import check_weights
from samtok.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_THINNING = 0x6E6F6E65
"""First word of the seeds here, so that no other use of the run's seed draws the same numbers."""

_MESSAGES = ("messages.list.element.role", "messages.list.element.mask_ids")
_Judged = dict[tuple[str, int], bool]
"""Whether questions, by sample and place of the answer, were answered right."""
_ANSWERS = ("sample_id", "turn", "truth_codes", "strict.codes", "num_malformed", "problem")


def load_prompts(
    chats: Sequence[str],
    config: PromptsConfig,
    *,
    seed: int,
    limit: int | None = None,
    peek: int | None = None,
    flag: str = "chats",
) -> PromptSource:
    """Chooses the prompts of a run.

    Args:
        chats: Chat corpora, as ``chat_specs_of`` reads them.
        config: Says which of their samples.
        seed: Of the order, and of what ``none_share`` leaves out.
        limit: Take only the first so many fitting prompts of each corpus, before ``none_share``.
        peek: Read no more than so many samples of each corpus.
        flag: The one that names the corpora, without dashes.

    Raises:
        ConfigError: A corpus or evaluation is not finished, corpora are of different words, weights cannot
            work, or failures are of other words.
        DataError: Nothing is left of a corpus, or its images are not there.
    """
    specs = chat_specs_of(chats, flag=flag)
    corpora = [load_chat_corpus(spec.uri, flag=f"--{flag}") for spec in specs]
    limits = [min(filter(None, (spec.limit, peek)), default=None) for spec in specs]
    sources = tuple(map(ChatSource, corpora, limits))
    weights = tuple(spec.weight for spec in specs)
    check_weights(weights)
    _check_sources(sources, weights, config, flag)
    for source in sources:
        require_images(source)
    judged = _judged(config, sources)
    counts: Counter[str] = Counter()
    chosen = [_choose(source, config, limit, judged, counts) for source in sources]
    if config.none_share is not None:
        chosen = _thin(chosen, config.none_share, seed, counts)
    _require_some(sources, chosen, config, flag)
    counts["prompts"] = sum(len(one.places) for one in chosen)
    counts["none"] = sum(int(one.none.sum()) for one in chosen)
    _log(counts)
    kept = tuple(one.places for one in chosen)
    return PromptSource(sources, kept, weights, config.thinking, seed, dict(counts))


def read_columns(source: ChatSource, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields columns of a source's samples, shard by shard, up to its limit; reads some shards at a time."""
    left, wanted = len(source), []
    for shard in source.corpus.shards:
        if min(left, shard.rows) > 0:
            wanted.append((shard.uri, min(left, shard.rows)))
        left -= shard.rows

    def read(part: tuple[str, int]) -> pa.Table:
        with storage.open_input(part[0]) as file:
            return pq.ParquetFile(file).read(columns=list(columns)).slice(0, part[1])

    yield from map_ahead(read, wanted)


@dataclass(frozen=True)
class _Chosen:
    """Samples of one corpus, ascending, and whether each is without a target."""

    places: np.ndarray
    none: np.ndarray

    def only(self, mask: np.ndarray) -> "_Chosen":
        return _Chosen(self.places[mask], self.none[mask])


def _check_sources(
    sources: Sequence[ChatSource], weights: Sequence[float | None], config: PromptsConfig, flag: str
) -> None:
    first = sources[0].corpus
    for source in sources:
        corpus = source.corpus
        if corpus.manifest["fingerprint"].get("thinking"):
            raise ConfigError(
                f"--{flag} {corpus.uri} is of jobs/cold_start.py, so its answers have thoughts in "
                "them. Give the corpus that the thoughts were written for; --prompts.thinking asks for them."
            )
        if (corpus.num_codes, corpus.num_levels) != (first.num_codes, first.num_levels):
            raise ConfigError(
                f"--{flag} {first.uri} and {corpus.uri} have words of {first.num_levels} x "
                f"{first.num_codes} and {corpus.num_levels} x {corpus.num_codes} codes. Tokenize them with "
                "one tokenizer."
            )
    if config.none_share is not None and weights[0] is not None:
        raise ConfigError(
            "--.none-share is a share of all prompts, and weight= in the chat corpora would make it another "
            "share of what is drawn. Leave the weights out (limit= also balances corpora), or give "
            "--.none-share None.",
            owner=config,
        )


def _judged(config: PromptsConfig, sources: Sequence[ChatSource]) -> _Judged | None:
    """Returns which questions of the evaluation ``failures`` were answered right, if one is named."""
    uri = config.failures
    if uri is None:
        return None
    manifest = shards.require_manifest(uri, flag="--prompts.failures", job="evaluate_mllm")
    settings = manifest["fingerprint"]
    if shards.kind_of(settings) != "predictions" or "tokenizer_sha256" not in settings:
        raise ConfigError(
            f"--.failures {uri} is no evaluation, expected the --out of jobs/evaluate_mllm.py.",
            owner=config,
        )
    for source in sources:
        if source.corpus.weights_sha256 not in (None, settings["tokenizer_sha256"]):
            raise ConfigError(
                f"--.failures {uri} was measured with other words than {source.corpus.uri} has. Evaluate "
                "on this corpus.",
                owner=config,
            )
    judged: _Judged = {}
    for record in manifest["shards"]:
        with storage.open_input(storage.join(uri, record["data"]["file"])) as file:
            rows = pq.ParquetFile(file).read(columns=list(_ANSWERS)).to_pylist()
        judged |= {(row["sample_id"], row["turn"]): _is_right(row) for row in rows if row["problem"] is None}
    return judged


def _is_right(row: Mapping[str, Any]) -> bool:
    """Whether all words of the answer are the true ones, in any order, and none is broken."""
    return not row["num_malformed"] and sorted(row["strict"]["codes"]) == sorted(row["truth_codes"])


def _choose(
    source: ChatSource,
    config: PromptsConfig,
    limit: int | None,
    judged: _Judged | None,
    counts: Counter[str],
) -> _Chosen:
    """Returns what of a corpus fits, and counts the rest by the first thing that speaks against it."""
    parts, first = [], 0
    for table in read_columns(source, ("sample_id", "task", *_MESSAGES)):
        turn, none = _last_answers(table["messages"])
        fits = np.ones(len(table), bool)
        if config.tasks:
            known = np.isin(np.asarray(table["task"].to_pylist(), object), config.tasks)
            fits = _leave_out(fits, ~known, "other_task", counts)
        fits = _leave_out(fits, turn < 0, "no_answer", counts)
        if judged is not None:
            keys = zip(table["sample_id"].to_pylist(), turn.tolist(), strict=True)
            right = [judged.get(key) for key in keys]
            for verdict, why in ((None, "not_evaluated"), (True, "right")):
                fits = _leave_out(fits, np.array([one is verdict for one in right], bool), why, counts)
        parts.append(_Chosen(first + np.arange(len(table)), none).only(fits))
        counts["rows"] += len(table)
        first += len(table)
    whole = _Chosen(
        np.concatenate([np.zeros(0, np.int64), *(part.places for part in parts)]),
        np.concatenate([np.zeros(0, bool), *(part.none for part in parts)]),
    )
    most = len(whole.places) if limit is None else limit
    within = np.arange(len(whole.places)) < most
    return whole.only(_leave_out(np.ones_like(within), ~within, "over_limit", counts))


def _leave_out(fits: np.ndarray, bad: np.ndarray, why: str, counts: Counter[str]) -> np.ndarray:
    counts[why] += int((fits & bad).sum())
    return fits & ~bad


def _last_answers(messages: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the place of each chat's last answer, -1 for none after a user, and whether it has no words."""
    lists = messages.combine_chunks()
    flat = lists.flatten()
    ends = np.cumsum(np.asarray(lists.value_lengths(), np.int64))
    starts = np.concatenate([[0], ends[:-1]])
    roles = np.asarray(flat.field("role").to_pylist(), object)
    words = np.asarray(flat.field("mask_ids").value_lengths(), np.int64)
    answers = np.flatnonzero((roles == "assistant") & (np.roll(roles, 1) == "user"))
    last = np.flatnonzero(roles == "assistant")
    at = last[np.maximum(np.searchsorted(last, ends) - 1, 0)] if len(last) else np.full(len(ends), -1)
    good = (at > starts) & (at < ends) & np.isin(at, answers)
    turn = np.where(good, at - starts, -1)
    return turn, good & (words[np.maximum(at, 0)] == 0 if len(words) else good)


def _thin(chosen: Sequence[_Chosen], share: float, seed: int, counts: Counter[str]) -> list[_Chosen]:
    """Leaves out, over all corpora, what is too much of prompts without a target."""
    none = np.concatenate([one.none for one in chosen])
    empty = np.flatnonzero(none)
    if len(none) and len(empty) == len(none):
        raise DataError(
            f"--prompts.none-share {share:g} cannot be reached: none of the {len(none)} prompts has a "
            "target. Add a corpus with targets, or give --prompts.none-share None."
        )
    kept = min(len(empty), round((len(none) - len(empty)) * share / (1 - share)))
    keep = ~none
    keep[np.random.default_rng([_THINNING, seed]).permutation(empty)[:kept]] = True
    counts["too_many_none"] += len(empty) - kept
    ends = np.cumsum([len(one.none) for one in chosen])[:-1]
    return [one.only(part) for one, part in zip(chosen, np.split(keep, ends), strict=True)]


def _require_some(
    sources: Sequence[ChatSource], chosen: Sequence[_Chosen], config: PromptsConfig, flag: str
) -> None:
    for source, one in zip(sources, chosen, strict=True):
        if not len(one.places):
            tasks = f" of the tasks {', '.join(config.tasks)}" if config.tasks else ""
            wrong = "" if config.failures is None else f" that --prompts.failures {config.failures} has wrong"
            raise DataError(
                f"--{flag} {source.corpus.uri} has no prompt left of {len(source)} samples: none "
                f"is an answer{tasks}{wrong}. Leave the corpus out, or ask for less."
            )


def _log(counts: Mapping[str, int]) -> None:
    lost = {name: n for name, n in counts.items() if n and name not in ("rows", "prompts", "none")}
    log.info(
        "%d prompts of %d samples, %d (%.1f%%) of them without a target; left out: %s",
        *(counts["prompts"], counts["rows"], counts["none"]),
        100 * counts["none"] / counts["prompts"],
        ", ".join(f"{count} {name}" for name, count in lost.items()) or "none",
    )
