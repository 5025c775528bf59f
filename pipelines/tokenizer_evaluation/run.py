"""Reconstructs the masks of several corpora in one Ray session, and reads their scores."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack

from pipelines import shards
from pipelines.shard_job import Work
from pipelines.shards import Plan
from pipelines.tokenization.prepare import Tokenization
from pipelines.tokenization.run import make_words, ray_for
from pipelines.tokenization.stage_times import StageTimes
from pipelines.tokenizer_evaluation.config import EvaluateTokenizerConfig
from pipelines.tokenizer_evaluation.summary import Corpus, read_corpus

log = logging.getLogger(__name__)


def measure(
    config: EvaluateTokenizerConfig, tokenizations: Mapping[str, Tokenization], plans: Mapping[str, Plan]
) -> tuple[list[Corpus], dict[str, Work], list[StageTimes]]:
    """Reconstructs what is left of each corpus; returns all scores, what this call did, and how busy it
    was."""
    corpora: list[Corpus] = []
    works: dict[str, Work] = {}
    times: list[StageTimes] = []
    with ExitStack() as stack:
        if any(len(shards.committed(plan)) < len(plan.shard_rows) for plan in plans.values()):
            stack.enter_context(ray_for(config))
        for number, (name, tokenization) in enumerate(tokenizations.items(), start=1):
            log.info("corpus %d/%d: %s", number, len(tokenizations), name)
            manifest, works[name], busy = make_words(tokenization, plans[name])
            times.append(busy)
            corpora.append(read_corpus(name, tokenization.config.out, manifest))
    return corpora, works, times
