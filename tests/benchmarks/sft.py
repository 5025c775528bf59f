"""How fast our fine-tuning loop is against Hugging Face's Trainer, in useful tokens a second, in one run.

    python -m tests.benchmarks.sft
    python -m tests.benchmarks.sft --models wide --corpora varied --device cuda --precision bfloat16

All sides train the same model on the same chats with the same global batch, micro-batch, fused AdamW,
clipping and threads; padding counts as no token. Hugging Face's Trainer has our ``Adapter.collate`` and takes
chats in random order (by groups of like length as a further row). ``memory`` hands both sides encoded chats;
``loading`` begins with the files of a chat corpus, each side with its default loader. A measurement is one
epoch, and the sides take turns.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from PIL import Image
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from pipelines.dialogues.chats import load_chat_corpus
from pipelines.sft.config import EngineConfig, SamplingConfig, TrainedConfig, TrainMllmConfig
from pipelines.sft.data import ChatSource, StepLoader, encode_row, micro_batches
from pipelines.sft.loop import Trainer
from pipelines.training.config import OptimizerConfig
from pipelines.training.engine import PlainEngine
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.tiny import TinyConfig, build_tiny, default_texts
from samtok.mllm.vocab import MaskVocabulary
from samtok.words import format_words
from tests.mllm_evaluations import write_chats

VOCABULARY = MaskVocabulary(256, 2)
MODELS = {
    "tiny": TinyConfig(),
    "wide": TinyConfig(dim=256, num_layers=4, hidden_dim=640, init_std=0.06),
}
TOKENS = {"varied": (40, 600), "equal": (200, 200)}
"""Shortest and longest chat of each corpus, about; lengths are spread evenly over their logarithm."""

PARTS = ("memory", "loading")
BASE = "HF Trainer"
SIDE = 56
IMAGE_TOKENS, TURN_TOKENS = 22, 14
"""Tokens of a chat that are no text: once, and per question and answer, the latter's mask included."""


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
        self.adapter.freeze(model, **asdict(TrainedConfig()))
        return model.to(self.options.device)


Epoch = Callable[[], float]
"""Trains once through the chats; returns the seconds."""


