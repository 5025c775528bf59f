"""A small corpus of chats, a tiny model of random weights and the tokenizer of its words, for evaluations."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines import schema, shards
from pipelines.chats.corpus import text_of, turns_of
from pipelines.config import WorkerConfig
from pipelines.ingestion.reader import Input
from pipelines.mllm_evaluation.config import AnswerConfig, EvaluateMllmConfig
from pipelines.mllm_evaluation.prepare import Evaluation
from pipelines.mllm_evaluation.stage import AnswerQuestions
from pipelines.planning import plans
from samtok import masks
from samtok.mllm.adapters import load_adapter, save_pretrained
from samtok.mllm.loss import answer_loss
from samtok.mllm.tiny.models import build_tiny
from samtok.mllm.vocab import MaskVocabulary
from samtok.model.tokenizer import MaskTokenizer
from samtok.words import format_words
from tests.corpora import save_micro_tokenizer

NUM_CODES, NUM_LEVELS, SIDE = 64, 2, 48
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}


def write_image(folder: Path, number: int) -> tuple[str, dict[str, np.ndarray]]:
    """Draws a red and a green rectangle; returns the file and their masks."""
    rng = np.random.default_rng(number)
    picture = rng.integers(90, 140, (SIDE, SIDE, 3), dtype=np.uint8)
    found = {}
    for name, left in (("red", 2), ("green", 26)):
        top, height, width = rng.integers(2, 20), rng.integers(8, 24), rng.integers(8, 20)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[top : top + height, left : left + width] = True
        picture[mask] = COLOURS[name]
        found[name] = mask
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:03d}.png"
    Image.fromarray(picture).save(path)
    return str(path), found


def chat_row(
    uri: str,
    found: dict[str, np.ndarray],
    codes: dict[str, Sequence[int]],
    asked: Sequence[str],
    *,
    task: str = "gres",
    image_id: str = "0",
) -> dict[str, Any]:
    """Returns a chat about an image: a question per name in ``asked``, ``both`` and names of nothing too."""
    messages, expressions = [], []
    for turn, name in enumerate(asked):
        named = list(found) if name == "both" else [name] if name in found else []
        text = ", ".join(format_words(codes[one], num_codes=NUM_CODES) for one in named) or "No target."
        image = [{"text": None, "image": 0}] if turn == 0 else []
        question = {"text": f"Please segment {name} in this image.", "image": None}
        messages.append({"role": "user", "content": [*image, question], "mask_ids": []})
        answer = {"role": "assistant", "content": [{"text": text, "image": None}], "mask_ids": named}
        messages.append(answer)
        expressions.append(name)
    listed = [
        {
            "mask_id": name,
            "image": 0,
            "codes": list(codes[name]),
            "words": format_words(codes[name], num_codes=NUM_CODES),
            "label": name,
            "iou": None,
            "rle": masks.encode(mask),
        }
        for name, mask in found.items()
    ]
    return {
        "dataset": "toy",
        "split": "val",
        "image_id": image_id,
        "sample_id": f"{image_id}/{'-'.join(asked)}",
        "task": task,
        "tags": ["none" if asked[-1] == "blue" else asked[-1]],
        "images": [{"uri": uri, "height": SIDE, "width": SIDE}],
        "messages": messages,
        "masks": listed,
        "meta": json.dumps({"expressions": expressions}),
    }


def without_image(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a chat of text alone, whose answers name nothing."""
    none = {"text": "No target.", "image": None}
    said = [
        dict(
            message, mask_ids=[], content=[none if message["role"] == "assistant" else message["content"][-1]]
        )
        for message in row["messages"]
    ]
    return dict(row, images=[], masks=[], messages=said)


