"""Small corpora of words, made by the real stages without Ray."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipelines import shards
from pipelines.ingestion.coco import CocoReader
from pipelines.ingestion.corpora import CorpusConfig
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes as write_corpus
from pipelines.planning import plans
from pipelines.tokenization.assemble import Assembler, commit_shard
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tokenization.read import ReadImages
from pipelines.tokenization.stage import TokenizeMasks
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import WorldConfig


def save_micro_tokenizer(folder: Path, *, seed: int = 0) -> str:
    """Writes a micro tokenizer with random weights and returns its URI."""
    torch.manual_seed(seed)
    MaskTokenizer.from_preset("micro").save_pretrained(str(folder))
    return str(folder)


def tokenization(tokenizer_uri: str = "tiny", **options: Any) -> TokenizeCorpusConfig:
    """Returns options of the job for stages that are handed their reader."""
    corpus = CorpusConfig(reader="sa1b", source="unused")
    return TokenizeCorpusConfig(corpus=corpus, out="unused", tokenizer=tokenizer_uri, **options)


def write_shapes(root: Path, *, num_images: int, crowd_share: float = 0.0, side: int = 64) -> CocoReader:
    """Writes synthetic scenes in COCO's layout and returns their reader."""
    world = WorldConfig.square(side)
    config = ShapesConfig(
        out=str(root), num_images=num_images, world=world, crowd_share=crowd_share, image_format="png"
    )
    write_corpus(config)
    annotations = root / "annotations" / "instances_train.json"
    return CocoReader(name="shapes", split="train", source=str(annotations), images=str(root / "train"))


def fingerprint(tokenizer_uri: str, **changed: object) -> dict[str, object]:
    """Returns a fingerprint of a micro corpus."""
    return {
        "dataset": "shapes",
        "split": "train",
        "tokenizer": tokenizer_uri,
        "num_codes": 64,
        "num_levels": 2,
        "threshold": 0.0,
        **changed,
    }


def make_corpus(
    out: str,
    reader: CocoReader,
    tokenizer_uri: str,
    *,
    policy: dict[str, Any] | None = None,
    shard_rows: int = 4,
    only_shards: tuple[int, ...] | None = None,
    plan_rejects: tuple[dict, ...] = (),
    **changed: object,
) -> str:
    """Plans and tokenizes a corpus in this process; with ``only_shards`` it stays unfinished.

    ``changed`` replaces entries of the fingerprint, ``policy`` has options of the job.
    """
    options = tokenization(tokenizer_uri, **(policy or {"reconstruct": 1.0}))
    inputs = [*plan_rejects, *reader.inputs()]
    plan = plans.make_plan(
        out, fingerprint(tokenizer_uri, **changed), inputs, shard_rows=shard_rows, chunk_rows=2
    )
    tokenize = TokenizeMasks(options)
    read = ReadImages(plan, reader, tokenize.tokenizer.config, options)
    todo = range(len(plan.shard_rows)) if only_shards is None else only_shards
    for number in todo:
        assembler, shard = Assembler(), None
        for chunk in plan.chunks(number):
            done = tokenize(read(pa.table({k: [v] for k, v in chunk._asdict().items()})))
            shard = assembler.add(done.to_pylist()[0])
        assert shard is not None
        commit_shard(plan, shard)
    records = shards.committed(plan)
    if len(records) == len(plan.shard_rows):
        shards.finish(plan)
    return out
