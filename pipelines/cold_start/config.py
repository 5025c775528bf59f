"""Options of ``jobs/cold_start.py``, and its presets."""

import tyro

from pipelines.config import (
    AtLeast0,
    AtLeast1,
    ImageLimit,
    NotNegative,
    Place,
    Precision,
    RunConfig,
    Share,
    ShippedPlace,
    WorkerConfig,
    config,
)
from pipelines.generation.config import GenerationConfig
from pipelines.schema import CHAT_TASKS
from pipelines.shards import ShardRows
from samtok.errors import ConfigError


@config
class TeacherConfig(GenerationConfig):
    """Who writes the thoughts: a model, or whoever wrote a file of replies."""

    model: ShippedPlace | None = None
    """Checkpoint folder, local or s3://, of an MLLM that knows the mask words."""
    replies: Place | None = None
    """JSONL, local or s3://, with {"sample_id": ..., "reply": ...} per line, of any model. Replies of over
    100,000 characters are rejected."""
    sees_answer: bool = True
    """The teacher sees the right answer and explains it, and that answer is kept. Otherwise it answers by
    itself after its thought, and that answer is kept if its reward is high enough."""
    thinks: bool = False
    """The teacher is a model that thinks already: it is asked as in reinforcement learning, for <think> and
    <answer>, so that a model teaches itself by what it got right; with --teacher.no-sees-answer."""
    temperature: NotNegative = 0.0
    """Of the sampling; 0 takes the likeliest token."""
    max_new_tokens: AtLeast1 = 512
    """Longest reply in tokens."""
    batch_size: AtLeast1 = 8
    """Samples per pass, of similar length; part of the plan, since low bits may depend on it."""
    shard_rows: AtLeast1 = 64
    """Samples per shard of replies: what a killed run repeats at most, per actor."""


@config
class ColdStartConfig(ImageLimit, RunConfig):
    """A corpus of chats becomes one whose answers have a thought before them."""

    MAIN = ("chats", "teacher.model", "teacher.replies", "out", "tasks", "min_reward", "workers", "limit")

    chats: Place
    """Corpus of chats (jobs/compose_dialogues.py); the last answer of a chat gets a thought."""
    teacher: TeacherConfig = TeacherConfig()
    """Who writes the thoughts."""
    precision: Precision = "float32"
    """Type of a teacher model's weights and arithmetic."""
    tasks: tuple[str, ...] = ()
    """Tasks of chat rows that are taken; by default all."""
    min_reward: Share = 1.0
    """Least mask-word reward of a sample that is kept; 1 for exactly the true words."""
    workers: AtLeast0 = 1
    """Actors, each with the teacher model; 0 works in this process, without Ray."""
    worker: WorkerConfig = WorkerConfig()
    num_cpus: AtLeast1 | None = None
    """Logical CPUs of a Ray that the job starts; by default the machine's, and at least enough."""
    shard_rows: ShardRows = 256
    """Most samples per shard of the new corpus, a multiple of 64."""
    report_samples: AtLeast0 = 24
    """Samples that are drawn in report/index.html; 0 writes no report."""

    def check(self) -> None:
        """Refuses tasks that chats do not have."""
        super().check()
        if self.teacher.thinks and self.teacher.sees_answer:
            raise ConfigError(
                "--.teacher.thinks has the teacher find the answers; add --.teacher.no-sees-answer."
            )
        for task in self.tasks:
            if task not in CHAT_TASKS:
                raise ConfigError(f"--.tasks must be some of {', '.join(CHAT_TASKS)}, got {task}.")


PRESETS: dict[str, ColdStartConfig] = {
    # Replies made by a template, for the synthetic chats that jobs make for themselves.
    "smoke": ColdStartConfig(
        chats="runs/embedded/gres-train/chats",
        out="runs/thoughts",
        teacher=TeacherConfig(replies="runs/embedded/gres-train/replies.jsonl"),
        report_samples=4,
    ),
    # `make tour-thinking`: thoughts by the template.
    "tour-thinking": ColdStartConfig(
        chats="runs/tour-thinking/chats-train",
        out="runs/tour-thinking/thoughts-file",
        teacher=TeacherConfig(replies="runs/tour-thinking/replies.jsonl"),
        report_samples=4,
    ),
    # And by the tiny model that was fine-tuned on these: what it gets right.
    "tour-thinking-self": ColdStartConfig(
        chats="runs/tour-thinking/chats-train",
        out="runs/tour-thinking/thoughts-self",
        teacher=TeacherConfig(
            model="runs/tour-thinking/teacher/final",
            sees_answer=False,
            thinks=True,
            temperature=1.0,
            max_new_tokens=128,
            batch_size=64,
            shard_rows=512,
        ),
        limit=2000,
        max_reject_rate=0.9,  # a third is wrong, which is why it is not taken
    ),
    # Section 3.2: 26k samples, thoughts by Qwen3-VL-235B, which has no mask words of its own, so they come as
    # a file of replies; GRES with its chats without a target, and GCG. The teacher sees the answer, and
    # lengths and sampling are ours. Not run yet.
    "authors": ColdStartConfig(
        chats=tyro.MISSING,
        out=tyro.MISSING,
        teacher=TeacherConfig(max_new_tokens=1024, batch_size=16),
        precision="bfloat16",
        tasks=("gres", "gcg"),
    ),
}
