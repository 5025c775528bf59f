"""Tokenize every mask of a corpus: raw annotations become code shards, a manifest and a report.

    python jobs/tokenize_corpus.py --preset smoke
    ray job submit --working-dir . -- python jobs/tokenize_corpus.py --preset sa1b \\
        --corpus.source s3://data/sa1b --tokenizer s3://models/tokenizer --out s3://words/sa1b --workers 8

Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli, embedded
from pipelines.tokenization.config import PRESETS, TokenizeCorpusConfig
from pipelines.tokenization.job import tokenize_corpus


def main(argv: list[str] | None = None) -> int:
    return tokenize_corpus(cli.parse(TokenizeCorpusConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
