"""The job ``evaluate_tokenizer``: every corpus through tokenization with all masks reconstructed, then sums.

OUT/config.json                the resolved config
OUT/<dataset>/                 code rows with IoUs, committed shard by shard: what resuming looks at
OUT/masks.parquet              one row per mask
OUT/lineage.json               tokenizer, fingerprints of all corpora, versions
OUT/metrics.json               the numbers
OUT/report/index.html          tables, plots, the worst masks, images drawn at random
"""

from pipelines import job, rejects, storage
from pipelines.job import Closing, Inputs, Items, Job, Run
from pipelines.tokenizer_evaluation.config import EvaluateTokenizerConfig
from pipelines.tokenizer_evaluation.prepare import METRICS, resolved, tokenizations_of


class EvaluateTokenizer(Job[EvaluateTokenizerConfig]):
    """See the module."""

    name = "evaluate_tokenizer"

    def prepare(self) -> None:
        self.checked = tokenizations_of(self.config)
        self.config = resolved(self.config, next(iter(self.checked.values())).config)

    def size(self) -> str:
        return "; ".join(f"{name}: {tokenization.size()}" for name, tokenization in self.checked.items())

    def work(self, run: Run[EvaluateTokenizerConfig]) -> Closing:
        from pipelines.tokenization.run import listing_workers  # these load torch
        from pipelines.tokenizer_evaluation import outcome
        from pipelines.tokenizer_evaluation.run import measure
        from pipelines.tokenizer_evaluation.summary import table_of

        with listing_workers(self.config) as workers:
            plans = {name: tokenization.plan(workers) for name, tokenization in self.checked.items()}
            tracker = run.begin(self.config, tags=outcome.tags_of(self.checked, plans))
            corpora, works, times = measure(self.config, self.checked, plans)
        metrics = outcome.publish(self.config, self.checked, corpora, works, tracker)
        counts, codes = metrics["overall"]["counts"], metrics["overall"]["codes"]
        images = counts["images_in"]
        used = " / ".join(str(level["used"]) for level in codes["levels"])
        rows = [
            ("codes", f"{used} of {codes['num_codes']} used, {codes['distinct_tuples']} different tuples"),
            ("numbers", storage.join(self.config.out, METRICS)),
        ]
        if self.config.report_images:
            rows.append(("report", storage.join(self.config.out, "report/index.html")))
        items = [
            Items("images", images, images - counts["images_rejected"], counts["images_rejected"]),
            Items("masks", *(counts[f"masks_{end}"] for end in ("in", "measured", "rejected", "filtered"))),
        ]
        reasons = rejects.together(rejects.of_corpus(one.out, one.manifest) for one in corpora)
        tables = [table_of(metrics), *(table for one in times if (table := one.table()))]
        return Closing(rows, items, tables, reasons)


def evaluate_tokenizer(config: EvaluateTokenizerConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(EvaluateTokenizer, config, inputs=inputs)
