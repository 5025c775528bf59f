"""Options of ``jobs/evaluate_tokenizer.py``, and its presets."""

from typing import Annotated

import tyro

from pipelines.config import NotEmpty, WorkerConfig, config
from pipelines.ingestion.corpora import CorpusText
from pipelines.tokenization.config import TokenizationConfig, TokenizerOptions


@config
class EvaluateTokenizerConfig(TokenizationConfig):
    """A tokenizer is measured on whole corpora."""

    corpora: Annotated[tuple[CorpusText, ...], NotEmpty]
    """Corpora to measure on, each as reader=coco,source=FILE,images=FOLDER,dataset=NAME,split=val,limit=N or
    reader=sa1b,source=FOLDER,dataset=NAME. Their names must differ."""


PRESETS: dict[str, EvaluateTokenizerConfig] = {
    # The synthetic corpus that jobs make for themselves with the shipped tokenizer, on two CPU cores.
    "smoke": EvaluateTokenizerConfig(
        corpora=(
            "reader=coco,source=runs/embedded/shapes/annotations/instances_val.json,"
            "images=runs/embedded/shapes/val,dataset=shapes,split=val",
        ),
        out="runs/tokenizer-evaluation",
        tokenizer="tiny",
        shard_rows=64,
        limit=150,
    ),
    # r-Acc as in section D of the paper: the masks of EntitySeg val (low resolution), cut at the value of the
    # authors' evaluator, which prompts with masks and boxes. The corpus to name is
    # reader=coco,source=FILE,images=FOLDER,dataset=entityseg,split=val. Table 12 has 0.70 for 256x2. Not run
    # yet.
    "paper": EvaluateTokenizerConfig(
        corpora=tyro.MISSING,
        out=tyro.MISSING,
        tokenizer=tyro.MISSING,
        tokenizer_options=TokenizerOptions(threshold=0.5),
        worker=WorkerConfig(gpus=1.0),
    ),
}
