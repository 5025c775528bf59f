"""Measure a tokenizer on whole corpora: r-Acc, boundary IoU and codebook use, with a report.

    python jobs/evaluate_tokenizer.py --preset smoke
    ray job submit --working-dir . -- python jobs/evaluate_tokenizer.py --preset paper \\
        --tokenizer s3://models/tokenizer --out s3://runs/quality \\
        --corpora reader=coco,source=s3://data/es/val.json,images=s3://data/es/val,dataset=entityseg

Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli, embedded
from pipelines.tokenizer_evaluation.config import PRESETS, EvaluateTokenizerConfig
from pipelines.tokenizer_evaluation.job import evaluate_tokenizer


def main(argv: list[str] | None = None) -> int:
    return evaluate_tokenizer(cli.parse(EvaluateTokenizerConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
