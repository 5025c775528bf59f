"""The steps of fine-tuning: next-token loss on answers (paper, section 2.2), free of where it runs.

A step's loss is a mean over the learnt tokens of all its chats, so it is the same whatever the number of
workers and micro-batches and whether chats are packed, but for rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.data import alike, micro_batches
from pipelines.training import world
from pipelines.training.engine import Engine, autocast
from pipelines.training.steps import Steps, learning_rate, mixed_seed
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.loss import answer_loss
from samtok.mllm.packed_attention import attend_by_dialogue
from samtok.mllm.token_budget import computed
from samtok.ranks import sum_over_ranks


class Trainer:
    """Takes steps.

    Args:
        model: On its device, trained parts set; all workers start with equal weights. To pack, its attention
            is set to stay within dialogues.
        alike: Whether the engine wants all workers to use the same parts of the model (from ZeRO-2 on).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapter: Adapter,
        engine: Engine,
        config: TrainMllmConfig,
        *,
        alike: bool = False,
    ) -> None:
        self.model, self.adapter, self.engine, self.config = model, adapter, engine, config
        self.alike = alike
        self.steps = Steps()
        if config.engine.packing:
            attend_by_dialogue(model)

    def take_step(self, samples: Sequence[Encoded]) -> dict[str, float]:
        """Takes one step over this worker's chats; collective. Returns the step's metrics, of all workers.

        A step whose gradient is NaN or infinite is skipped on all workers. Raises TrainingDiverged if too
        many steps in a row were skipped.
        """
        step, config = self.steps.done, self.config
        torch.manual_seed(mixed_seed(config.seed, step, world.rank()))  # a model may have dropout
        self.model.train()
        micro = micro_batches(samples, config)
        if self.alike:
            micro = alike(micro, self.adapter)
        counts = [sum(s.num_learnt for s in samples), sum(map(len, samples)), len(samples)]
        learnt, tokens, chats = self.summed(counts)
        losses = [self._pass(batch, learnt) for batch in micro]
        rate = learning_rate(step, config.steps, config.optimizer)
        norm = self.engine.step(rate)
        rows = sum(map(self._computed, micro))
        loss_sum, rows = self.summed([float(torch.stack(losses).double().sum()), rows])
        metrics = {
            "step": step,
            "loss": loss_sum / max(learnt, 1),
            "tokens": tokens,
            "learnt_tokens": learnt,
            "samples": chats,
            "padding": 1 - tokens / rows,
            "lr": rate,
            "gradient_norm": norm,
        }
        good = self.steps.count(norm, metrics, config.max_bad_steps)
        return metrics | {"skipped": float(not good)}

    def _pass(self, samples: Sequence[Encoded], learnt: float) -> Tensor:
        """Goes forward and backward; returns the sum of the losses."""
        with autocast(self.model, self.config.precision):
            loss = answer_loss(self.model, self.batch(samples))
        self.engine.backward(loss / max(learnt, 1))
        return loss.detach()

    def batch(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        """Makes a micro-batch on the model's device, packed if the config says so."""
        make = self.adapter.pack if self.config.engine.packing else self.adapter.collate
        return make(samples, device=self.model.device)

    def _computed(self, samples: Sequence[Encoded]) -> int:
        """Returns the tokens that a micro-batch computes, padding included."""
        return computed([len(sample) for sample in samples], packed=self.config.engine.packing)

    def summed(self, values: Sequence[float]) -> list[float]:
        """Returns numbers summed over all workers; collective."""
        own = torch.tensor(values, dtype=torch.float64, device=self.model.device)
        return sum_over_ranks(own).tolist()
