"""Fine-tune an MLLM on chats with mask words, on Ray Train. The same --out resumes a run.

Preset tour trains the tiny model of `make tour`.

    python jobs/train_mllm.py --preset smoke
    python jobs/train_mllm.py --preset tour
    ray job submit --working-dir . -- python jobs/train_mllm.py --preset paper \\
        --model s3://models/qwen2.5-vl-3b-words --chats s3://chats/gres s3://chats/gcg \\
        --tokenizer s3://models/tokenizer --out s3://models/mllm --workers 8
"""

from pipelines import cli, embedded
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.job import train_mllm
from pipelines.sft.presets import PRESETS


def main(argv: list[str] | None = None) -> int:
    return train_mllm(cli.parse(TrainMllmConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
