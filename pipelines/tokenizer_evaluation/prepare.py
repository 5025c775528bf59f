"""What is known before anything runs: the corpora, their names, and one tokenization for each of them."""

import dataclasses
import re
import sys
from collections import Counter

from pipelines import job as runs
from pipelines import provenance, storage
from pipelines.ingestion.corpora import CORPUS_KEYS, CorpusSpec
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tokenization.prepare import Job, foresee, prepare
from pipelines.tokenizer_evaluation.config import EvaluateTokenizerConfig
from samtok.errors import ConfigError

METRICS, MASKS, LINEAGE = "metrics.json", "masks.parquet", "lineage.json"
_TAKEN = (METRICS, MASKS, LINEAGE, "config.json", "mlflow_run.json", "report")
"""Names in the output folder that no corpus can have."""


def jobs_of(config: EvaluateTokenizerConfig) -> dict[str, Job]:
    """Returns the checked tokenization of each corpus by its name, in the order of the flag.

    Every image is reconstructed, and goes to a folder of its own below ``out``.

    Raises:
        ConfigError: If a corpus is named wrongly or twice, or a setting cannot work.
    """
    specs = specs_of(config)
    runs.refuse_lost_folders(config.out, config.tracking)
    return {spec.name: prepare(_tokenization(config, spec)) for spec in specs}


def specs_of(config: EvaluateTokenizerConfig) -> list[CorpusSpec]:
    """Reads ``--corpora``.

    Raises:
        ConfigError: If there are none, or one is malformed, has a name that cannot be a folder's, or the name
            of another one.
    """
    if not config.corpora:
        raise ConfigError("--corpora names no corpus; give at least one, as reader=coco,source=FILE,...")
    specs = [CorpusSpec.parse(text, flag="corpora") for text in config.corpora]
    for spec in specs:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", spec.name) or spec.name in _TAKEN:
            raise ConfigError(
                f"--corpora: the corpus {spec.name!r} cannot name a folder of the results; choose another "
                f"dataset=NAME of letters, digits, _, - and ., and none of {', '.join(_TAKEN)}"
            )
        if spec.weight is not None:
            raise ConfigError(f"--corpora: weight of {spec.name} has no meaning here, all masks count alike")
    twice = [name for name, count in Counter(spec.name.lower() for spec in specs).items() if count > 1]
    if twice:
        raise ConfigError(
            f"--corpora has {twice[0]!r} more than once; give each corpus a name of its own by dataset=NAME"
        )
    return specs


def resolved(config: EvaluateTokenizerConfig, jobs: dict[str, Job]) -> EvaluateTokenizerConfig:
    """Returns the config with absolute places and what the jobs filled in; it can be repeated anywhere."""
    first = next(iter(jobs.values())).config
    return dataclasses.replace(
        config,
        corpora=tuple(_text(job.config) for job in jobs.values()),
        out=storage.absolute(config.out),
        tokenizer=first.tokenizer,
        pool=first.pool,
        chunk_rows=first.chunk_rows,
    )


def dry_run(config: EvaluateTokenizerConfig, jobs: dict[str, Job]) -> int:
    """Prints the resolved config and how much there is to do."""
    sys.stdout.write(provenance.config_json(config))
    for name, job in jobs.items():
        sys.stdout.write(f"{name}: {foresee(job)}\n")
    return 0


def _tokenization(config: EvaluateTokenizerConfig, spec: CorpusSpec) -> TokenizeCorpusConfig:
    return TokenizeCorpusConfig(
        corpus=dataclasses.replace(spec.corpus, dataset=spec.name),
        out=storage.join(config.out, spec.name),
        tokenizer=config.tokenizer,
        pool=config.pool,
        shard_rows=config.shard_rows,
        chunk_rows=config.chunk_rows,
        reconstruct=1.0,
        boundary_iou=True,
        max_reject_rate=config.max_reject_rate,
        limit=spec.limit or config.limit,
        tracking=config.tracking,
        report_images=0,
        dry_run=config.dry_run,
    )


def _text(config: TokenizeCorpusConfig) -> str:
    """Writes a corpus as ``--corpora`` reads it."""
    values = {key: getattr(config.corpus, key) for key in CORPUS_KEYS} | {"limit": config.limit}
    return ",".join(f"{key}={value}" for key, value in values.items() if value is not None)
