"""The job ``sweep_codebook``: one tokenizer per quantizer, otherwise alike, and a page that compares them.

OUT/config.json, base/       the sweep, and the steps that its trials share
OUT/trials/NAME/             a training run each, see ``training.job``
OUT/results.json, report/    the table, and the page
"""

from functools import partial

from pipelines import job
from pipelines.job import Closing, Job, Run
from pipelines.sweeps.config import EXPERIMENT, SweepConfig
from pipelines.sweeps.trial_flags import in_trials
from pipelines.tokenizer_training.architecture import architecture_of, check_quantize_from
from pipelines.tokenizer_training.prepare import prepare


class SweepCodebook(Job[SweepConfig]):
    """See the module."""

    name = EXPERIMENT

    def prepare(self) -> None:
        config = self.config
        with in_trials():
            for name in config.quantizers:  # all of them, before the first one costs anything
                check_quantize_from(config.trial(name, None))
            first = config.base() if config.base_steps else config.trial(config.quantizers[0], None)
            prepare(first).check_folder()

    def size(self) -> str:
        lines = []
        for name in self.config.quantizers:
            quantizer = architecture_of(self.config.trial(name, None)).quantizer
            lines.append(
                f"trial {name}: {quantizer.num_words} words, {quantizer.bits_per_mask:.1f} bits a mask, "
                f"{self.config.train.steps} steps"
            )
        return f"{len(lines)} trials\n" + "\n".join(lines)

    def work(self, run: Run[SweepConfig]) -> Closing:
        from pipelines.sweeps.run import sweep  # loads torch

        return sweep(self.config, run)


sweep_codebook = partial(job.run, SweepCodebook)
