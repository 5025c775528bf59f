"""Train a mask tokenizer on Ray Train. The same --out resumes a run.

Preset tiny makes the tokenizer that ships with the package.

    python jobs/train_tokenizer.py --preset smoke
    python jobs/train_tokenizer.py --preset tiny
    ray job submit --working-dir . -- python jobs/train_tokenizer.py --preset paper \\
        --start.sam2 s3://models/sam2.1_hiera_large.pt --corpora reader=sa1b,source=s3://data/sa1b \\
        --validation.corpora reader=sa1b,source=s3://data/held-out --out s3://models/tokenizer
"""

from pipelines import cli, embedded
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.job import train_tokenizer
from pipelines.tokenizer_training.presets import PRESETS


def main(argv: list[str] | None = None) -> int:
    return train_tokenizer(cli.parse(TrainTokenizerConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
