"""A process that learns from responses. Knows no Ray.

Where there are several, torch.distributed is initialised before, and all calls are collective: every learner
has its share of a step's prompts, and gradients are summed. What a token counts in the loss was decided by
the driver over the whole step, so neither the number of learners nor the cut into micro-batches matters.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import storage
from pipelines.generation import models
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Group, Share
from pipelines.grpo.learn.algorithms import AlgorithmConfig
from pipelines.grpo.transport import Weights, WeightTransport
from pipelines.training import mllm, world
from pipelines.training.engine import autocast, engine_of, zero_stage
from pipelines.training.mllm import names_of_trained
from pipelines.training.offload import Offload
from pipelines.training.prepare import Prepared
from pipelines.training.steps import Steps, learning_rate
from pipelines.training.worker import load_state, save_state
from pipelines.training.writing import CheckpointWriter
from samtok.mllm.activations import keep_fewer_activations
from samtok.mllm.chat import Encoded
from samtok.mllm.float_head import use_float32_head
from samtok.mllm.generation import processor_of
from samtok.mllm.lora import turn_off
from samtok.mllm.packed_attention import attend_by_dialogue
from samtok.mllm.sampling import ResponseLogits, response_log_probs
from samtok.mllm.token_budget import fits
from samtok.rl.entropy import entropies
from samtok.rl.kl import kl_loss, kl_values, sequence_kl
from samtok.rl.policy import PolicySettings, policy_terms, truncated_importance


@dataclass(frozen=True)
class Micro:
    """Some responses; what is per response (advantages, weights) or per token is in the order of prompts and
    responses, in float32."""

    prompts: list[Encoded]  # each once, with its image
    responses: list[list[np.ndarray]]  # token ids of the responses to each
    advantages: Tensor
    weights: Tensor
    rollout: Tensor  # log-probability of each token when it was sampled, float32
    blank_image: bool = False  # goes through the vision encoder without an image of its own

    def without_weight(self) -> "Micro":
        """Returns the same responses, from which nothing is learnt."""
        return replace(self, weights=torch.zeros_like(self.weights))


class Learner:
    """Learns."""

    def __init__(
        self, task: Prepared[GrpoConfig], transport: WeightTransport, device: torch.device | str = "cpu"
    ) -> None:
        config = task.config
        torch.set_num_threads(config.learner.worker.threads)
        self.task, self.config, self.transport, self.rank = task, config, transport, world.rank()
        attention = config.learner.attention
        self.adapter, self.model = models.load(
            config.model, device=device, precision="float32", attention=attention
        )
        self.adapter.thinking = config.prompts.thinking
        mllm.set_trained(self.model, self.adapter, config)
        use_float32_head(self.model)
        if config.learner.packing:
            attend_by_dialogue(self.model)
        self.trained = names_of_trained(self.model)
        self.reference = _reference(self.model, task.deepspeed) if config.algorithm.kl.weight else None
        self.model.train(config.learner.gradient_checkpointing)
        if config.learner.gradient_checkpointing:
            keep_fewer_activations(self.model)
        self.engine = engine_of(self.model, config.optimizer, task.deepspeed)
        self.alike = zero_stage(task.deepspeed) > 1
        self.processor = processor_of(self.adapter, grammar=config.rollout.grammar)
        self.precision = mllm.precision_of(config.export_precision, config.model)
        self.settings = policy_settings(config.algorithm)
        self.steps = Steps()
        self.writer = CheckpointWriter(config.out, config.checkpoints.keep)
        self.memory = Offload(self.model, self.reference, *self.engine.roots)

    # ---------------------------------------------------------------- learning

    def learn(self, step: int, parts: Sequence[Sequence[Share]], *, change: bool = True) -> dict[str, float]:
        """Takes one optimizer step per part; returns the metrics of all learners.

        A part whose gradient is no number is skipped on all learners.

        Args:
            step: Of the run, from 0; decides the learning rate.
            parts: This learner's shares of each optimizer step, at least one share each.
            change: Without it all is computed, and the weights stay as they are.

        Raises:
            TrainingDiverged: Too many steps in a row were skipped.
            SamtokError: The last checkpoint could not be written.
        """
        self.writer.check()
        cut = [self._cut(part) for part in parts]
        old = [[self._log_probs(micro) for micro in part] if len(parts) > 1 else None for part in cut]
        sums: list[dict[str, float]] = []
        norms: list[float] = []
        rate = learning_rate(step, self.config.steps, self.config.optimizer)
        skipped = self.steps.skipped
        for part, known in zip(cut, old, strict=True):
            sums += [self._pass(micro, known[i] if known else None) for i, micro in enumerate(part)]
            norms.append(self.engine.step(rate if change else 0.0))
            self.steps.done = step  # inner steps are one step of the run
            self.steps.count(norms[-1], {"step": step, "lr": rate}, self.config.max_bad_steps)
        return {
            **_means(world.gathered(sums), len(parts)),
            "gradient_norm": sum(norms) / len(norms),
            "lr": rate,
            "skipped": float(self.steps.skipped - skipped),
        }

    def _cut(self, shares: Sequence[Share]) -> list[Micro]:
        own = self.config.learner
        together = partial(fits, items=own.micro_batch, tokens=own.micro_batch_tokens, packed=own.packing)
        return self._even(micro_batches(shares, together))

    def _even(self, made: list[Micro]) -> list[Micro]:
        """Makes as many micro-batches as the learner with most of them has, which from ZeRO-2 on use the same
        parts of the model as those of the other learners."""
        missing = max(world.gathered([len(made)])) - len(made)
        made = made + [made[0].without_weight()] * missing
        if not self.alike:
            return made
        lacking = world.only_elsewhere([any(prompt.vision for prompt in micro.prompts) for micro in made])
        return [replace(micro, blank_image=lacks) for micro, lacks in zip(made, lacking, strict=True)]

    def _logits(self, micro: Micro, model: Any = None) -> ResponseLogits:
        with autocast(self.model, self.config.precision):
            return response_log_probs(
                self.model if model is None else model,
                self.adapter,
                micro.prompts,
                micro.responses,
                self.processor,
                temperature=self.config.rollout.temperature,
                blank_image=micro.blank_image,
                packed=self.config.learner.packing,
            )

    @torch.no_grad()
    def _log_probs(self, micro: Micro, model: Any = None) -> Tensor:
        return self._logits(micro, model).log_probs

    def _pass(self, micro: Micro, old: Tensor | None) -> dict[str, float]:
        """Goes forward and backward through a micro-batch; returns sums over its tokens."""
        algorithm = self.config.algorithm
        found = self._logits(micro)
        log_probs, of = found.log_probs, found.sequence
        device = log_probs.device
        rollout = micro.rollout.to(device)
        before = log_probs.detach() if old is None else old
        terms = policy_terms(log_probs, before, micro.advantages.to(device)[of], of, self.settings)
        loss = terms.loss
        if algorithm.importance_cap is not None:
            loss = loss * truncated_importance(
                before, rollout, of, cap=algorithm.importance_cap, level=algorithm.importance_level
            )
        drift = torch.zeros_like(log_probs)
        if self.reference is not None:
            drift = self._log_probs(micro, self.reference)
            if algorithm.kl.place == "loss":
                loss = loss + algorithm.kl.weight * kl_loss(log_probs, drift, algorithm.kl.kind)
            drift = kl_values(log_probs.detach(), drift, "k3")
        weighted = (loss * micro.weights.to(device)[of]).sum()
        self.engine.backward(weighted)
        counted = (micro.weights.to(device)[of] > 0).float()
        apart = (before - rollout).abs() * counted
        with torch.no_grad():
            entropy = entropies(found.logits, self.config.rollout.temperature)
        sums = {
            "loss": weighted.detach(),
            "tokens": counted.sum(),
            "entropy": (entropy * counted).sum(),
            "kl": (drift * counted).sum(),
            "clip_low": (terms.clipped_low * counted).sum(),
            "clip_high": (terms.clipped_high * counted).sum(),
            "mismatch": apart.sum(),
            "mismatch_max": apart.max(),
        }
        return dict(
            zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)
        )  # one wait for the device

    @torch.no_grad()
    def drift(self, *groups: Group) -> list[list[float]]:
        """Returns the distance of each response to the reference, summed over its tokens, for the reward."""
        kind = self.config.algorithm.kl.kind
        assert kind != "k3_straight"  # checked by the config
        found = []
        for micro in self._even([_all_of(group) for group in groups]):
            own = self._logits(micro)
            sums = sequence_kl(own.log_probs, self._log_probs(micro, self.reference), own.sequence, kind)
            found.append(sums.tolist())
        return found[: len(groups)]

    # ---------------------------------------------------------------- checks

    @torch.no_grad()
    def parity(self, *groups: Group) -> dict[str, float]:
        """Compares log-probabilities with those that the samplers recorded; returns mean and maximum."""
        micros = [_all_of(group) for group in groups]
        apart = [(self._logits(micro).log_probs.cpu() - micro.rollout).abs() for micro in micros]
        joined = torch.cat(apart)
        return {"mean": float(joined.mean()), "max": float(joined.max()), "tokens": len(joined)}

    @torch.no_grad()
    def image_effect(self, group: Group) -> float:
        """Returns by how much log-probabilities change if the image is turned into its negative."""
        micro = _all_of(group)
        prompt = micro.prompts[0]
        if not prompt.vision:
            return float("inf")
        negative = {"pixel_values": 255 - prompt.vision["pixel_values"]}
        other = replace(micro, prompts=[replace(prompt, vision={**prompt.vision, **negative})])
        return float((self._logits(micro).log_probs - self._logits(other).log_probs).abs().max())

    # ---------------------------------------------------------------- weights and state

    def publish(self, version: int) -> Weights | None:
        """Publishes the trained weights, adapters merged; the first learner returns where they are."""
        found = self.transport.publish(mllm.published(self.model, self.engine, self.trained), version)
        return found if self.rank == 0 else None

    def sleep(self) -> None:
        """Moves weights, reference and optimizer to the host; nothing else can be called before ``wake``."""
        self.memory.leave()

    def wake(self) -> None:
        """Takes them back."""
        self.memory.come_back()

    def save(self, body: Mapping[str, Any]) -> None:
        """Begins a checkpoint with what the driver wants kept."""
        save_state(self.writer, self, body, seed=self.config.seed)

    def finish_saving(self) -> None:
        """Waits until the checkpoint that was begun is committed."""
        self.writer.wait()

    def load(self, step: int) -> dict[str, Any]:
        """Goes back to a checkpoint; returns what the driver wanted kept.

        Raises:
            CheckpointError: It is broken, or of a run with other settings.
        """
        return load_state(self.config.out, step, self.task.digest, self).body

    def export(self, name: str, facts: Mapping[str, Any]) -> None:
        """Writes the model as a Hugging Face folder of the run."""
        state = self.engine.model_state()
        if self.rank == 0:
            lineage = {**self.task.lineage, "run": self.config.out, **facts}
            uri = storage.join(self.config.out, name)
            mllm.export(self.model, state, self.adapter, uri, lineage, precision=self.precision)


def policy_settings(algorithm: AlgorithmConfig) -> PolicySettings:
    """Returns the limits of a step, as the losses take them."""
    resolved = algorithm.resolved
    return PolicySettings(resolved.limit, resolved.clip_low, resolved.clip_high, algorithm.dual_clip)


def _reference(model: Any, deepspeed: Mapping[str, Any] | None) -> Any:
    """Copies the model as it is now, adapters off. Frozen weights, so all of an adapted language model, are
    shared with it, unless ZeRO-3 spreads weights over learners, those of the copy too: it leaves parameters
    empty that are not in use."""
    spread = deepspeed if zero_stage(deepspeed) == 3 else None
    shared = {id(p): p for p in model.parameters() if not p.requires_grad and spread is None}
    reference = copy.deepcopy(model, memo=dict(shared)).requires_grad_(False).eval()
    turn_off(reference)
    if spread is not None:
        from pipelines.training.engine_deepspeed import share_out  # loads DeepSpeed

        share_out(reference, spread)
    return reference


def _all_of(group: Group) -> Micro:
    count = len(group.responses)
    everything = Share(group, tuple(range(count)), (0.0,) * count, (1.0,) * count)
    return micro_batches([everything], lambda _: True)[0]


def _means(sums: Sequence[Mapping[str, float]], parts: int) -> dict[str, float]:
    """Makes metrics of sums over tokens; the loss is a sum already, a mean over parts."""
    tokens = max(sum(one["tokens"] for one in sums), 1.0)
    per_token = ("entropy", "kl", "clip_low", "clip_high", "mismatch")
    return {
        "loss": sum(one["loss"] for one in sums) / parts,
        "learnt_tokens": tokens,
        "mismatch_max": max(one["mismatch_max"] for one in sums),
        **{name: sum(one[name] for one in sums) / tokens for name in per_token},
    }


# ---------------------------------------------------------------- micro-batches


def micro_batches(shares: Sequence[Share], together: Callable[[Sequence[int]], bool]) -> list[Micro]:
    """Cuts shares into micro-batches, prompts of like length together.

    Args:
        together: Tells whether texts (prompt and response) of these lengths can go together; one always can.

    Raises:
        ValueError: There are no shares, or one has no responses.
    """
    if not shares or not all(share.responses for share in shares):
        raise ValueError(f"every learner needs shares with responses, got {len(shares)} shares")
    ordered = sorted(shares, key=lambda share: max(_lengths(share)))
    batches: list[list[Share]] = []
    lengths: list[int] = []
    for piece in (piece for share in ordered for piece in _pieces(share, together)):
        own = _lengths(piece)
        if not batches or not together([*lengths, *own]):
            batches.append([])
            lengths = []
        batches[-1].append(piece)
        lengths += own
    return [_micro(batch) for batch in batches]


def _lengths(share: Share) -> list[int]:
    return [len(share.group.input_ids) + len(share.group.responses[i]) for i in share.responses]


def _pieces(share: Share, together: Callable[[Sequence[int]], bool]) -> Iterator[Share]:
    """Cuts a share into as few pieces as fit, in the order of its responses."""
    lengths, first = _lengths(share), 0
    while first < len(lengths):
        end = first + 1
        while end < len(lengths) and together(lengths[first : end + 1]):
            end += 1
        part = slice(first, end)
        first = end
        yield replace(
            share,
            responses=share.responses[part],
            advantages=share.advantages[part],
            weights=share.weights[part],
        )


def _micro(shares: Sequence[Share]) -> Micro:
    sampled = [[share.group.responses[i] for i in share.responses] for share in shares]
    return Micro(
        prompts=[share.group.encoded for share in shares],
        responses=[[response.ids for response in responses] for responses in sampled],
        advantages=torch.tensor([value for share in shares for value in share.advantages]),
        weights=torch.tensor([value for share in shares for value in share.weights]),
        rollout=torch.from_numpy(
            np.concatenate([one.log_probs for responses in sampled for one in responses])
        ),
    )