def strip_row(folder: Path, codes: Sequence[int], *, image_id: str = "strip") -> dict[str, Any]:
    """Returns a chat about an image of 2300 x 10 pixels, which no processor of Qwen's takes."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 2300), "red").save(folder / "strip.png")
    found = {"red": np.ones((2300, 10), bool)}
    row = chat_row(str(folder / "strip.png"), found, {"red": codes}, ["red"], image_id=image_id)
    return {**row, "images": [{"uri": str(folder / "strip.png"), "height": 2300, "width": 10}]}


def toy_rows(folder: Path, tokenizer: MaskTokenizer, num_images: int) -> list[dict[str, Any]]:
    """Returns four chats per image: one target, several, none, and two turns."""
    rows = []
    for number in range(num_images):
        uri, found = write_image(folder, number)
        image = np.array(Image.open(uri))
        codes = dict(zip(found, tokenizer.encode(image, list(found.values())).tolist(), strict=True))
        for asked in (["red"], ["both"], ["blue"], ["green", "red"]):
            rows.append(chat_row(uri, found, codes, asked, image_id=str(number)))
    return rows


def write_chats(
    out: Path,
    rows: Sequence[dict[str, Any]],
    *,
    weights_sha256: str | None,
    num_codes: int = NUM_CODES,
    per_shard: int = 8,
) -> str:
    """Writes chat rows as a finished corpus and returns its URI."""
    fingerprint = {
        "kind": "chat",
        "num_codes": num_codes,
        "num_levels": NUM_LEVELS,
        "weights_sha256": weights_sha256,
    }
    inputs = [Input(f"{number:05d}", "{}", None) for number in range(len(rows))]
    plan = plans.make_plan(str(out), fingerprint, inputs, shard_rows=per_shard, chunk_rows=per_shard)
    for shard in range(len(plan.shard_rows)):
        part = rows[shard * per_shard : (shard + 1) * per_shard]
        counts = {
            "inputs_in": len(part),
            "rows_in": len(part),
            "rows_out": len(part),
            "samples_out": len(part),
        }
        shards.commit(
            plan,
            shard,
            rows=schema.table(part, schema.CHAT_ROW),
            rejects=schema.table([], schema.REJECT_ROW),
            summary={"counts": counts, "reject_reasons": {}},
        )
    shards.finish(plan)
    return str(out)


class World:
    """Everything an evaluation needs, in one folder.

    Args:
        home: The folder.
        num_images: Images of the chats; there are four chats of each.
        decoded: True masks are those that their words decode to, so that a true answer has an IoU of 1.
    """

    def __init__(self, home: Path, num_images: int, *, decoded: bool = False) -> None:
        self.home = home
        self.tokenizer_uri = save_micro_tokenizer(home / "micro")
        self.tokenizer = MaskTokenizer.from_pretrained(self.tokenizer_uri)
        self.sha256 = self.tokenizer.weights_sha256
        self.rows = toy_rows(home / "images", self.tokenizer, num_images)
        if decoded:
            self.rows = [self._decoded(row) for row in self.rows]
        self.chat = write_chats(home / "chat", self.rows, weights_sha256=self.sha256)
        self.model = self.build(home / "mllm")

    def _decoded(self, row: dict[str, Any]) -> dict[str, Any]:
        image = np.array(Image.open(row["images"][0]["uri"]))
        codes = np.array([mask["codes"] for mask in row["masks"]], np.int64)
        found = self.tokenizer.decode(image, codes)
        made = [{**old, "rle": masks.encode(new)} for old, new in zip(row["masks"], found, strict=True)]
        return {**row, "masks": made}

    def build(
        self,
        folder: Path,
        *,
        num_codes: int = NUM_CODES,
        sha256: str | None = None,
        family: str = "qwen2_5_vl",
    ) -> str:
        """Writes a tiny model and returns its folder."""
        texts = [message["content"][-1]["text"] for row in self.rows for message in row["messages"]]
        vocabulary = MaskVocabulary(num_codes, NUM_LEVELS)
        sha256 = sha256 or self.sha256
        named = {"texts": texts, "tokenizer_sha256": sha256}
        build_tiny(family, folder, vocabulary=vocabulary, seed=0, **named)
        return str(folder)

    def flags(self, out: Path, *more: str) -> list[str]:
        """Returns the flags of an evaluation in this world."""
        return [
            *("--benchmark", "gres", "--model", self.model, "--chats", self.chat, "--out", str(out)),
            *("--tokenizer", self.tokenizer_uri, "--generation.max-new-tokens", "12", "--shard-rows", "2"),
            *("--tracking", f"sqlite:///{self.home}/mlflow.db", "--report-pictures", "3"),
            *("--worker.gpus", "0"),
            *more,
        ]

    def train(self, folder: Path, *, steps: int) -> str:
        """Has the tiny model learn the chats by heart and returns the folder of what came out."""
        adapter = load_adapter(self.model)
        model = adapter.load_model(self.model)
        samples = [
            adapter.encode(turns_of(row), [np.array(Image.open(row["images"][0]["uri"]))])
            for row in self.rows
        ]
        batch = adapter.collate(samples)
        learnt = sum(sample.num_learnt for sample in samples)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            (answer_loss(model, batch) / learnt).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        save_pretrained(model, adapter, folder)
        return str(folder)


def config_of(world: "World", **changed: Any) -> EvaluateMllmConfig:
    """Returns options for an evaluation of a world in this process."""
    values = {
        "benchmark": "gres",
        "model": world.model,
        "chats": world.chat,
        "out": str(world.home / "out"),
        "tokenizer": world.tokenizer_uri,
        "tracking": "off",
        "generation": AnswerConfig(max_new_tokens=16, batch_size=3),
        "worker": WorkerConfig(gpus=0.0),
    }
    return EvaluateMllmConfig(**{**values, **changed})


def stage_of(job: Evaluation, **changed: Any) -> AnswerQuestions:
    """Returns the stage of a prepared evaluation."""
    expected = {name: job.fingerprint[name] for name in ("model_sha256", "tokenizer_sha256")}
    return AnswerQuestions(job.config, job.asked, job.readings, **{**expected, **changed})


class Scripted:
    """An engine that answers by a function of the prompt's text, in the place of its model."""

    def __init__(self, engine: Any, asked: list[str], answer: Callable[[str], str]) -> None:
        self.engine, self.adapter, self.asked, self.answer = engine, engine.adapter, asked, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def replies(self, prompts: Sequence[Any], *, temperature: float, seed: int) -> list[list[int]]:
        texts = [self.adapter.text_of(prompt.input_ids.tolist()) for prompt in prompts]
        self.asked += texts
        encode = functools.partial(self.adapter.tokenizer.encode, add_special_tokens=False)
        return [[*encode(self.answer(text)), self.adapter.stop_ids[0]] for text in texts]


def truth_of(rows: Sequence[dict[str, Any]]) -> Callable[[str], str]:
    """Returns the true answer to the question of a prompt about the first image."""
    known = {text_of(row["messages"][-2]): text_of(row["messages"][-1]) for row in rows}
    return lambda prompt: next(answer for question, answer in known.items() if question in prompt)
