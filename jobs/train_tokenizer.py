"""Train a mask tokenizer on Ray Train. The same --out resumes a run.

python jobs/train_tokenizer.py --preset tiny       the tokenizer that ships with the package
python jobs/train_tokenizer.py --preset micro      a smaller one, in a minute or two
ray job submit --working-dir . -- python jobs/train_tokenizer.py --preset paper --start.sam2 s3://b/sam2.1_hiera_large.pt
    --corpora reader=sa1b,source=s3://b/sa1b --validation-corpora reader=coco,source=... --out s3://b/tokenizer
"""

from pipelines import cli
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.presets import PRESETS


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(TrainTokenizerConfig, PRESETS, argv, doc=__doc__)
    from pipelines.tokenizer_training.run import train_tokenizer  # torch loads only once the flags are right

    return train_tokenizer(config)


if __name__ == "__main__":
    raise SystemExit(main())
