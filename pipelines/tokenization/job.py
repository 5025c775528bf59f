"""The job ``tokenize_corpus``: every mask of a corpus becomes words.

OUT/config.json, plan.json, plan/, data/, rejects/, commits/, _MANIFEST.json   see ``pipelines.shards``
OUT/report/index.html   counts, IoU, use of the codebooks, rejects, pictures
"""

from pipelines import job, rejects, shards, storage
from pipelines.job import Closing, Inputs, Job, Run
from pipelines.shard_job import Unit
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tokenization.prepare import prepare

IMAGES = Unit(
    "images",
    "rows_in",
    "rows_out",
    "rows_rejected",
    in_plan=True,
    hint="Is the folder of images right, and mounted?",
)
MASKS = Unit(
    "masks",
    "masks_in",
    "masks_out",
    "masks_rejected",
    filtered=("masks_filtered",),
    remedy="--skip and --min-area-px say what is left out.",
)


class TokenizeCorpus(Job[TokenizeCorpusConfig]):
    """See the module."""

    name = "tokenize_corpus"

    def prepare(self) -> None:
        self.checked = prepare(self.config)
        self.config = self.checked.config

    def size(self) -> str:
        return self.checked.size()

    def work(self, run: Run[TokenizeCorpusConfig]) -> Closing:
        from pipelines.reports.words_page import told_agreement  # these load torch
        from pipelines.tokenization.outcome import publish
        from pipelines.tokenization.run import listing_workers, make_words

        with listing_workers(self.config) as workers:
            plan = self.checked.plan(workers)
            tracker = run.begin(self.config, tags=self.checked.tags(plan))
            manifest, done, times = make_words(self.checked, plan, tracker)
        agreement = publish(self.checked, manifest, done, times, tracker)
        rows = [
            ("rate", f"{done.rate('masks_out'):.1f} masks/s over {done.seconds:.0f} s"),
            ("words", storage.join(plan.out, shards.MANIFEST)),
        ]
        if self.config.report_images:
            rows.append(("report", storage.join(plan.out, "report/index.html")))
        if agreement is not None:
            rows.append(("agreement", told_agreement(agreement)))
        totals = manifest["totals"]
        reasons = rejects.of_corpus(plan.out, manifest)
        tables = [table] if (table := times.table()) else []
        return Closing(rows, (IMAGES.items(totals), MASKS.items(totals)), tables, reasons)


def tokenize_corpus(config: TokenizeCorpusConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(TokenizeCorpus, config, inputs=inputs)
