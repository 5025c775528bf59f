"""Whether reinforcement learning makes a model better, over seeds and on prompts that decide nothing.

    python -m tests.benchmarks.grpo_learning --model tour-mllm --prompts runs/tour/chats-train \
        --validation runs/tour/chats-val --test runs/tour/chats-test --out runs/tour/grpo-seeds

The prompts are those of `make tour`; ``--preset tour-test`` of jobs/make_shapes.py, tokenize_corpus.py and
compose_dialogues.py makes the test corpus.

Each seed is one run of ``jobs/grpo_gres.py``, which validates on ``--validation``. Then the model before and
after, the last one and not the best, answer ``--test`` greedily and with samples at the temperature of
training; equal prompts, equal seeds of the sampling. Differences are means over prompts of the paired
difference, with a 95 % bootstrap interval over prompts. Reward, gIoU and N-acc alone can rise towards what
always saying "No target." scores while masks are lost, so that baseline stands beside, and targets count.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipelines.chats.prompt_selection import load_prompts
from pipelines.grpo.observe.metrics import validation_measures
from pipelines.grpo.presets import GRES
from pipelines.grpo.reward.scoring import Scorer, ValidationRow
from pipelines.grpo.rollout.sampler import Sampler
from pipelines.grpo.transport import WeightTransport
from samtok.metrics.intervals import paired_difference
from samtok.plots.curves import Curve, CurvePanel, curves_plot

BOOTSTRAPS = 10_000
PARTS = 64
"""Prompts of a batch."""

CURVES = {
    "reward_sampled": "sampled reward",
    "targets_sampled": "sampled reward, targets",
    "exact_single": "greedy, one target exact",
    "t_acc_sampled": "sampled T-acc",
    "giou": "greedy gIoU",
    "n_acc": "greedy N-acc",
}


def answers(model: str, test: str, samples: int, tokenizer: str) -> list[ValidationRow]:
    """Answers all test prompts with a model, in this process."""
    config = replace(
        GRES["tour"],
        model=model,
        tokenizer=tokenizer,
        tracking="off",
        chats=(test,),
        validation=replace(GRES["tour"].validation, samples=samples),
    )
    prompts = load_prompts(config.chats, config.prompts, seed=config.seed)
    transport = WeightTransport(lambda data: data, lambda data: data, piece_bytes=2**28)
    sampler, scorer = Sampler(config, prompts, prompts, transport), Scorer(config)
    found: list[ValidationRow] = []
    for first in range(0, len(prompts), PARTS):
        found += scorer.validate(*sampler.validate(range(first, min(first + PARTS, len(prompts)))))
    return found


def per_prompt(rows: Sequence[ValidationRow]) -> dict[str, np.ndarray]:
    """Returns numbers per prompt, NaN where a prompt does not count."""
    wanted = np.array([row.targets > 0 for row in rows])
    single = np.array([row.targets == 1 for row in rows])
    sampled = np.array([np.mean([one.total for one in row.samples]) for row in rows])
    named = np.array([np.mean([one.components["num_words"] > 0 for one in row.samples]) for row in rows])
    exact = np.array([np.mean([one.components["mask"] >= 1 for one in row.samples]) for row in rows])
    greedy = np.array([row.greedy.total for row in rows])
    greedy_exact = np.array([float(row.greedy.components["mask"] >= 1) for row in rows])
    return {
        "sampled reward": sampled,
        "sampled reward, targets": np.where(wanted, sampled, np.nan),
        "sampled reward, no target": np.where(wanted, np.nan, sampled),
        "sampled, single target exact": np.where(single, exact, np.nan),
        "sampled T-acc": np.where(wanted, named, np.nan),
        "greedy reward": greedy,
        "greedy reward, targets": np.where(wanted, greedy, np.nan),
        "greedy, single target exact": np.where(single, greedy_exact, np.nan),
    }


def interval(before: np.ndarray, after: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Returns the mean paired difference and its 95 % bootstrap interval over prompts."""
    there = np.isfinite(after - before)
    first, second = (np.stack([values, there], axis=1)[there] for values in (after, before))
    found = paired_difference(first, second, resamples=BOOTSTRAPS, seed=seed)
    return found.value or 0.0, found.low or 0.0, found.high or 0.0


