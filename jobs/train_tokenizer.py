"""Train a mask tokenizer from random weights on synthetic scenes.

python jobs/train_tokenizer.py --preset tiny       the tokenizer that ships with the package
python jobs/train_tokenizer.py --preset micro      a smaller one, in under a minute
"""

from pipelines import cli
from pipelines.tokenizer_training.config import PRESETS, TrainTokenizerConfig


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(TrainTokenizerConfig, PRESETS, argv, doc=__doc__)
    from pipelines.tokenizer_training.run import train_tokenizer  # torch loads only once the flags are right

    return train_tokenizer(config)


if __name__ == "__main__":
    raise SystemExit(main())
