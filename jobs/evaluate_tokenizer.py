"""Measure a tokenizer on whole corpora: r-Acc, boundary IoU and codebook use, with a report.

    python jobs/evaluate_tokenizer.py --preset smoke
    ray job submit --working-dir . -- python jobs/evaluate_tokenizer.py --preset paper \\
        --tokenizer.uri URI --out URI --corpora reader=coco,source=FILE,images=FOLDER,dataset=entityseg

Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli
from pipelines.tokenizer_evaluation.config import PRESETS, EvaluateTokenizerConfig


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(EvaluateTokenizerConfig, PRESETS, argv, doc=__doc__)
    from pipelines.tokenizer_evaluation.run import evaluate_tokenizer

    return evaluate_tokenizer(config)


if __name__ == "__main__":
    raise SystemExit(main())
