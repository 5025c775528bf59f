"""The job ``extend_mllm``: a checkpoint learns the names of the mask words.

OUT/                  what Hugging Face's code reads: weights, config, tokenizer, processor
OUT/lineage.json      the resolved config, the tokenizer's hash, versions
OUT/samtok.json       what the words are; written last, so a folder without it is not finished
"""

from pipelines import job, storage
from pipelines.extension.config import ExtendMllmConfig
from pipelines.extension.prepare import LINEAGE_FILE, is_done, prepare
from pipelines.job import Closing, Inputs, Job, Run


class ExtendMllm(Job[ExtendMllmConfig]):
    """See the module. The resolved config is in lineage.json, since config.json is the model's."""

    name = "extend_mllm"
    holds_out = False

    def prepare(self) -> None:
        self.vocabulary = prepare(self.config)

    def size(self) -> str:
        source = self.config.model or f"a tiny {self.config.tiny}"
        return f"{len(self.vocabulary.words)} mask words ({self.vocabulary}) for {source}"

    def work(self, run: Run[ExtendMllmConfig]) -> Closing:
        if is_done(self.config):
            return Closing([("model", f"{self.config.out} was made by the same config before")])
        from pipelines.extension.run import extend_model  # loads torch

        ids = extend_model(self.config)
        words = len(self.vocabulary.words)
        tracker = run.track()  # only now: a folder with anything but a whole model in it is refused
        tracker.metrics({"mask_words": words, "first_id": ids.start, "last_id": ids.stop - 1})
        tracker.text(storage.read_bytes(storage.join(self.config.out, LINEAGE_FILE)).decode(), "lineage.json")
        return Closing([("words", f"{words}, with token ids in {ids.start} to {ids.stop - 1}")])


def extend_mllm(config: ExtendMllmConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(ExtendMllm, config, inputs=inputs)
