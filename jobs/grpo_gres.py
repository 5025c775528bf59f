"""Let a fine-tuned model sample answers to referring questions and learn from which words are right (GRPO).

    python jobs/grpo_gres.py --preset smoke
    ray job submit --working-dir . -- python jobs/grpo_gres.py --preset smoke
    ray job submit --working-dir . -- python jobs/grpo_gres.py --preset paper --model s3://models/sft/final \
        --tokenizer s3://models/tokenizer/final --prompts.corpora s3://data/chats-gres --out s3://models/grpo
"""

from pipelines import cli
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.presets import GRES


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(GrpoConfig, GRES, argv, doc=__doc__)
    from pipelines.grpo.run import grpo  # loads torch and Ray, which a wrong flag need not wait for

    return grpo(config, experiment="grpo_gres")


if __name__ == "__main__":
    raise SystemExit(main())
