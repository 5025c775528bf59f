"""The job ``compose_dialogues``: corpora of words become a corpus of chats.

OUT/config.json, plan.json, plan/, data/, rejects/, commits/, _MANIFEST.json   see ``pipelines.shards``
OUT/export/FORMAT/      the chats in the format of another project, if asked for
OUT/report/index.html   counts, rejects, chats drawn at random
"""

from pipelines import job, rejects, shards
from pipelines.dialogues.config import ComposeDialoguesConfig
from pipelines.dialogues.prepare import prepare
from pipelines.job import Closing, Inputs, Job, Run
from pipelines.shard_job import Unit

ITEMS = Unit(
    "items", "items_in", "items_out", "items_rejected", ("items_filtered", "items_thinned", "items_unused")
)
"""What may be asked about: an annotation as a task sees it, a class of masks, a relation."""


class ComposeDialogues(Job[ComposeDialoguesConfig]):
    """See the module."""

    name = "compose_dialogues"

    def prepare(self) -> None:
        self.checked = prepare(self.config)

    def size(self) -> str:
        return self.checked.size()

    def work(self, run: Run[ComposeDialoguesConfig]) -> Closing:
        from pipelines.chats import outcome  # draws pictures
        from pipelines.dialogues.exports import export
        from pipelines.dialogues.run import make_chats

        plan = self.checked.plan()
        tracker = run.begin(tags={"fingerprint": shards.digest(plan.fingerprint)})
        manifest, _ = make_chats(self.checked, plan, tracker)
        outcome.publish(
            self.config.out, manifest, tracker, samples=self.config.report_samples, seed=self.config.seed
        )
        kind, totals = self.config.export, manifest["totals"]
        exported = [] if kind is None else [(f"export/{kind}", export(self.config.out, kind))]
        rows = [
            ("images", f"{totals['rows_in']}, {totals['rows_out']} of them with chats"),
            ("notes", f"{totals['annotations_in']}, {totals['annotations_unused']} of them for other tasks"),
            *outcome.rows_of(self.config.out, manifest, samples=self.config.report_samples),
            *exported,
        ]
        reasons = rejects.of_corpus(self.config.out, manifest)
        return Closing(rows, (ITEMS.items(totals),), (outcome.table_of(totals),), reasons)


def compose_dialogues(config: ComposeDialoguesConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(ComposeDialogues, config, inputs=inputs)
