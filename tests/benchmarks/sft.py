"""How fast our fine-tuning loop is against Hugging Face's Trainer, in useful tokens a second, in one run.

    python -m tests.benchmarks.sft
    python -m tests.benchmarks.sft --models wide --corpora varied --device cuda --precision bfloat16

All sides train the same model on the same chats with the same global batch, micro-batch, fused AdamW,
clipping and threads; padding counts as no token. Hugging Face's Trainer has our ``Adapter.collate`` and takes
chats in random order, as it does by default; a further row has it group chats by length. ``memory`` hands all
sides encoded chats; ``loading`` begins with the files of a chat corpus, each side with its default loader
(ours is a thread). A measurement is one epoch, the sides take turns, and a ratio is the median over the
rounds, in time on the clock and in CPU time, which other work on the machine disturbs less. Needs accelerate
(dev extra).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from pipelines.chats.corpus import load_chat_corpus
from pipelines.chats.source import ChatSource, encode_row
from pipelines.sft.config import SamplingConfig, TrainMllmConfig
from pipelines.sft.data import step_loader
from pipelines.sft.loop import Trainer
from pipelines.training.config import MllmEngineConfig, OptimizerConfig
from pipelines.training.engine import PlainEngine
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.tiny.models import TinyConfig, build_tiny, default_texts
from samtok.mllm.token_budget import computed, cut
from samtok.mllm.vocab import MaskVocabulary
from tests.benchmarks.measuring import machine
from tests.benchmarks.sft_chats import chat_rows
from tests.mllm_evaluations import write_chats

VOCABULARY = MaskVocabulary(256, 2)
MODELS = {
    "tiny": TinyConfig(),
    "wide": TinyConfig(dim=256, num_layers=4, hidden_dim=640, init_std=0.06),
}
TOKENS = {"varied": (40, 600), "equal": (200, 200)}
"""Shortest and longest chat of each corpus, about; lengths are spread evenly over their logarithm."""

PARTS = ("memory", "loading")
BASE, GROUPED = "HF Trainer", "HF Trainer, grouped"
PADDED, PACKED = "ours, padded", "ours, packed"


@dataclass(frozen=True)
class Place:
    """What all sides of a comparison have in common."""

    folder: Path
    adapter: Adapter
    source: ChatSource
    samples: Sequence[Encoded]
    options: argparse.Namespace

    def model(self) -> Any:
        """Returns the model as it is at the start, with the parts trained that our runs train by default."""
        model = self.adapter.load_model(self.folder)
        self.adapter.freeze(model, vision=False, projector=True, llm=True)
        return model.to(self.options.device)


class Took(NamedTuple):
    """Seconds on the clock, and of all cores of this process."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls, device: str) -> "Took":
        """Reads both clocks."""
        if device == "cuda":
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Took") -> "Took":
        """Returns the seconds from then to now."""
        return Took(self.wall_s - start.wall_s, self.cpu_s - start.cpu_s)


Epoch = Callable[[], Took]
"""Trains once through the chats."""


