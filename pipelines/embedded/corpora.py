"""Corpora that are always there: synthetic scenes, tokenized and composed by the same code as any others.

A job that begins where others end (chats, a fine-tuned model) can be tried at once with them; the model is
the one that ships as ``tour-mllm``. They are small and serve no other purpose.
"""

import logging
from typing import Literal

from pipelines import storage
from pipelines.dialogues.config import ComposeDialoguesConfig
from pipelines.ingestion.config import HELD_OUT_INDEX, ExpressionsConfig, ShapesConfig
from pipelines.ingestion.corpora import CorpusConfig
from pipelines.tokenization.config import TokenizeCorpusConfig, TokenizerConfig
from samtok.shapes import TOUR_WORLD

log = logging.getLogger(__name__)

TOKENIZER = "tour"
"""Shipped tokenizer of these words."""

Task = Literal["gres", "gcg"]

_FORMATS: dict[Task, tuple[Literal["refer", "granf"], str]] = {
    "gres": ("refer", "grefs.json"),
    "gcg": ("granf", "granf.json"),
}


def embedded_chats(home: str, task: Task, *, images: int, held_out: bool = False) -> str:
    """Makes a chat corpus and returns its URI; one that is there already is left alone.

    Uses the Ray that this process is connected to, or a local one of its own.

    Args:
        home: Folder for it and what it is made of.
        task: Referring questions, or captions with masks.
        images: Scenes.
        held_out: Of scenes that no other embedded corpus has.
    """
    from pipelines.dialogues.run import compose_dialogues
    from pipelines.ingestion.shapes_corpus import make_shapes
    from pipelines.tokenization.run import tokenize_corpus

    split = "val" if held_out else "train"
    folder = storage.join(home, f"{task}-{split}")
    shapes, words, chats = (storage.join(folder, name) for name in ("shapes", "words", "chats"))
    layout, file = _FORMATS[task]
    log.info("embedded corpus: %d scenes become chats in %s", images, chats)
    make_shapes(
        ShapesConfig(
            out=shapes,
            format=layout,
            num_images=images,
            split=split,
            first_index=HELD_OUT_INDEX if held_out else 0,
            world=TOUR_WORLD,
            expressions=ExpressionsConfig(single=2, multi=1, none=1, families=("attributes",)),
        )
    )
    corpus = CorpusConfig(
        reader=layout,
        source=storage.join(shapes, file),
        images=storage.join(shapes, split),
        dataset="shapes",
        split=split,
    )
    _require(
        tokenize_corpus(
            TokenizeCorpusConfig(
                corpus=corpus,
                out=words,
                tokenizer=TokenizerConfig(uri=TOKENIZER),
                report_images=0,
                tracking="off",
            )
        )
    )
    _require(
        compose_dialogues(
            ComposeDialoguesConfig(
                words=(words,), out=chats, tasks=task, wordings=1, report_samples=0, tracking="off"
            )
        )
    )
    return chats


def _require(code: int) -> None:
    if code:
        raise SystemExit(code)  # the job has said why
