"""What is known before anything runs: the corpora, their names, and one tokenization for each of them."""

import dataclasses
import re
from collections import Counter

from pipelines import storage
from pipelines.ingestion import corpora
from pipelines.ingestion.corpora import CorpusSpec
from pipelines.tokenization.config import TokenizationConfig, TokenizeCorpusConfig
from pipelines.tokenization.prepare import Tokenization, prepare
from pipelines.tokenizer_evaluation.config import EvaluateTokenizerConfig
from samtok.errors import ConfigError

METRICS, MASKS, LINEAGE = "metrics.json", "masks.parquet", "lineage.json"
_TAKEN = (METRICS, MASKS, LINEAGE, "config.json", "mlflow_run.json", "report")
"""Names in the output folder that no corpus can have."""


def tokenizations_of(config: EvaluateTokenizerConfig) -> dict[str, Tokenization]:
    """Returns the checked tokenization of each corpus by its name, in the order of the flag.

    Every image is reconstructed, and goes to a folder of its own below ``out``.

    Raises:
        ConfigError: If a corpus is named wrongly or twice, or a setting cannot work.
    """
    return {spec.name: prepare(_tokenization(config, spec)) for spec in specs_of(config)}


def specs_of(config: EvaluateTokenizerConfig) -> list[CorpusSpec]:
    """Reads ``--corpora``; raises ConfigError if one is malformed, has a name that cannot be a folder's, or
    the name of another one."""
    specs = corpora.specs_of(config.corpora, flag="corpora")
    for spec in specs:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", spec.name) or spec.name in _TAKEN:
            raise ConfigError(
                f"--corpora: the corpus {spec.name!r} cannot name a folder of the results; choose another "
                f"dataset=NAME of letters, digits, _, - and ., and none of {', '.join(_TAKEN)}."
            )
        if spec.weight is not None:
            raise ConfigError(f"--corpora: weight of {spec.name} has no meaning here, all masks count alike.")
    twice = [name for name, count in Counter(spec.name.lower() for spec in specs).items() if count > 1]
    if twice:
        raise ConfigError(
            f"--corpora has {twice[0]!r} more than once; give each corpus a name of its own by dataset=NAME."
        )
    return specs


def resolved(config: EvaluateTokenizerConfig, first: TokenizeCorpusConfig) -> EvaluateTokenizerConfig:
    """Returns the config with what preparing filled in; it can be repeated anywhere."""
    texts = tuple(
        dataclasses.replace(
            spec,
            corpus=dataclasses.replace(spec.corpus, dataset=spec.name),
            limit=spec.limit or config.limit,
        ).text
        for spec in specs_of(config)
    )
    return dataclasses.replace(config, corpora=texts, worker=first.worker, chunk_rows=first.chunk_rows)


def _tokenization(config: EvaluateTokenizerConfig, spec: CorpusSpec) -> TokenizeCorpusConfig:
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(TokenizationConfig)}
    return TokenizeCorpusConfig(
        **shared
        | {
            "out": storage.join(config.out, spec.name),
            "limit": spec.limit or config.limit,
            "report_images": 0,
            "seed": 0,
        },
        corpus=dataclasses.replace(spec.corpus, dataset=spec.name),
        reconstruct=1.0,
        boundary_iou=True,
    )
