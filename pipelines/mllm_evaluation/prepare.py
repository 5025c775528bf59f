"""What is known before anything runs: whether model, tokenizer and chats fit; the fingerprint, the plan."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

from pipelines import schema, shards, storage
from pipelines.chats.corpus import ChatCorpus, Words, load_chat_corpus, require_same_words, rows_of
from pipelines.chats.lost import NOTHING_LOST, LostQuestions
from pipelines.chats.psg import PsgVocabulary
from pipelines.chats.source import ChatSource, require_images
from pipelines.cluster import with_device
from pipelines.generation import models
from pipelines.generation.config import WHERE
from pipelines.generation.environment import check_engine
from pipelines.ingestion.reader import Input
from pipelines.inputs import require_tokenizer
from pipelines.judging.open_judge import check_judge
from pipelines.mllm_evaluation.answers import Scoring
from pipelines.mllm_evaluation.benchmarks import BENCHMARKS
from pipelines.mllm_evaluation.config import EvaluateMllmConfig
from pipelines.mllm_evaluation.rows import Turns, inputs_of
from pipelines.planning.plans import left_of, open_plan
from samtok import folders
from samtok.config import MaskTokenizerConfig
from samtok.errors import ConfigError, DataError
from samtok.metrics.referring import MODES, Mode
from samtok.metrics.text_masks import Reading
from samtok.metrics.text_similarity import load_bert

CODE_VERSION = 6
"""Raised with every change of the code that changes answers or scores (test_fingerprints.py)."""

METRICS = "metrics.json"

MAX_PEEKED = 1000
"""Chats that a dry run reads."""

Beside = Mapping[str, Mapping[str, Any]]
"""The metrics of other runs by the names that they are shown with."""


class Asked(NamedTuple):
    """What is asked, and how answers are read."""

    tasks: tuple[str, ...]
    turns: Turns
    thinking: bool
    masks: Literal["several", "first", "none"]
    keeps_masks: bool


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that was checked: everything it needs is there and fits."""

    config: EvaluateMllmConfig  # with absolute places, and all chosen that was left to the benchmark
    corpus: ChatCorpus
    asked: Asked
    fingerprint: Mapping[str, Any]  # all that decides the rows; a run with another one is refused
    readings: Mapping[Mode, Reading]  # how texts become masks in each mode of scoring
    beside: Beside

    def plan(self) -> shards.Plan:
        """Returns the plan of an earlier run of the same job, or makes it.

        Raises:
            ConfigError: If the earlier run had other settings.
            DataError: If the chats have no question of the wanted tasks, or no masks to compare with.
        """
        config = self.config
        return open_plan(config.out, self.fingerprint, self._inputs, shard_rows=config.shard_rows)

    def _inputs(self) -> Iterator[Input]:
        config = self.config
        found = self._found(rows_of(self.corpus))
        if not found:
            there = sorted({row["task"] for row in rows_of(self.corpus)})
            raise DataError(
                f"{config.chats} has no questions of the tasks {', '.join(self.asked.tasks)}; it has "
                f"{', '.join(there) or 'none at all'}. Choose --tasks, or compose chats for "
                f"{config.benchmark}."
            )
        yield from found[: config.limit]

    def _found(self, rows: Iterator[dict[str, Any]]) -> list[Input]:
        asked = self.asked
        return inputs_of(rows, tasks=asked.tasks, turns=asked.turns, keeps_masks=asked.keeps_masks)

    @property
    def scoring(self) -> Scoring:
        """What decides the numbers besides the answers; of a part of the corpus nothing is called lost. Loads
        torch if phrases are compared by a text encoder."""
        lost = LostQuestions.of(self.corpus.manifest, self.asked.tasks)
        if self.config.limit is not None:
            lost = NOTHING_LOST
        return Scoring(
            num_codes=self.fingerprint["num_codes"],
            num_levels=self.fingerprint["num_levels"],
            min_pixels=self.config.min_pixels,
            thinking=self.asked.thinking,
            history=self.config.history,
            psg=PsgVocabulary.read(self.config.psg_vocabulary),
            similarity=None if self.config.gcg_similarity is None else load_bert(self.config.gcg_similarity),
            lost=lost,
        )

    def size(self) -> str:
        """Returns how much there is to do, in one line; reads at most ``MAX_PEEKED`` chats.

        Raises:
            ConfigError: If an earlier run had other settings.
        """
        config = self.config
        left = left_of(config.out, self.fingerprint)
        if left is not None:
            return left
        rows = islice(rows_of(self.corpus), MAX_PEEKED)
        found = self._found(rows)
        whole = self.corpus.num_samples <= MAX_PEEKED or len(found) > (config.limit or len(found))
        images = found[: config.limit]
        questions, count = sum(item.num_masks or 0 for item in images), -(-len(images) // config.shard_rows)
        return f"{'' if whole else 'at least '}{len(images)} images, {questions} questions, {count} shards"


def prepare(config: EvaluateMllmConfig) -> Evaluation:
    """Checks what can be known before Ray starts of a config with absolute places.

    Raises:
        ConfigError: If model, tokenizer, chats or a run beside this one are missing or do not fit together.
        CheckpointError: If model or tokenizer cannot be read.
        DataError: If the corpus is none of chats, or its images are not there.
    """
    config = dataclasses.replace(config, worker=with_device(config.worker, on_ray=config.workers > 0))
    corpus = load_chat_corpus(config.chats, flag="--chats")
    require_images(ChatSource(corpus))
    require_tokenizer(config.tokenizer)
    architecture = folders.read_config(config.tokenizer, read=storage.read_bytes)
    tokenizer_sha256 = folders.weights_sha256(config.tokenizer, read=storage.read_bytes)
    model = models.read_folder(config.model, flag="--model")
    quantizer = architecture.quantizer
    require_same_words(
        Words(f"--tokenizer {config.tokenizer}", quantizer.num_codes, quantizer.num_levels, tokenizer_sha256),
        Words.of_model(f"--model {config.model}", model),
        Words.of_chats(f"--chats {config.chats}", corpus),
        remedy="Give the tokenizer that the words were made with.",
    )
    asked = asked_of(config, model_thinks=model.thinking)
    config = _with_room(config, asked)
    check_engine(config.generation, workers=config.workers)
    check_judge(config.judge)
    fingerprint = _fingerprint(config, asked, corpus, architecture, tokenizer_sha256, model.family)
    readings = readings_of(config, asked, quantizer.num_levels)
    return Evaluation(config, corpus, asked, fingerprint, readings, _read_beside(config, fingerprint))


def asked_of(config: EvaluateMllmConfig, *, model_thinks: bool) -> Asked:
    """Chooses what the flags leave to the benchmark and to the model."""
    benchmark = BENCHMARKS[config.benchmark]
    thinking = model_thinks if config.thinking == "auto" else config.thinking == "on"
    return Asked(
        config.tasks or benchmark.tasks,
        config.turns or benchmark.turns,
        thinking,
        benchmark.masks,
        benchmark.keeps_masks,
    )


def _with_room(config: EvaluateMllmConfig, asked: Asked) -> EvaluateMllmConfig:
    """Gives answers as many tokens as the benchmark does, unless a flag says how many."""
    room = config.generation.max_new_tokens or BENCHMARKS[config.benchmark].room(thinking=asked.thinking)
    return dataclasses.replace(config, generation=dataclasses.replace(config.generation, max_new_tokens=room))


def readings_of(config: EvaluateMllmConfig, asked: Asked, num_levels: int) -> dict[Mode, Reading]:
    """Returns the modes of scoring: the authors' scripts know words of two levels only, and of scene graphs
    they need to know what is stuff."""
    several, benchmark = asked.masks == "several", BENCHMARKS[config.benchmark]
    found: dict[Mode, Reading] = {mode: Reading.of(mode, several=several) for mode in MODES}
    if benchmark.all_in_strict:
        found["strict"] = Reading.of("strict", several=True)
    found["strict"] = dataclasses.replace(found["strict"], malformed=config.broken_words)
    has_stuff = config.benchmark != "psg" or bool(PsgVocabulary.read(config.psg_vocabulary).stuff)
    official = "official" in benchmark.modes and num_levels == 2 and has_stuff
    return found if official else {"strict": found["strict"]}


def _fingerprint(
    config: EvaluateMllmConfig,
    asked: Asked,
    corpus: ChatCorpus,
    architecture: MaskTokenizerConfig,
    tokenizer_sha256: str,
    family: str,
) -> dict[str, Any]:
    """How many actors there are is not in it, nor where things lie, but for the images that chats name."""
    return {
        "kind": "predictions",
        "benchmark": config.benchmark,
        "chat": corpus.digest,
        "tasks": sorted(asked.tasks),
        "turns": asked.turns,
        "history": config.history,
        "limit": config.limit,
        "family": family,
        "model_sha256": models.sha256_of(config.model),
        "tokenizer_sha256": tokenizer_sha256,
        "num_codes": architecture.quantizer.num_codes,
        "num_levels": architecture.quantizer.num_levels,
        "grammar": config.grammar,
        "broken_words": config.broken_words,
        "max_image_pixels": config.max_image_pixels,
        "thinking": asked.thinking,
        "zoom_below": config.zoom_below,
        **_lists_of(config),
        "device": config.worker.device,
        "threads_per_actor": config.worker.threads,
        "shard_rows": config.shard_rows,
        **{name: value for name, value in dataclasses.asdict(config.generation).items() if name not in WHERE},
        "dtype": config.precision,
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }


def _lists_of(config: EvaluateMllmConfig) -> dict[str, Any]:
    """Returns what decides single benchmarks alone."""
    if config.benchmark == "psg":
        vocabulary = dataclasses.asdict(PsgVocabulary.read(config.psg_vocabulary))
        return {"psg_vocabulary": shards.digest(vocabulary)}
    return {}


_QUESTIONS = ("benchmark", "chat", "tasks", "turns", "limit")


def questions_digest(fingerprint: Mapping[str, Any]) -> str:
    """Returns what two runs must have in common so that their numbers can stand side by side."""
    return shards.digest({name: fingerprint[name] for name in _QUESTIONS})


def _read_beside(config: EvaluateMllmConfig, fingerprint: Mapping[str, Any]) -> Beside:
    """Reads the numbers of the runs that ``--beside`` names."""
    found = {}
    for text in config.beside:
        name, _, folder = text.partition("=")
        where = storage.join(folder, METRICS)
        if not storage.exists(where):
            raise ConfigError(
                f"--beside {name}: there is no {where}. Finish that run first, or leave it out."
            )
        metrics = storage.read_json(where)
        if metrics.get("measured_with", {}).get("questions") != questions_digest(fingerprint):
            raise ConfigError(
                f"--beside {name}: {folder} answered other questions, so its numbers cannot stand beside "
                "these. Evaluate it with the same --benchmark, --chats, --tasks, --turns and --limit."
            )
        found[name] = metrics
    return found
