"""The job ``evaluate_mllm``: an MLLM answers questions in mask words, and the masks are scored.

OUT/config.json                the resolved config
OUT/plan.json, plan/           the questions by image, frozen when the job first ran
OUT/data/shard-*.parquet       one row per question: answer, codes, masks, pixel counts (rows.ANSWER_ROW)
OUT/rejects/, commits/, _MANIFEST.json
OUT/lineage.json               model, tokenizer, chats, versions
OUT/metrics.json               the numbers, in every mode, beside the baseline
OUT/report/index.html          tables, and questions with truth and prediction
"""

from collections.abc import Mapping

from pipelines import job, rejects, storage
from pipelines.job import Closing, Inputs, Job, Run
from pipelines.mllm_evaluation.config import EvaluateMllmConfig
from pipelines.mllm_evaluation.prepare import METRICS, prepare
from pipelines.shard_job import Unit

QUESTIONS = Unit("questions", "samples_in", "samples_out", "samples_rejected")


class EvaluateMllm(Job[EvaluateMllmConfig]):
    """See the module."""

    name = "evaluate_mllm"

    def prepare(self) -> None:
        self.checked = prepare(self.config)
        self.config = self.checked.config

    def size(self) -> str:
        return self.checked.size()

    def work(self, run: Run[EvaluateMllmConfig]) -> Closing:
        from pipelines.mllm_evaluation import outcome  # these load torch
        from pipelines.mllm_evaluation.run import answer_all
        from pipelines.mllm_evaluation.scores import table_of

        plan = self.checked.plan()
        tracker = run.begin(self.config, tags=outcome.tags_of(self.checked))
        manifest, done = answer_all(self.checked, plan, tracker)
        metrics = outcome.publish(self.checked, manifest, done, tracker)
        counts, limit = metrics["counts"], self.config.generation.max_new_tokens
        targets = f"{counts['expected'] - counts['no_target']} questions, {counts['no_target']} without"
        broken = f"{counts['malformed_words']} broken words in {counts['answers_with_malformed']} of them"
        rows = [
            *([("targets", targets)] if self.checked.asked.masks != "none" else []),
            *_lost(counts),
            *_thoughts(counts, thinking=self.checked.asked.thinking),
            ("answers", f"{broken}, {counts['answers_cut']} cut at {limit} tokens"),
            ("rate", f"{done.rate(QUESTIONS.total):.2f} questions/s over {done.seconds:.0f} s"),
            ("numbers", storage.join(self.config.out, METRICS)),
        ]
        if self.config.report_pictures:
            rows.append(("report", storage.join(self.config.out, "report/index.html")))
        tables = [table_of(metrics, self.checked.beside, mode) for mode in metrics["modes"]]
        reasons = rejects.of_corpus(self.config.out, manifest)
        return Closing(rows, (QUESTIONS.items(manifest["totals"]),), tables, reasons)


def _lost(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Tells what was lost before a question could be asked, in reading, tokenizing and composing."""
    told = []
    if counts["lost"]:
        told.append(f"{counts['lost']} questions, wrong answers in strict mode")
    if counts["images_lost"]:
        told.append(f"{counts['images_lost']} images with questions that are not known")
    return [("lost", "; ".join(told))] if told else []


def _thoughts(counts: Mapping[str, int], *, thinking: bool) -> list[tuple[str, str]]:
    if not thinking:
        return []
    closed = counts["scored"] - counts["thoughts_unfinished"]
    mean = counts["thought_tokens"] / max(1, closed)
    return [("thoughts", f"{closed} of {counts['scored']} came to an answer, {mean:.0f} tokens on average")]


def evaluate_mllm(config: EvaluateMllmConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(EvaluateMllm, config, inputs=inputs)
