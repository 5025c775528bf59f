"""Draws answers that a model generated in training beside the truth, while training goes on."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.reports.html import shortened
from pipelines.reports.pictures import image_of, sheet_of
from pipelines.sft.config import TrainMllmConfig
from pipelines.tracking import Tracker
from pipelines.training.fit import Event
from pipelines.training.progress import Progress
from samtok.errors import SamtokError
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots import pictures as viz

log = logging.getLogger(__name__)

SIDE = 192
_LONGEST = 110  # characters of a line under a picture


class Gallery:
    """Passes the workers' events on to the progress, and draws generations in a thread of its own.

    Pictures go to the tracker, besides ``OUT/generations``.
    """

    def __init__(self, config: TrainMllmConfig, tracker: Tracker, progress: Progress) -> None:
        self.config, self.tracker, self.progress = config, tracker, progress
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gallery")

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=error is None, cancel_futures=error is not None)

    def handle(self, events: Sequence[Event]) -> None:
        """Takes in what happened since the last time."""
        self.progress.handle(events)
        for kind, body in events:
            if kind == "generations":
                self._thread.submit(self._draw, str(body["file"]))

    def _draw(self, name: str) -> None:
        """Draws one file of answers; a picture that cannot be drawn does not end training."""
        try:
            answers = storage.read_json(storage.join(self.config.out, name))
            data = draw(self._tokenizer, answers)
            storage.write_bytes(storage.join(self.config.out, name.replace(".json", ".png")), data)
        except SamtokError as error:
            log.warning("the answers of %s cannot be drawn: %s", name, error)
            return
        self.tracker.picture(data, name.replace(".json", ".png"))

    @cached_property
    def _tokenizer(self) -> MaskTokenizer:
        return MaskTokenizer.from_pretrained(self.config.tokenizer, read=storage.read_bytes)


def draw(tokenizer: MaskTokenizer, answers: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns a PNG of questions with true masks, answered masks and the difference, both from their words;
    raises DataError if an image is no image any more, StorageError if one cannot be read.

    Args:
        answers: From ``Validator.answers``.
    """
    return sheet_of([_panel(tokenizer, entry) for entry in answers], SIDE, heads=viz.ANSWER)


def _panel(tokenizer: MaskTokenizer, entry: Mapping[str, Any]) -> viz.Panel:
    image = image_of(entry["image"], *entry["size_hw"])
    truth, answer = (_union(tokenizer, image, entry["codes"][name]) for name in ("truth", "answer"))
    return viz.Panel(
        viz.fit(image, SIDE),
        [viz.fit_mask(truth, SIDE)],
        [viz.fit_mask(answer, SIDE)],
        captions=[_short(entry["answer"]) or "(empty)"],
        title=_short(f"{entry['question']}  {entry['truth']}"),
    )


def _union(tokenizer: MaskTokenizer, image: np.ndarray, codes: Sequence[Sequence[int]]) -> np.ndarray:
    whole = [code for code in codes if len(code) == tokenizer.num_levels]
    if not whole:
        return np.zeros(image.shape[:2], bool)
    return np.any(tokenizer.decode(image, np.array(whole)), axis=0)


def _short(text: str) -> str:
    flat = " ".join(text.replace("<|mt_start|>", "").replace("<|mt_end|>", "").split())
    return shortened(flat, _LONGEST)
