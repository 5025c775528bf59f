"""Compose chats: corpora of mask words and their annotations become what an MLLM is trained on.

    python jobs/compose_dialogues.py --preset smoke
    python jobs/compose_dialogues.py --words runs/words --out runs/chats --tasks gres=1,instances=0.5

Instead of --words, --jsonl.source FILE imports chats of ms-swift or LLaVA; --export writes either format.
Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli
from pipelines.dialogues.config import PRESETS, ComposeDialoguesConfig


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(ComposeDialoguesConfig, PRESETS, argv, doc=__doc__)
    from pipelines.dialogues.run import compose_dialogues  # Ray and torch load only once the flags are right

    return compose_dialogues(config)


if __name__ == "__main__":
    raise SystemExit(main())
