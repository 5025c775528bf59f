"""Give an MLLM the mask words of a tokenizer, as new tokens: before jobs/train_mllm.py.

    python jobs/extend_mllm.py --model FOLDER --tokenizer URI --out runs/qwen-words
    python jobs/extend_mllm.py --tiny qwen2_5_vl --out runs/mllm

Needs no Ray. The folder is one of Hugging Face's; running it again with the same flags does nothing.
"""

from pipelines import cli
from pipelines.extension.config import PRESETS, ExtendMllmConfig


def main(argv: list[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    config = cli.parse(ExtendMllmConfig, PRESETS, argv, doc=__doc__)
    from pipelines.extension.run import extend_mllm  # torch loads only once the flags are right

    return extend_mllm(config)


if __name__ == "__main__":
    raise SystemExit(main())
