"""Fine-tune an MLLM on chats with mask words, on Ray Train. The same --out resumes a run.

python jobs/train_mllm.py --preset tour       the tiny model of `make tour`
ray job submit --working-dir . -- python jobs/train_mllm.py --preset paper --model s3://b/qwen2.5-vl-3b-words
    --corpora uri=s3://b/chats/gres,weight=2 uri=s3://b/chats/gcg,weight=1 --out s3://b/mllm --workers.count 8
"""

from pipelines import cli
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.presets import PRESETS


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(TrainMllmConfig, PRESETS, argv, doc=__doc__)
    from pipelines.sft.run import train_mllm  # torch loads only once the flags are right

    return train_mllm(config)


if __name__ == "__main__":
    raise SystemExit(main())
