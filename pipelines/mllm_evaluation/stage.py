"""Answers the questions of a shard and scores the answers: a plain class that does not know about Ray.

An image is read once for all its questions, and encoded once for all words that answers to them have. Which
questions share a batch follows from the plan alone, so answers do not depend on scheduling.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines import schema, shards, storage
from pipelines.chats.corpus import turns_of
from pipelines.chats.prompts import ask_to_think
from pipelines.generation import models
from pipelines.generation.engine import Engine, asked_of, in_order, open_engine
from pipelines.ingestion.image_source import read_image
from pipelines.ingestion.reader import Input
from pipelines.mllm_evaluation.benchmarks import BENCHMARKS
from pipelines.mllm_evaluation.config import EvaluateMllmConfig
from pipelines.mllm_evaluation.prepare import Asked
from pipelines.mllm_evaluation.rows import ANSWER_ROW, COUNTS, STAGE, start_of_row
from samtok import images, masks
from samtok.errors import DataError
from samtok.metrics.referring import Mode
from samtok.metrics.text_masks import Codes, Reading, decode_unions, read_text
from samtok.mllm import zoom
from samtok.mllm.chat import Encoded
from samtok.mllm.thinking import answer_of, split_thinking
from samtok.model.tokenizer import MaskTokenizer
from samtok.words import format_words

WINDOW_BATCHES = 4
"""Batches whose questions are sorted by length together; their images' features are in memory at once."""


@dataclass
class _Question:
    """A question on its way: its row so far, the prompt, and then the ids of its answer."""

    body: Mapping[str, Any]
    row: dict[str, Any]
    prompt: Encoded | None = None
    ids: list[int] = field(default_factory=list)


@dataclass
class _Group:
    """Questions about one image, and the image at the mask tokenizer's size."""

    row: Mapping[str, Any]
    questions: list[_Question]
    square: np.ndarray | None = None
    known: dict[str, np.ndarray] = field(default_factory=dict)  # images that are still needed


