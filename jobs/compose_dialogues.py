"""Compose chats: corpora of mask words and their annotations become what an MLLM is trained on.

    python jobs/compose_dialogues.py --preset smoke
    python jobs/compose_dialogues.py --words runs/words --out runs/chats --tasks gres=1,instances=0.5

Instead of --words, --chats.source FILE imports chats of other projects; --export writes their formats.
Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli, embedded
from pipelines.dialogues.config import PRESETS, ComposeDialoguesConfig
from pipelines.dialogues.job import compose_dialogues


def main(argv: list[str] | None = None) -> int:
    return compose_dialogues(cli.parse(ComposeDialoguesConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
