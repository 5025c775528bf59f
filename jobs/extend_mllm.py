"""Give an MLLM the mask words of a tokenizer, as new tokens: before jobs/train_mllm.py.

Preset smoke builds a tiny model out of nothing.

    python jobs/extend_mllm.py --preset smoke
    ray job submit --working-dir . -- python jobs/extend_mllm.py --preset paper \\
        --model s3://models/qwen2.5-vl-3b --tokenizer s3://models/tokenizer --out s3://models/qwen2.5-vl-3b-words

Needs no Ray. The folder is one of Hugging Face's; running it again with the same flags does nothing.
"""

from pipelines import cli, embedded
from pipelines.extension.config import PRESETS, ExtendMllmConfig
from pipelines.extension.job import extend_mllm


def main(argv: list[str] | None = None) -> int:
    return extend_mllm(cli.parse(ExtendMllmConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
