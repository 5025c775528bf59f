"""Tokenize every mask of a corpus: raw annotations become code shards, a manifest and a report.

    python jobs/tokenize_corpus.py --preset smoke
    ray job submit --working-dir . -- python jobs/tokenize_corpus.py --preset sa1b ...

Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli
from pipelines.tokenization.config import PRESETS, TokenizeCorpusConfig


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(TokenizeCorpusConfig, PRESETS, argv, doc=__doc__)
    from pipelines.tokenization.run import tokenize_corpus  # Ray and torch load only once the flags are right

    return tokenize_corpus(config)


if __name__ == "__main__":
    raise SystemExit(main())
