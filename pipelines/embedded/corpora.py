"""How the embedded corpora are made: by the same code as any others, at a size that takes seconds."""

import dataclasses
import logging
from typing import Any, Literal

from pipelines import storage
from pipelines.dialogues.config import ComposeDialoguesConfig, ImportConfig
from pipelines.dialogues.job import compose_dialogues
from pipelines.embedded.replies import write_replies
from pipelines.ingestion.corpora import CorpusConfig
from pipelines.ingestion.synthetic import corpus as shapes_corpus
from pipelines.ingestion.synthetic.config import (
    HELD_OUT_INDEX,
    PRESETS,
    ExpressionsConfig,
    Format,
    ShapesConfig,
)
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tokenization.job import tokenize_corpus
from samtok import folders
from samtok.errors import ClusterError
from samtok.shapes import TOUR_WORLD

log = logging.getLogger(__name__)

TOKENIZER = "tour"
"""Shipped tokenizer of the words, which the shipped ``tour-mllm`` speaks."""

NUM_SHAPES = 300
NUM_SCENES, NUM_HELD_OUT = 64, 16

Task = Literal["gres", "gcg"]

_FORMATS: dict[Task, tuple[Literal["refer", "granf"], str]] = {
    "gres": ("refer", "grefs.json"),
    "gcg": ("granf", "granf.json"),
}


def make_shapes(folder: str) -> None:
    """Writes held-out scenes with exact masks as a COCO corpus."""
    log.info("embedded corpus: %d scenes in %s", NUM_SHAPES, folder)
    shapes_corpus.make_shapes(dataclasses.replace(PRESETS["heldout"], num_images=NUM_SHAPES, out=folder))


def make_questions(folder: str, *, held_out: bool = False) -> None:
    """Makes a chat corpus of questions that no mask answers, half of them about no image, beside the scenes
    that they are about; held out as ``make_chats``."""
    shapes, split = _make_scenes(folder, "vqa", held_out=held_out)
    spoken = folders.read_config(TOKENIZER, read=storage.read_bytes).quantizer
    source = ImportConfig(
        source=storage.join(shapes, "vqa.jsonl"),
        images=shapes,
        dataset="shapes-vqa",
        split=split,
        num_codes=spoken.num_codes,
        num_levels=spoken.num_levels,
    )
    _compose(folder, chats=source)


def make_chats(folder: str, task: Task, *, held_out: bool = False) -> None:
    """Makes a chat corpus in a folder, with the shapes and words that it is made of beside it.

    Held-out ones are of scenes that no other has. Of others with referring questions a file of replies is
    made too.
    """
    layout, file = _FORMATS[task]
    words = storage.join(folder, "words")
    asked = ExpressionsConfig(single=2, multi=1, none=1, families=("attributes",))
    shapes, split = _make_scenes(folder, layout, held_out=held_out, expressions=asked)
    corpus = CorpusConfig(
        reader=layout,
        source=storage.join(shapes, file),
        images=storage.join(shapes, split),
        dataset=f"shapes-{task}",  # so that both can be mixed
        split=split,
    )
    tokenized = tokenize_corpus(
        TokenizeCorpusConfig(
            corpus=corpus, out=words, tokenizer=TOKENIZER, workers=0, report_images=0, tracking="off"
        )
    )
    if tokenized:
        raise _not_made(folder)
    chats = _compose(folder, words=(words,), tasks=task, wordings=1)
    if task == "gres" and not held_out:
        write_replies(chats, storage.join(folder, "replies.jsonl"))


def _make_scenes(folder: str, layout: Format, *, held_out: bool, **more: Any) -> tuple[str, str]:
    """Makes scenes of the tour's world; returns where they are, and their split."""
    scenes, split = (NUM_HELD_OUT, "val") if held_out else (NUM_SCENES, "train")
    log.info("embedded corpus: %d scenes become chats in %s", scenes, storage.join(folder, "chats"))
    config = ShapesConfig(
        out=storage.join(folder, "shapes"),
        format=layout,
        num_images=scenes,
        split=split,
        first_index=HELD_OUT_INDEX if held_out else 0,
        world=TOUR_WORLD,
        **more,
    )
    shapes_corpus.make_shapes(config)
    return config.out, split


def _compose(folder: str, **what: Any) -> str:
    """Composes chats; returns where they are."""
    chats = storage.join(folder, "chats")
    if compose_dialogues(ComposeDialoguesConfig(out=chats, report_samples=0, tracking="off", **what)):
        raise _not_made(folder)
    return chats


def _not_made(folder: str) -> ClusterError:
    return ClusterError(f"the embedded corpus {folder} could not be made; the reason is above.")
