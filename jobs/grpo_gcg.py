"""Let a fine-tuned model sample captions with interleaved masks and learn from which words are right (GRPO).

    python jobs/grpo_gcg.py --preset smoke
    ray job submit --working-dir . -- python jobs/grpo_gcg.py
    ray job submit --working-dir . -- python jobs/grpo_gcg.py --preset paper --model s3://models/sft/final \\
        --tokenizer s3://models/tokenizer/final --chats s3://data/chats-gcg --out s3://models/grpo
"""

from pipelines import cli, embedded
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.job import grpo_gcg
from pipelines.grpo.presets import GCG


def main(argv: list[str] | None = None) -> int:
    return grpo_gcg(cli.parse(GrpoConfig, GCG, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