class AnswerQuestions:
    """Holds an MLLM and a mask tokenizer.

    Args:
        config: The models.
        asked: How questions are asked.
        readings: How answers become masks.
        model_sha256: What the plan says of the model; None takes any.
        tokenizer_sha256: The same of the tokenizer's weights.

    Raises:
        CheckpointError: If one cannot be loaded, or is not that of the plan, as after a replacement in
            mid-run.
    """

    def __init__(
        self,
        config: EvaluateMllmConfig,
        asked: Asked,
        readings: Mapping[Mode, Reading],
        *,
        model_sha256: str | None = None,
        tokenizer_sha256: str | None = None,
    ) -> None:
        torch.set_num_threads(config.worker.threads)
        self.config, self.generation, self.asked, self.readings = config, config.generation, asked, readings
        self.codes = BENCHMARKS[config.benchmark].codes
        device = config.worker.device
        self.tokenizer = MaskTokenizer.from_pretrained(
            config.tokenizer, device=device, read=storage.read_bytes
        )
        models.require_same(config.tokenizer, tokenizer_sha256, self.tokenizer.weights_sha256)
        self.engine: Engine = open_engine(
            config.model,
            self.generation,
            device=device,
            precision=config.precision,
            grammar=config.grammar,
            sha256=model_sha256,
        )
        self.adapter = self.engine.adapter

    def __call__(self, plan: shards.Plan, shard: int) -> dict[str, Any]:
        """Does a shard; returns what ``shards.commit`` takes. Reasons are counted by question."""
        (chunk,) = plan.chunks(shard)
        rows, rejects, counts = self.answer(shards.read_inputs(plan, chunk))
        reasons: Counter[str] = Counter()
        for one in rejects.to_pylist():
            reasons[f"{one['stage']}/{one['reason']}"] += one["num_masks"]
        summary = {"counts": counts, "reject_reasons": dict(sorted(reasons.items()))}
        return {"shard": shard, "rows": rows, "rejects": rejects, "summary": summary}

    def answer(self, inputs: Sequence[Input]) -> tuple[pa.Table, pa.Table, dict[str, int]]:
        """Answers all questions of some images.

        Returns:
            A row per question, in the order of the inputs; reject rows of what could not be asked; counts.
        """
        rows: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        groups = [_group(item) for item in inputs]
        for window in _windows(groups, WINDOW_BATCHES * self.generation.batch_size):
            for group in window:
                self._read(group, rejects)
            for _ in self._rounds(window, rejects):
                self._generate(window, rejects)
            for group in window:
                self._score(group)
                rows += [question.row for question in group.questions]
                group.square = None
        counts = _counts(groups, rejects)
        return schema.table(rows, ANSWER_ROW), schema.table(rejects, schema.REJECT_ROW), counts

    # ------------------------------------------------------------ before: images and prompts

    def _read(self, group: _Group, rejects: list[dict[str, Any]]) -> None:
        """Reads the image and, if no other answer comes before them, encodes the prompts of its questions;
        what cannot be asked is rejected."""
        dataset, image_id = group.row["dataset"], group.row["image_id"]
        try:
            image = self._image(group.row["image"], group.known)
        except DataError as error:
            lost = len(group.questions)
            rejects.append(schema.reject(STAGE, dataset, image_id, error.reason, str(error), num_masks=lost))
            for question in group.questions:
                question.row["problem"] = error.reason
            return
        group.square = images.resize_square(image, self.tokenizer.config.image_size)
        if self.config.history == "true":
            for question in group.questions:
                self._encode(group, question, rejects)
            group.known = {}

    def _encode(self, group: _Group, question: _Question, rejects: list[dict[str, Any]]) -> None:
        body = question.body
        messages = body["messages"]
        try:
            seen = [self._image(one, group.known) for one in body["images"]]
            below, asked = self.config.zoom_below, body["asked_rle"]
            if below is not None and asked is not None:
                whole = self._image(group.row["image"], group.known)
                messages, seen = self._zoomed(messages, seen, whole, asked, below)
            turns = turns_of({"messages": ask_to_think(messages) if self.asked.thinking else messages})
            encoded = self.adapter.encode_prompt(turns, seen)
            question.prompt = asked_of(self.engine, encoded, turns, seen)
        except DataError as error:
            rejects.append(_refused(group, question, error))

    def _zoomed(
        self,
        messages: Sequence[Mapping[str, Any]],
        seen: list[np.ndarray],
        whole: np.ndarray,
        rle: str,
        below: float,
    ) -> tuple[list[Mapping[str, Any]], list[np.ndarray]]:
        """Adds the region that is asked about to the question, cut out of the whole image, if it is small."""
        height, width = whole.shape[:2]
        found = zoom.cut_out(whole, masks.decode(rle, height=height, width=width), below=below)
        if found is None:
            return list(messages), seen
        (codes,) = self.tokenizer.encode(found.image, [found.mask])
        words = format_words(codes, num_codes=self.tokenizer.num_codes)
        parts = [(zoom.BEFORE, None), (None, len(seen)), (zoom.BEHIND.format(words=words), None)]
        more = [{"text": text, "image": image} for text, image in parts]
        last = {**messages[-1], "content": [*messages[-1]["content"], *more]}
        return [*messages[:-1], last], [*seen, found.image]

    def _image(self, image: Mapping[str, Any], known: dict[str, np.ndarray]) -> np.ndarray:
        """Reads an image that is not known yet."""
        uri, size_hw = image["uri"], (image["height"], image["width"])
        if uri not in known:
            known[uri] = read_image(uri, expected_hw=size_hw, max_pixels=self.config.max_image_pixels)
        return known[uri]

    # ------------------------------------------------------------ asking

    def _rounds(self, window: Sequence[_Group], rejects: list[dict[str, Any]]) -> Iterator[None]:
        """Makes prompts of what is asked at once: all, or a round of each chat behind the model's own answers
        to those before."""
        if self.config.history == "true":
            yield
            return
        for number in sorted({question.row["round"] for group in window for question in group.questions}):
            for group in window:
                for question in group.questions:
                    if question.row["round"] == number and question.row["problem"] is None:
                        question.body = self._with_answers(group, question)
                        self._encode(group, question, rejects)
            yield
        for group in window:
            group.known = {}

    def _with_answers(self, group: _Group, question: _Question) -> Mapping[str, Any]:
        """Returns a question with the model's answers in the place of true ones; where there was none, the
        place is empty."""
        said = {
            one.row["turn"]: one.ids
            for one in group.questions
            if one.row["sample_id"] == question.row["sample_id"] and one.row["turn"] < question.row["turn"]
        }
        messages = [
            _said(message, self.adapter.text_of(said[turn])) if turn in said else message
            for turn, message in enumerate(question.body["messages"])
        ]
        return {**question.body, "messages": messages}

    def _generate(self, window: Sequence[_Group], rejects: list[dict[str, Any]]) -> None:
        """Asks; prompts are let go of at once, they hold pixels. What an engine refuses is rejected."""
        asked = [(group, q, q.prompt) for group in window for q in group.questions if q.prompt is not None]
        answers = in_order(
            self.engine,
            [prompt for *_, prompt in asked],
            batch_size=self.generation.batch_size,
            batch_tokens=self.generation.batch_tokens,
        )
        for (group, question, _), answer in zip(asked, answers, strict=True):
            question.prompt = None
            if isinstance(answer, DataError):
                rejects.append(_refused(group, question, answer))
            else:
                question.ids = answer

    # ------------------------------------------------------------ after: masks and counts

    def _score(self, group: _Group) -> None:
        asked = [question for question in group.questions if question.row["problem"] is None]
        if not asked or group.square is None:
            return
        for question in asked:
            self._read_answer(question)
        size = group.row["image"]["height"], group.row["image"]["width"]
        if self.asked.masks == "none":
            for question, mode in product(asked, self.readings):
                question.row[mode] |= {**_compare(np.zeros(size, bool), None), "masks": []}
            return
        features = self.tokenizer.features_of([group.square])
        for mode, reading in self.readings.items():
            answers = [[tuple(codes) for codes in question.row[mode]["codes"]] for question in asked]
            rles: dict[Codes, str] = {}
            unions = decode_unions(
                self.tokenizer,
                features,
                answers,
                size,
                threshold=reading.threshold,
                each=functools.partial(_keep, rles) if self.asked.keeps_masks else None,
            )
            for question, union, codes in zip(asked, unions, answers, strict=True):
                kept = [{"codes": list(one), "rle": rles[one]} for one in dict.fromkeys(codes) if one in rles]
                question.row[mode] |= {**_compare(union, question.row["truth_rle"]), "masks": kept}

    def _thought_tokens(self, think: str | None) -> int | None:
        if think is None:
            return None
        return len(self.adapter.tokenizer.encode(think, add_special_tokens=False))

    def _read_answer(self, question: _Question) -> None:
        text, vocabulary = self.adapter.text_of(question.ids), self.adapter.vocabulary
        limit = self.generation.max_new_tokens
        ended = bool(question.ids) and question.ids[-1] in self.adapter.stop_ids
        question.row |= {
            "generated": text,
            "num_tokens": len(question.ids),
            "cut": len(question.ids) >= limit and not ended,
        }
        scored, thought = (answer_of(text), split_thinking(text)) if self.asked.thinking else (text, None)
        if thought is not None:
            question.row["unfinished"] = thought.answer is None
            question.row["thought_tokens"] = self._thought_tokens(thought.think)
        sizes = {"num_codes": vocabulary.num_codes, "num_levels": vocabulary.num_levels}
        for mode, reading in self.readings.items():
            if self.codes is None:
                found = read_text(scored, reading, **sizes).codes
            else:
                found = self.codes(scored, mode, vocabulary.num_codes, vocabulary.num_levels)
            question.row[mode] = {"codes": [list(codes) for codes in found]}
        question.row["num_malformed"] = read_text(scored, Reading(), **sizes).num_malformed


