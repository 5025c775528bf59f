"""Train one tokenizer per quantizer, side by side on Ray Tune, and compare them. The same --out resumes.

Preset shapes asks what Tables 12 and 13 of the paper ask, on synthetic scenes.

    python jobs/sweep_codebook.py --preset smoke
    python jobs/sweep_codebook.py --preset shapes
    ray job submit --working-dir . -- python jobs/sweep_codebook.py --preset paper --out s3://models/sweep \\
        --train.start.sam2 s3://models/sam2.1_hiera_large.pt \\
        --train.corpora reader=sa1b,source=s3://data/sa1b \\
        --train.validation.corpora reader=sa1b,source=s3://data/held-out
"""

from pipelines import cli, embedded
from pipelines.sweeps.config import PRESETS, SweepConfig
from pipelines.sweeps.job import sweep_codebook


def main(argv: list[str] | None = None) -> int:
    return sweep_codebook(cli.parse(SweepConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