def main() -> int:
    """Measures, prints a table and saves the figures as JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = []
    print("model | corpus | chats from | side | padding | useful tokens/s | ratio | in CPU time")
    for name in options.models:
        for corpus in options.corpora:
            with tempfile.TemporaryDirectory() as home:
                place = place_of(Path(home), MODELS[name], TOKENS[corpus], options)
                for part in options.parts:
                    rows = _measure(place, _sides(place, part))
                    found += [{"model": name, "corpus": corpus, "part": part, **row} for row in rows]
                    _print(found[-len(rows) :])
    body = {"machine": machine(options.device), "options": vars(options), "rows": found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=2, default=str) + "\n")
    print(f"saved {options.out}")
    return 0


def _measure(place: Place, sides: dict[str, Epoch]) -> list[dict[str, Any]]:
    tokens = sum(map(len, place.samples))
    took: dict[str, list[Took]] = {name: [] for name in sides}
    for repeat in range(place.options.repeats + 1):
        for name, epoch in sides.items():  # in turns, so that a drift of the machine meets all
            seconds = epoch()
            if repeat:  # the first round warms up
                took[name].append(seconds)
    rows = []
    for name, values in took.items():
        pairs = list(zip(took[BASE], values, strict=True))
        row = {"side": name, "tokens_per_s": tokens / statistics.median(own.wall_s for own in values)}
        row |= {"padding": _padding(place, name), "ratios": [base.wall_s / own.wall_s for base, own in pairs]}
        rows.append(row | {"cpu_ratios": [base.cpu_s / own.cpu_s for base, own in pairs]})
    return rows


def _print(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        ratios = " | ".join(
            f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
            for found in (row["ratios"], row["cpu_ratios"])
        )
        padding = "-" if row["padding"] is None else f"{row['padding']:.0%}"
        head = f"{row['model']} | {row['corpus']} | {row['part']} | {row['side']}"
        print(f"{head} | {padding} | {row['tokens_per_s']:.0f} | {ratios}", flush=True)


def _padding(place: Place, side: str) -> float | None:
    """Returns the share of computed tokens that are padding; None where Hugging Face groups by length."""
    if side == GROUPED:
        return None
    if side == PACKED:
        return 0.0
    size, found = place.options.micro_batch, 0
    for step in _steps(place, np.random.default_rng(0)):
        lengths = [len(sample) for sample in step]
        in_order = [range(first, min(first + size, len(step))) for first in range(0, len(step), size)]
        for micro in in_order if side == BASE else cut(lengths, size):
            found += computed([lengths[n] for n in micro], packed=False)
    return 1 - sum(map(len, place.samples)) / found


# ---------------------------------------------------------------- the sides


def _sides(place: Place, part: str) -> dict[str, Epoch]:
    loading = part == "loading"
    sides = {BASE: _theirs(place, loading=loading)}
    if not loading:
        sides[GROUPED] = _theirs(place, strategy="group_by_length")
    sides[PADDED] = _ours(place, MllmEngineConfig(), loading=loading)
    sides[PACKED] = _ours(place, MllmEngineConfig(packing=True), loading=loading)
    return sides


def _ours(place: Place, engine: MllmEngineConfig, *, loading: bool) -> Epoch:
    options = place.options
    config = TrainMllmConfig(
        out="",
        model="",
        tokenizer="tour",
        chats=(place.source.corpus.uri,),
        micro_batch=options.micro_batch,
        precision=options.precision,
        sampling=SamplingConfig(samples_per_step=options.batch, max_tokens=10**6),
        steps=len(place.samples) // options.batch,
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
        engine=engine,
    )
    model = place.model()
    trainer = Trainer(model, place.adapter, PlainEngine(model, config.optimizer), config)
    rng = np.random.default_rng(0)

    def epoch() -> Took:
        loader = step_loader([place.source], [None], config, place.adapter, rank=0)
        read = ([prepared.sample for prepared in step] for step in loader.steps(0))
        started = Took.now(options.device)
        for step in read if loading else _steps(place, rng):
            trainer.take_step(step)
        return Took.now(options.device).since(started)

    return epoch


def _steps(place: Place, rng: np.random.Generator) -> Iterator[list[Encoded]]:
    order = rng.permutation(len(place.samples))
    for first in range(0, len(order), place.options.batch):
        yield [place.samples[i] for i in order[first : first + place.options.batch]]


def _theirs(place: Place, *, loading: bool = False, strategy: str = "random") -> Epoch:
    options = place.options
    clock = _Clock(options.device)
    trainer = transformers.Trainer(
        model=place.model(),
        args=TrainingArguments(
            output_dir=str(place.folder / "unused"),
            num_train_epochs=1,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.batch // options.micro_batch,
            optim="adamw_torch_fused",
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            max_grad_norm=1.0,
            train_sampling_strategy=strategy,
            bf16=options.precision == "bfloat16",
            use_cpu=options.device == "cpu",
            dataloader_pin_memory=options.device != "cpu",
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=_Chats(place, loading=loading),
        data_collator=lambda items: place.adapter.collate([item["sample"] for item in items]),
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.PrinterCallback)

    def epoch() -> Took:
        trainer.train()
        return clock.took

    return epoch


class _Chats(Dataset):
    """Chats as Hugging Face's Trainer asks for them: from memory, or read and encoded anew."""

    def __init__(self, place: Place, *, loading: bool) -> None:
        self.place, self.loading = place, loading

    def __len__(self) -> int:
        return len(self.place.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, sample = self.place, self.place.samples[index]
        if self.loading:
            sample = encode_row(place.adapter, place.source.row(index), max_tokens=10**6)
        return {"sample": sample, "input_ids": sample.input_ids}  # the latter for groups of like length


class _Clock(TrainerCallback):
    """Times an epoch without what comes before and after it."""

    def __init__(self, device: str) -> None:
        self.device, self.took, self._started = device, Took(0, 0), Took(0, 0)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._started = Took.now(self.device)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.took = Took.now(self.device).since(self._started)


# ---------------------------------------------------------------- chats


def place_of(home: Path, numbers: TinyConfig, tokens: tuple[int, int], options: argparse.Namespace) -> Place:
    build_tiny(
        "qwen2_5_vl", home / "model", vocabulary=VOCABULARY, texts=default_texts(), seed=0, config=numbers
    )
    adapter = load_adapter(home / "model")
    rows = list(chat_rows(home, adapter, tokens, options.chats))
    uri = write_chats(home / "chats", rows, weights_sha256=None, num_codes=VOCABULARY.num_codes, per_shard=64)
    source = ChatSource(load_chat_corpus(uri))
    samples = [encode_row(adapter, source.row(i), max_tokens=10**6) for i in range(len(source))]
    return Place(home / "model", adapter, source, samples, options)


# ---------------------------------------------------------------- flags


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--corpora", nargs="+", choices=TOKENS, default=list(TOKENS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--chats", type=int, default=64, help="chats of a corpus, trained once per repeat")
    parser.add_argument("--batch", type=int, default=32, help="chats of a step")
    parser.add_argument("--micro-batch", type=int, default=8, help="chats of a forward and backward pass")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each side, whose median counts")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/sft.json"))
    options = parser.parse_args()
    if options.chats % options.batch or options.batch % options.micro_batch:
        parser.error("--batch must divide --chats, and --micro-batch must divide --batch")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
