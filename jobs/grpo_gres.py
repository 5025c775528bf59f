"""Let a fine-tuned model sample answers to referring questions and learn from which words are right (GRPO).

    python jobs/grpo_gres.py --preset smoke
    ray job submit --working-dir . -- python jobs/grpo_gres.py
    ray job submit --working-dir . -- python jobs/grpo_gres.py --preset paper --model s3://models/sft/final \\
        --tokenizer s3://models/tokenizer/final --chats s3://data/chats-gres --out s3://models/grpo
"""

from pipelines import cli, embedded
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.job import grpo_gres
from pipelines.grpo.presets import GRES


def main(argv: list[str] | None = None) -> int:
    return grpo_gres(cli.parse(GrpoConfig, GRES, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
