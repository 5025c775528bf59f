"""Options of ``jobs/evaluate_mllm.py``, and its presets."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

import tyro
from annotated_types import Interval

from pipelines.config import (
    AtLeast0,
    AtLeast1,
    ImageLimit,
    Place,
    PlaceMark,
    Precision,
    RunConfig,
    ShippedPlace,
    WorkerConfig,
    config,
)
from pipelines.generation.config import GenerationConfig
from pipelines.judging.config import JudgeConfig
from samtok.errors import ConfigError

BenchmarkName = Literal[
    "gres",
    "res",
    "rec",
    "gcg",
    "rounds",
    "groundingsuite",
    "dlc",
    "videorefer",
    "mdvp",
    "psg",
    "instances",
    "region_captions",
]
"""Keys of ``benchmarks.BENCHMARKS``, which is not loaded to read flags."""

OF_REGIONS = ("dlc", "mdvp", "videorefer", "region_captions")
"""Benchmarks whose questions name a region."""

JUDGED = ("dlc", "videorefer", "mdvp")
"""Benchmarks whose answers a judge scores."""

THIS_RUN, BASELINE = TAKEN = ("this run", "always No target.")
"""Columns that every table of numbers has."""


def _rewrite(text: str, absolute: Callable[[str], str]) -> str:
    name, equals, folder = text.partition("=")
    return f"{name}={absolute(folder)}" if equals and folder else text


@config
class AnswerConfig(GenerationConfig):
    """How answers are generated."""

    max_new_tokens: AtLeast0 = 0
    """Longest answer in tokens, a thought included; 0 takes what the benchmark's script gives, and 1024 where
    a thought is asked for."""


@config
class EvaluateMllmConfig(ImageLimit, RunConfig):
    """An MLLM answers the questions of a chat corpus in mask words and is scored."""

    MAIN = ("benchmark", "model", "chats", "tokenizer", "out", "beside", "workers", "limit", "precision")

    benchmark: BenchmarkName = "gres"
    """What is scored: a line of the table of benchmarks (docs/benchmarks.md)."""
    thinking: Literal["auto", "on", "off"] = "auto"
    """Ask for a thought before the answer, and score the answer alone; auto does it where the model was
    trained so (samtok.json)."""
    model: ShippedPlace
    """MLLM whose vocabulary has the mask words: a checkpoint folder, local or s3://, or tour-mllm."""
    chats: Place
    """Corpus of chats, as written by jobs/compose_dialogues.py with masks kept."""
    tokenizer: ShippedPlace
    """Mask tokenizer that decodes the words: a shipped name (tiny, tour), a folder (local or s3://) or
    a hub id."""
    precision: Precision = "float32"
    """Type of the model's weights and arithmetic."""
    tasks: tuple[str, ...] = ()
    """Tasks of chat rows to ask; by default those of the benchmark, such as grounding and res for rec."""
    turns: Literal["last", "first", "all"] | None = None
    """Which questions of a chat are asked; by default the benchmark's, mostly the last one."""
    history: Literal["true", "predicted"] = "true"
    """What stands before later questions of a chat: the answers of the corpus, or the model's own."""
    grammar: bool = True
    """Let mask words be well-formed only; without it a model may write broken ones, which are counted."""
    broken_words: Literal["drop", "depth1"] = "drop"
    """In strict mode: leave a broken word out, or decode its first code alone. Official mode repairs it."""
    gcg_similarity: ShippedPlace | None = None
    """gcg: folder or hub id of bert-base-uncased, by which the recall of phrases compares them; without it
    there is the recall of equal phrases only."""
    psg_vocabulary: Place | None = None
    """psg: JSON file with the lists categories and predicates, outside of which nothing is scored, and stuff,
    the categories without instances, without which there is no official mode; or OpenPSG's psg.json."""
    min_pixels: AtLeast0 = 0
    """GRES: a predicted mask with fewer pixels counts as no target; 0 for the paper's numbers."""
    zoom_below: Annotated[float, Interval(gt=0, le=1)] | None = None
    """dlc, mdvp, videorefer, region_captions: show a region whose box covers less of the image than this a
    second time, cut out and enlarged, with its word there. The authors take 0.3 for DLC-Bench, else 0.2."""
    judge: JudgeConfig = JudgeConfig()
    """dlc, videorefer, mdvp: who judges the descriptions; of mdvp a model that sees."""
    generation: AnswerConfig = AnswerConfig()
    workers: AtLeast0 = 1
    """Actors, each with the model and the mask tokenizer; 0 works in this process, without Ray."""
    worker: WorkerConfig = WorkerConfig()
    num_cpus: AtLeast1 | None = None
    """Logical CPUs of a Ray that the job starts; by default the machine's, and at least enough."""
    beside: tuple[Annotated[str, PlaceMark(rewrite=_rewrite)], ...] = ()
    """Finished runs to show beside this one, each as NAME=RUN_FOLDER, with the same questions."""
    shard_rows: AtLeast1 = 32
    """Images per shard: what a killed run repeats at most, per actor."""
    report_pictures: AtLeast0 = 12
    """Questions drawn at random, and as many of the best and of the worst; 0 writes no report."""

    def check(self) -> None:
        """Refuses runs beside this one without a name of their own."""
        super().check()
        for text in self.beside:
            name, _, folder = text.partition("=")
            if not name or not folder:
                raise ConfigError(f"--.beside must be NAME=RUN_FOLDER, got {text}.")
            if name in TAKEN:
                raise ConfigError(f"--.beside {name}: the tables have a column of that name; choose another.")
        if self.judge.kind != "none" and self.benchmark not in JUDGED:
            raise ConfigError(f"--.judge.kind is for --.benchmark {', '.join(JUDGED)}; leave it out.")
        if self.zoom_below is not None and self.benchmark not in OF_REGIONS:
            raise ConfigError(f"--.zoom-below is for --.benchmark {', '.join(OF_REGIONS)}; leave it out.")
        names = [text.partition("=")[0] for text in self.beside]
        if len(set(names)) < len(names):
            raise ConfigError(f"--.beside names a run twice: {', '.join(names)}.")


