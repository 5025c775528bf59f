"""Write thoughts: a teacher explains the answers of a chat corpus, and what holds up becomes a new corpus.

    python jobs/cold_start.py --preset smoke
    ray job submit --working-dir . -- python jobs/cold_start.py --preset authors \\
        --chats s3://chats/grefcoco --teacher.replies s3://chats/thoughts.jsonl --out s3://chats/thoughts

Instead of --teacher.replies FILE, --teacher.model FOLDER asks a model, on --workers actors.
jobs/train_mllm.py trains on the result, so that a model thinks before reinforcement learning begins.
Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli, embedded
from pipelines.cold_start.config import PRESETS, ColdStartConfig
from pipelines.cold_start.job import cold_start


def main(argv: list[str] | None = None) -> int:
    return cold_start(cli.parse(ColdStartConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
