"""How fast our GRPO step is against TRL's GRPOTrainer, in responses a second, and whether both have one loss.

    python -m tests.benchmarks.grpo
    python -m tests.benchmarks.grpo --models tiny wide --new-tokens 64 --repeats 5

Both sides take the same tiny Qwen2.5-VL, prompts with images, reward, group size, temperature, limit of new
tokens, fused AdamW and thread, without KL, with one optimizer step per batch of responses; neither recomputes
old log-probabilities. Both begin a step with the files of the prompts: TRL in its data loader, we in the
sampler. Our first row is a step's parts in one process, without Ray, as TRL is. Sides take turns, and a ratio
is the median over the rounds, on the clock and in CPU time, which other work on the machine disturbs less.
``--ray`` adds the whole loop in processes of its own, one that samples and one that learns, and without
validation and checks: its median step on the clock against TRL's median round before, not in turns. With
staleness 1 both work at the same time, on a core each.

The losses are those of one batch of prompts, responses, advantages and old log-probabilities that are moved
so that clipping happens; our loss excludes no token there, since TRL's never does. Needs trl (dev extra).
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from pipelines.chats.prompt_selection import load_prompts
from pipelines.chats.prompts import PromptsConfig, PromptSource
from pipelines.grpo.groups import Group, RolloutTask, outline
from pipelines.grpo.learn.algorithms import AlgorithmConfig, Mean
from pipelines.grpo.learn.learner import Learner, micro_batches
from pipelines.grpo.learn.update import plan_update
from pipelines.grpo.reward.scoring import Scorer
from pipelines.grpo.rollout.sampler import Sampler
from pipelines.grpo.transport import WeightTransport
from pipelines.training.prepare import Prepared
from samtok.mllm.grammar import SuppressTokens
from samtok.mllm.token_budget import fits
from tests.benchmarks import grpo_parts as parts
from tests.benchmarks.grpo_parts import Place, Split, Took
from tests.benchmarks.grpo_trl import check_same_prompts, trl_batch, trl_trainer
from tests.benchmarks.measuring import machine

BASE, OURS = "TRL GRPOTrainer", "ours, one process"
LOSSES: dict[str, Mean] = {"dapo": "token", "grpo": "sequence", "dr_grpo": "constant"}
"""TRL's names of losses, and our name of the mean that each of them takes."""
SPLIT = ("rollout", "reward", "learn", "sync")


