"""Train one tokenizer per quantizer, side by side on Ray Tune, and compare them. The same --out resumes.

python jobs/sweep_codebook.py --preset smoke       everything once, in a few minutes
python jobs/sweep_codebook.py --preset shapes      the paper's Tables 12 and 13 on the synthetic corpus
ray job submit --working-dir . -- python jobs/sweep_codebook.py --preset paper --out s3://b/sweep ...
"""

from pipelines import cli
from pipelines.sweeps.config import PRESETS, SweepConfig


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(SweepConfig, PRESETS, argv, doc=__doc__)
    from pipelines.sweeps.run import sweep_codebook  # torch and Ray load only once the flags are right

    return sweep_codebook(config)


if __name__ == "__main__":
    raise SystemExit(main())