def main() -> int:
    """Measures, prints a table and saves the figures as JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    found = []
    print("model | corpus | chats from | side | padding | useful tokens/s | ratio")
    for name in options.models:
        for corpus in options.corpora:
            with tempfile.TemporaryDirectory() as home:
                place = _place(Path(home), MODELS[name], TOKENS[corpus], options)
                for part in options.parts:
                    rows = _measure(place, _sides(place, part))
                    found += [{"model": name, "corpus": corpus, "part": part, **row} for row in rows]
                    _print(found[-len(rows) :])
    body = {"machine": _machine(options), "options": vars(options), "rows": found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=2, default=str) + "\n")
    print(f"saved {options.out}")
    return 0


def _measure(place: Place, sides: dict[str, Epoch]) -> list[dict[str, Any]]:
    tokens = sum(map(len, place.samples))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(place.options.repeats + 1):
        for name, epoch in sides.items():  # in turns, so that a drift of the machine meets all
            took = epoch()
            if repeat:  # the first round warms up
                seconds[name].append(took)
    rows = []
    for name, values in seconds.items():
        ratios = [base / own for base, own in zip(seconds[BASE], values, strict=True)]
        rate, ratio = tokens / statistics.median(values), statistics.median(ratios)
        rows.append({"side": name, "tokens_per_s": rate, "ratio": ratio, "ratios": ratios})
    return [row | {"padding": _padding(place, row["side"])} for row in rows]


def _print(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        spread = f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"
        head = f"{row['model']} | {row['corpus']} | {row['part']} | {row['side']}"
        print(f"{head} | {row['padding']:.0%} | {row['tokens_per_s']:.0f} | {spread}", flush=True)


def _padding(place: Place, side: str) -> float:
    """Returns the share of computed tokens that are padding; for groups by length it is not followed."""
    if "packed" in side:
        return 0.0
    lengths, computed = [], 0
    for step in _steps(place, np.random.default_rng(0)):
        size = place.options.micro_batch
        cut = (
            micro_batches(step, size)
            if side != BASE
            else [step[i : i + size] for i in range(0, len(step), size)]
        )
        computed += sum(max(map(len, micro)) * len(micro) for micro in cut)
        lengths += map(len, step)
    return 1 - sum(lengths) / computed


# ---------------------------------------------------------------- the sides


def _sides(place: Place, part: str) -> dict[str, Epoch]:
    loading = part == "loading"
    sides = {BASE: _theirs(place, loading=loading)}
    if not loading:
        sides[f"{BASE}, grouped"] = _theirs(place, strategy="group_by_length")
    for name, engine in (("padded", {}), ("packed", {"packing": True})):
        sides[f"ours, {name}"] = _ours(place, EngineConfig(**engine), loading=loading)
    return sides


def _ours(place: Place, engine: EngineConfig, *, loading: bool) -> Epoch:
    options = place.options
    engine = replace(engine, samples_per_micro_batch=options.micro_batch, precision=options.precision)
    config = TrainMllmConfig(
        out="",
        model="",
        corpora=(place.source.corpus.uri,),
        sampling=SamplingConfig(samples_per_step=options.batch, max_tokens=10**6),
        steps=len(place.samples) // options.batch,
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
        engine=engine,
    )
    model = place.model()
    trainer = Trainer(model, place.adapter, PlainEngine(model, config.optimizer), config)
    rng = np.random.default_rng(0)

    def epoch() -> float:
        loader = StepLoader([place.source], [None], config, place.adapter, rank=0)
        read = ([prepared.sample for prepared in step] for step in loader.steps(0))
        started = _now(options.device)
        for step in read if loading else _steps(place, rng):
            trainer.take_step(step)
        return _now(options.device) - started

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

    def epoch() -> float:
        trainer.train()
        return clock.seconds

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
        self.device, self.seconds, self._started = device, 0.0, 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._started = _now(self.device)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds = _now(self.device) - self._started


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---------------------------------------------------------------- chats


def _place(home: Path, numbers: TinyConfig, tokens: tuple[int, int], options: argparse.Namespace) -> Place:
    build_tiny(
        "qwen2_5_vl", home / "model", vocabulary=VOCABULARY, texts=default_texts(), seed=0, config=numbers
    )
    adapter = load_adapter(home / "model")
    rows = list(_rows(home, adapter, tokens, options.chats))
    uri = write_chats(home / "chats", rows, weights_sha256=None, num_codes=VOCABULARY.num_codes, per_shard=64)
    source = ChatSource(load_chat_corpus(uri))
    samples = [encode_row(adapter, source.row(i), max_tokens=10**6) for i in range(len(source))]
    return Place(home / "model", adapter, source, samples, options)


def _rows(home: Path, adapter: Adapter, tokens: tuple[int, int], count: int) -> Iterator[dict[str, Any]]:
    """Makes chats of 1 to 12 questions and as long answers, each with a mask, about images of one size."""
    rng = np.random.default_rng(0)
    say = _Speaker(adapter, rng)
    for number in range(count):
        path = home / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        length = float(np.exp(rng.uniform(*np.log(tokens))))
        rounds = min(int(rng.integers(1, 13)), max(1, int(length - IMAGE_TOKENS) // (2 * TURN_TOKENS)))
        budget = (length - IMAGE_TOKENS) / rounds - TURN_TOKENS
        messages = []
        for turn in range(rounds):
            shown = [{"text": None, "image": 0}] if turn == 0 else []
            word = format_words(rng.integers(0, 256, 2).tolist(), num_codes=256)
            for role, text in (("user", say(budget / 2)), ("assistant", f"{say(budget / 2)} {word}")):
                content = [*(shown if role == "user" else []), {"text": text, "image": None}]
                messages.append({"role": role, "content": content, "mask_ids": []})
        yield {
            "dataset": "benchmark",
            "split": "train",
            "image_id": str(number),
            "sample_id": str(number),
            "task": "interactive",
            "tags": [],
            "images": [{"uri": str(path), "height": SIDE, "width": SIDE}],
            "messages": messages,
            "masks": [],
            "meta": None,
        }


class _Speaker:
    """Says sentences of the shapes language, of about so many tokens."""

    def __init__(self, adapter: Adapter, rng: np.random.Generator) -> None:
        texts = [text for text in default_texts() if "<|" not in text]
        words = [word for i in rng.permutation(len(texts)) for word in texts[i].split()]
        sizes = {word: len(adapter.tokenizer(f" {word}")["input_ids"]) for word in set(words)}
        self._words = cycle([(word, sizes[word]) for word in words])

    def __call__(self, tokens: float) -> str:
        said: list[str] = []
        while tokens > 0 or not said:
            word, size = next(self._words)
            said.append(word)
            tokens -= size
        return " ".join(said)


# ---------------------------------------------------------------- flags


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpus": psutil.cpu_count(),
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--corpora", nargs="+", choices=TOKENS, default=list(TOKENS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--chats", type=int, default=128, help="chats of a corpus, trained once per repeat")
    parser.add_argument("--batch", type=int, default=64, help="chats of a step")
    parser.add_argument("--micro-batch", type=int, default=8, help="chats of a forward and backward pass")
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each side, whose median counts")
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