def main() -> int:
    """Measures, prints tables and saves the figures as JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, Any] = {"machine": machine(), "options": vars(options), "rows": [], "losses": []}
    for name in options.models:
        with tempfile.TemporaryDirectory() as home:
            place = parts.make_place(Path(home), parts.MODELS[name], options)
            prompts = load_prompts([place.corpus], PromptsConfig(), seed=0)
            rows = [{"model": name, **row} for row in _speed(place, prompts)]
            losses = [{"model": name, **row} for row in _losses(place, prompts)]
            if options.ray:
                base = rows[0]["samples_per_s"]
                rows += [{"model": name, **_on_ray(place, prompts, late, base)} for late in (0, 1)]
        _print(rows, losses)
        found["rows"] += rows
        found["losses"] += losses
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2, default=str) + "\n")
    print(f"saved {options.out}")
    return 0


def _print(rows: Iterable[dict[str, Any]], losses: Iterable[dict[str, Any]]) -> None:
    print("model | side | samples/s | tokens of a response | ratio | in CPU time | parts of a step")
    for row in rows:
        ratios = " | ".join(
            f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "-"
            for found in (row["ratios"], row["cpu_ratios"])
        )
        total = sum(row["split"].values())
        split = ", ".join(f"{name} {value / total:.0%}" for name, value in row["split"].items())
        head = f"{row['model']} | {row['side']} | {row['samples_per_s']:.1f} | {row['tokens']:.1f}"
        print(f"{head} | {ratios} | {split}", flush=True)
    print("model | loss | TRL | ours | difference | largest difference of a gradient, and that gradient")
    for row in losses:
        head = f"{row['model']} | {row['loss']} | {row['theirs']:.8f} | {row['ours']:.8f}"
        apart = f"{abs(row['theirs'] - row['ours']):.1e} | {row['gradient_apart']:.1e}, {row['gradient']:.1e}"
        print(f"{head} | {apart}", flush=True)


# ---------------------------------------------------------------- speed


def _speed(place: Place, prompts: PromptSource) -> list[dict[str, Any]]:
    theirs, split, lengths = _theirs(place, prompts)
    ours = _OneProcess(place, prompts)
    sides: dict[str, Callable[[], Took]] = {BASE: theirs, OURS: ours}
    took: dict[str, list[Took]] = {name: [] for name in sides}
    for repeat in range(place.options.repeats + 1):
        for name, run in sides.items():  # in turns, so that a drift of the machine meets all
            seconds = run()
            if repeat:  # the first round warms up
                took[name].append(seconds)
    splits = {BASE: _with_rest(split, took[BASE]), OURS: ours.split.seconds}
    tokens = {BASE: statistics.mean(lengths), OURS: statistics.mean(ours.lengths)}
    rows = []
    for name, values in took.items():
        pairs = list(zip(took[BASE], values, strict=True))
        samples = place.responses * place.options.steps
        rows.append(
            {
                "side": name,
                "samples_per_s": samples / statistics.median(own.wall_s for own in values),
                "tokens": tokens[name],
                "ratios": [base.wall_s / own.wall_s for base, own in pairs],
                "cpu_ratios": [base.cpu_s / own.cpu_s for base, own in pairs],
                "split": splits[name],
            }
        )
    return rows


def _with_rest(split: Split, took: list[Took]) -> dict[str, float]:
    """Returns the parts of TRL's steps; what has no clock of its own is its learning."""
    warm = len(took) / (len(took) + 1)  # the clocks of parts also ran in the first round
    parts_ = {name: seconds * warm for name, seconds in split.seconds.items()}
    return {**parts_, "learn": sum(one.cpu_s for one in took) - sum(parts_.values())}


def _theirs(place: Place, prompts: PromptSource) -> tuple[Callable[[], Took], Split, list[float]]:
    lengths: list[float] = []
    trainer, clock = trl_trainer(place, prompts)
    groups = _groups(_OneProcess(place, prompts), count=2)
    check_same_prompts(place, trainer, groups)

    def run() -> Took:
        trainer.train()
        lengths.append(trainer.state.log_history[-1]["completions/mean_length"])
        return clock.took

    return run, trainer.split, lengths


class _OneProcess:
    """The parts of our loop in one process; weights go through a dict in place of the object store."""

    def __init__(self, place: Place, prompts: PromptSource) -> None:
        self.place, self.prompts = place, prompts
        self.config = config = parts.our_config(place, "unused")
        store: list[Any] = []

        def put(data: np.ndarray) -> int:
            store[:] = [*store[-1:], data]
            return len(store) - 1

        transport = WeightTransport(put, store.__getitem__, piece_bytes=2**28)
        self.learner = Learner(Prepared(config=config, fingerprint={}, lineage={}), transport)
        self.sampler = Sampler(config, prompts, None, transport)
        self.scorer = Scorer(config)
        self.split = Split()
        self.lengths: list[float] = []
        self.task = 0

    def __call__(self) -> Took:
        """Takes the steps of a round."""
        started = Took.now()
        for step in range(self.place.options.steps):
            self.step(step)
        return Took.now().since(started)

    def step(self, step: int) -> None:
        """Samples, scores, learns, and hands weights on, as ``Loop`` does."""
        size, config = self.place.options.prompts, self.config
        with self.split.part("rollout"):
            draws = range(self.task * size, (self.task + 1) * size)
            task = RolloutTask(
                self.task, tuple(zip(draws, self.prompts.draws(draws.start, size), strict=True))
            )
            _, groups = self.sampler.roll(task)
            self.task += 1
        with self.split.part("reward"):
            rewards = np.array([[one.total for one in group] for group in self.scorer.score(*groups)])
        with self.split.part("learn"):
            outlines = [outline(group) for group in groups]
            limit = config.rollout.max_new_tokens
            update = plan_update(outlines, groups, rewards, config.algorithm, learners=1, max_tokens=limit)
            self.learner.learn(step, [part[0] for part in update.parts])
        with self.split.part("sync"):
            weights = self.learner.publish(self.task)
            assert weights is not None
            self.sampler.sync(weights)
        self.lengths += [float(np.mean(one.lengths)) for one in outlines]


