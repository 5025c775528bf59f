"""The job ``cold_start``: a teacher's replies become samples whose answers have a thought before them.

OUT/config.json                the resolved config
OUT/teacher/                   what a teacher model wrote: plan, shards (teacher.REPLY_ROW), manifest
OUT/plan.json, plan/           the replies, each with its sample
OUT/data/, rejects/, commits/  the samples with thoughts (schema.CHAT_ROW), and what became of other replies
OUT/_MANIFEST.json             written last; the corpus is one of chats
OUT/report/index.html          counts, reasons, samples
"""

from pipelines import job, rejects
from pipelines.cold_start.config import ColdStartConfig
from pipelines.cold_start.prepare import prepare
from pipelines.job import Closing, Inputs, Job, Run
from pipelines.shard_job import Unit
from samtok.errors import DataError

REPLIES = Unit("replies", "items_in", "items_out", "items_rejected")
SAMPLES = Unit("samples", "samples_in", "samples_out", "samples_rejected")


class ColdStartJob(Job[ColdStartConfig]):
    """See the module."""

    name = "cold_start"

    def prepare(self) -> None:
        self.checked = prepare(self.config)
        self.config = self.checked.config

    def size(self) -> str:
        return self.checked.size()

    def work(self, run: Run[ColdStartConfig]) -> Closing:
        from pipelines.chats import outcome  # these draw pictures and load torch
        from pipelines.cold_start.run import ask_teacher, write_thoughts

        config, teacher = self.config, None
        if config.teacher.model is not None:
            plan = self.checked.teacher_plan()
            teacher = ask_teacher(self.checked, plan, run.begin(config))
        plan = self.checked.thoughts_plan(teacher)
        tracker = run.begin(config) if teacher is None else run.tracker
        manifest = write_thoughts(self.checked, plan, tracker)
        outcome.publish(config.out, manifest, tracker, samples=config.report_samples, seed=config.seed)
        totals = manifest["totals"]
        if not totals[REPLIES.total]:
            raise DataError(f"there are no replies in {config.teacher.replies}.")
        rows = outcome.rows_of(config.out, manifest, samples=config.report_samples)
        reasons = rejects.of_corpus(config.out, manifest)
        return Closing(rows, (REPLIES.items(totals),), (outcome.table_of(totals),), reasons)


def cold_start(config: ColdStartConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(ColdStartJob, config, inputs=inputs)