def _keep(rles: dict[Codes, str], codes: Codes, mask: np.ndarray) -> None:
    rles[codes] = masks.encode(mask)


def _said(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Returns an answer with another text."""
    return {**message, "content": [{"text": text, "image": None}], "mask_ids": []}


def _refused(group: _Group, question: _Question, error: DataError) -> dict[str, Any]:
    """Marks a question that cannot be asked; returns its reject."""
    question.row["problem"] = error.reason
    name = f"{question.body['sample_id']}#{question.body['turn']}"
    where = (group.row["dataset"], group.row["image_id"])
    return schema.reject(STAGE, *where, error.reason, str(error), mask_id=name, num_masks=1)


def _group(item: Input) -> _Group:
    row = json.loads(item.payload)
    nothing = dict.fromkeys(ANSWER_ROW.names)
    questions = [_Question(body, nothing | start_of_row(row, body)) for body in row["questions"]]
    return _Group(row, questions)


def _windows(groups: Sequence[_Group], size: int) -> Iterator[list[_Group]]:
    """Cuts images into runs of at least ``size`` questions each, but for the last."""
    window: list[_Group] = []
    for group in groups:
        window.append(group)
        if sum(len(one.questions) for one in window) >= size:
            yield window
            window = []
    if window:
        yield window


def _compare(union: np.ndarray, truth_rle: str | None) -> dict[str, Any]:
    height, width = union.shape
    box = masks.box_of(union)
    hit = 0
    if truth_rle is not None and box is not None:
        hit = int((union & masks.decode(truth_rle, height=height, width=width)).sum())
    return {
        "rle": masks.encode(union),
        "intersection_px": hit,
        "predicted_px": int(union.sum()),
        "box_xyxy": None if box is None else list(box),
    }


def _counts(groups: Sequence[_Group], rejects: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    questions = [question for group in groups for question in group.questions]
    lost = sum(entry["num_masks"] for entry in rejects)
    images_lost = sum(entry["mask_id"] is None for entry in rejects)
    answered = sum(question.row["problem"] is None for question in questions)
    if answered + lost != len(questions):
        raise RuntimeError(
            f"{len(questions)} questions went in, {answered} were answered and {lost} rejected; this is a "
            "defect of samtok"
        )
    values = (len(groups), len(groups) - images_lost, images_lost, len(questions), answered, lost)
    return dict(zip(COUNTS, values, strict=True))