def learn(seed: int, flags: argparse.Namespace) -> Path:
    """Runs the job with one seed; a finished run is left as it is."""
    out = Path(flags.out) / f"seed-{seed}"
    command = [
        sys.executable,
        "jobs/grpo_gres.py",
        "--preset",
        "tour",
        "--seed",
        str(seed),
        "--out",
        str(out),
    ]
    command += ["--model", flags.model, "--chats", flags.prompts, "--validation.chats", flags.validation]
    command += ["--tokenizer", flags.tokenizer, *flags.flags.split()]
    print("$ python", *command[1:], flush=True)
    with (Path(flags.out) / f"seed-{seed}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return out


def curves(outs: Sequence[Path]) -> bytes:
    """Draws the validations of all seeds."""
    validations = [json.loads((out / "record.json").read_text())["validations"] for out in outs]
    panels = [
        CurvePanel(
            title,
            [
                Curve(out.name, [row["step"] for row in rows], [row[name] for row in rows])
                for out, rows in zip(outs, validations, strict=True)
            ],
        )
        for name, title in CURVES.items()
    ]
    return curves_plot(panels, title="Held-out prompts while learning from rewards")


def main() -> int:
    parser = argparse.ArgumentParser(description="Learning from rewards, over seeds")
    parser.add_argument("--model", default="tour-mllm")
    parser.add_argument("--tokenizer", default="tour")
    parser.add_argument("--prompts", default="runs/tour/chats-train")
    parser.add_argument("--validation", default="runs/tour/chats-val")
    parser.add_argument("--test", default="runs/tour/chats-test")
    parser.add_argument("--out", default="runs/tour/grpo-seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--flags", default="", help="further flags of jobs/grpo_gres.py")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    Path(flags.out).mkdir(parents=True, exist_ok=True)
    before = answers(flags.model, flags.test, flags.samples, flags.tokenizer)
    outs = [learn(seed, flags) for seed in flags.seeds]
    rows = [answers(str(out / "final"), flags.test, flags.samples, flags.tokenizer) for out in outs]
    report(before, rows, flags)
    picture = Path(flags.out) / "validations.png"
    picture.write_bytes(curves(outs))
    print(f"curves: {picture}")
    return 0


def report(
    before: Sequence[ValidationRow], after: Sequence[Sequence[ValidationRow]], flags: argparse.Namespace
) -> None:
    """Prints the tables."""
    start, none = per_prompt(before), validation_measures(before)["none_share"]
    assert none is not None
    targets = float(np.nanmean(start["sampled reward, targets"]))
    print(
        f"{len(before)} test prompts, {none:.3f} of them without a target; sampled reward of targets before: "
        f"{targets:.3f}, which must be above p / (1 - p) = {none / (1 - none):.3f} for masks to pay"
    )
    print("\n| | before |" + "".join(f" seed {seed} | change (95 %) |" for seed in flags.seeds))
    print("|---|---|" + "---|---|" * len(flags.seeds))
    for name, values in start.items():
        cells = [f"{np.nanmean(values):.3f}"]
        for n, rows in enumerate(after):
            found = per_prompt(rows)[name]
            mean, low, high = interval(values, found, n)
            cells += [f"{np.nanmean(found):.3f}", f"{mean:+.3f} ({low:+.3f}, {high:+.3f})"]
        print(f"| {name} | {' | '.join(cells)} |")
    first, later = validation_measures(before), [validation_measures(rows) for rows in after]
    print('\n| greedy | always "No target." | before |' + "".join(f" seed {seed} |" for seed in flags.seeds))
    print("|---|---|---|" + "---|" * len(flags.seeds))
    baseline = {"giou": none, "ciou": 0.0, "n_acc": 1.0, "t_acc": 0.0}
    for name, trivial in baseline.items():
        cells = [f"{trivial:.3f}", *(f"{found[name]:.3f}" for found in (first, *later))]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    raise SystemExit(main())