def _tour(
    tour: str, benchmark: BenchmarkName, max_new_tokens: int, *, name: str = "evaluation"
) -> tuple[EvaluateMllmConfig, EvaluateMllmConfig]:
    """Returns how the trained model of a tour is evaluated, and the untrained one that stands beside it."""
    untrained = EvaluateMllmConfig(
        benchmark=benchmark,
        model=f"runs/{tour}/untrained",
        chats=f"runs/{tour}/chats-val",
        out=f"runs/{tour}/{name}-untrained",
        tokenizer="tour",
        generation=AnswerConfig(max_new_tokens=max_new_tokens, batch_size=64),
        report_pictures=0,
    )
    trained = dataclasses.replace(
        untrained,
        model=f"runs/{tour}/mllm/final",
        out=f"runs/{tour}/{name}",
        beside=(f"untrained={untrained.out}",),
        report_pictures=12,
    )
    return trained, untrained


_TOUR, _TOUR_UNTRAINED = _tour("tour", "gres", 40)
_TOUR_THINKING = dataclasses.replace(
    _TOUR_UNTRAINED,
    model="tour-mllm",
    chats="runs/tour-thinking/chats-val",
    out="runs/tour-thinking/evaluation-shipped",
)
_TOUR_TASKS: dict[BenchmarkName, int] = {"gcg": 96, "psg": 256, "region_captions": 24, "rounds": 64}
"""Longest answers of ``make tour-tasks``, in tokens."""


def _paper(
    benchmark: BenchmarkName, *, grammar: bool = False, zoom_below: float | None = None
) -> EvaluateMllmConfig:
    return EvaluateMllmConfig(
        benchmark=benchmark,
        model=tyro.MISSING,
        chats=tyro.MISSING,
        out=tyro.MISSING,
        tokenizer=tyro.MISSING,
        precision="bfloat16",
        grammar=grammar,
        zoom_below=zoom_below,
        generation=AnswerConfig(batch_size=32),
        worker=WorkerConfig(gpus=1.0),
        shard_rows=64,
    )


PRESETS: dict[str, EvaluateMllmConfig] = {
    # The shipped model of the tour on the synthetic chats that jobs make for themselves.
    "smoke": EvaluateMllmConfig(
        model="tour-mllm",
        chats="runs/embedded/gres-val/chats",
        out="runs/evaluation",
        tokenizer="tour",
        generation=AnswerConfig(max_new_tokens=40, batch_size=32),
        shard_rows=4,
        limit=8,
        report_pictures=4,
    ),
    # The trained tiny model of the tour on held-out images, beside the untrained one.
    "tour": _TOUR,
    "tour-untrained": _TOUR_UNTRAINED,
    # The same for each task of `make tour-tasks`.
    **{
        f"tour-tasks-{name}{state}": config
        for name, most in _TOUR_TASKS.items()
        for state, config in zip(
            ("", "-untrained"), _tour("tour-tasks", name, most, name=f"evaluation-{name}"), strict=True
        )
    },
    # `make tour-thinking`: the shipped model, which answers at once, the one that learnt to think, and the
    # one that learnt from rewards.
    "tour-thinking-shipped": _TOUR_THINKING,
    "tour-thinking-start": dataclasses.replace(
        _TOUR_THINKING,
        model="runs/tour-thinking/mllm/final",
        out="runs/tour-thinking/evaluation-start",
        generation=AnswerConfig(max_new_tokens=128, batch_size=64),
    ),
    "tour-thinking": dataclasses.replace(
        _TOUR_THINKING,
        model="runs/tour-thinking/grpo/final",
        out="runs/tour-thinking/evaluation",
        generation=AnswerConfig(max_new_tokens=128, batch_size=64),
        beside=(
            "shipped=runs/tour-thinking/evaluation-shipped",
            "before rewards=runs/tour-thinking/evaluation-start",
        ),
        report_pictures=12,
    ),
    # gRefCOCO as in Table 3 of the paper: greedy, 128 new tokens, no grammar, no least number of pixels. The
    # published numbers are those of the section "official" in metrics.json. Not run yet.
    "paper-gres": _paper("gres"),
    # The same with well-formed words only, which the paper's models are not held to.
    "paper-gres-grammar": _paper("gres", grammar=True),
    # Tables 1, 2, 4, 5, 6 and 10 in the same way (docs/benchmarks.md). Not run yet.
    "paper-gcg": _paper("gcg"),
    "paper-rounds": _paper("rounds"),
    "paper-res": _paper("res"),
    "paper-groundingsuite": _paper("groundingsuite"),
    "paper-rec": _paper("rec"),
    "paper-psg": _paper("psg"),
    # Tables 7 to 9: with --judge.kind, and the published wording of the questions as --judge.wording.
    "paper-dlc": _paper("dlc", zoom_below=0.3),
    "paper-mdvp": _paper("mdvp", zoom_below=0.2),
    "paper-videorefer": _paper("videorefer", zoom_below=0.2),
}
