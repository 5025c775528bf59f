"""Write thoughts: a teacher explains the answers of a chat corpus, and what holds up becomes a new corpus.

    python jobs/cold_start.py --chats runs/chats --teacher.replies replies.jsonl --out runs/thoughts
    ray job submit --working-dir . -- python jobs/cold_start.py --preset authors --chats URI \\
        --teacher.model URI --out URI --pool.actors 8

jobs/train_mllm.py trains on the result, so that a model thinks before reinforcement learning begins.
Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli
from pipelines.cold_start.config import PRESETS, ColdStartConfig


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(ColdStartConfig, PRESETS, argv, doc=__doc__)
    from pipelines.cold_start.run import cold_start  # Ray and torch load only once the flags are right

    return cold_start(config)


if __name__ == "__main__":
    raise SystemExit(main())