def _on_ray(place: Place, prompts: PromptSource, staleness: int, base: float) -> dict[str, Any]:
    """Runs the loop on Ray: in turns, or with sampling and learning at the same time."""
    rows = parts.loop_steps(place, prompts, staleness)
    samples_per_s = statistics.median(row["samples_per_s"] for row in rows)
    return {
        "side": f"ours, on Ray, staleness {staleness}",
        "samples_per_s": samples_per_s,
        "tokens": statistics.mean(row["tokens"] for row in rows),
        "ratios": [samples_per_s / base],
        "cpu_ratios": [],
        "split": {name: statistics.median(row[f"s_{name}"] for row in rows) for name in SPLIT},
    }


# ---------------------------------------------------------------- losses


def _groups(ours: _OneProcess, count: int) -> list[Group]:
    indices = ours.prompts.draws(0, count)
    return ours.sampler.roll(RolloutTask(0, tuple(enumerate(indices))))[1]


def _losses(place: Place, prompts: PromptSource) -> list[dict[str, Any]]:
    """Compares losses and their gradients on one batch."""
    ours = _OneProcess(place, prompts)
    learner = ours.learner
    learner.processor = SuppressTokens(learner.model.get_input_embeddings().num_embeddings, ())
    groups = _groups(ours, place.options.prompts)
    rewards = np.array([[one.total for one in group] for group in ours.scorer.score(*groups)])
    return [_loss(place, prompts, learner, groups, rewards, name) for name in LOSSES]


def _loss(
    place: Place,
    prompts: PromptSource,
    learner: Learner,
    groups: list[Group],
    rewards: np.ndarray,
    name: str,
) -> dict[str, Any]:
    algorithm = AlgorithmConfig(name="grpo", mean=LOSSES[name], mask_zero_variance=False)
    limit = place.options.new_tokens
    outlines = [outline(group) for group in groups]
    update = plan_update(outlines, groups, rewards, algorithm, learners=1, max_tokens=limit)
    (micro,) = micro_batches(update.parts[0][0], fits)
    noise = torch.randn(len(micro.rollout), generator=torch.Generator().manual_seed(0))
    old = micro.rollout + 0.3 * noise
    learner.model.zero_grad()
    own = learner._pass(micro, old)["loss"]
    trainer, _ = trl_trainer(place, prompts, loss_type=name)
    trainer.current_gradient_accumulation_steps = 1
    theirs = trainer._compute_loss(trainer.model.train(), trl_batch(place, micro, old))
    theirs.backward()
    mine = {n: p.grad for n, p in learner.model.named_parameters() if p.grad is not None}
    other = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert mine.keys() == other.keys()
    return {
        "loss": name,
        "theirs": float(theirs.detach()),
        "ours": own,
        "gradient_apart": max(float((mine[n] - other[n]).abs().max()) for n in mine),
        "gradient": max(float(value.abs().max()) for value in mine.values()),
    }


# ---------------------------------------------------------------- flags


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=parts.MODELS, default=["tiny"])
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a step")
    parser.add_argument("--group", type=int, default=8, help="responses to each prompt")
    parser.add_argument("--new-tokens", type=int, default=32, help="longest response")
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each side, whose median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ray", action="store_true", help="also the whole loop on Ray")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/grpo.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
