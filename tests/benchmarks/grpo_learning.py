"""Whether reinforcement learning makes a model better, over seeds and on prompts that decide nothing.

    python -m tests.benchmarks.grpo_learning --test runs/tour/chats-test
    python -m tests.benchmarks.grpo_learning --job grpo_gcg --test runs/tour-tasks/chats-val

The prompts are those of `make tour`, or of `make tour-tasks`; ``--preset tour-test`` of jobs/make_shapes.py,
tokenize_corpus.py and compose_dialogues.py makes the test corpus of the first.

Each seed is one run of the job's ``--preset tour``, which validates on ``--validation``. Then the model
before and after, the last one and not the best, answer ``--test`` greedily and with samples at the
temperature of training; equal prompts, equal seeds of the sampling. Differences are means over prompts of
the paired difference, with a 95 % bootstrap interval over prompts. Reward, gIoU and N-acc alone can rise
towards what always saying "No target." scores while masks are lost, so that baseline stands beside, and
targets count.
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
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.observe.metrics import validation_measures
from pipelines.grpo.presets import GCG, GRES
from pipelines.grpo.reward.scoring import Scorer, ValidationRow
from pipelines.grpo.rollout.sampler import Sampler
from pipelines.grpo.transport import WeightTransport
from samtok.metrics.intervals import paired_difference
from samtok.plots.curves import Curve, CurvePanel, curves_plot

BOOTSTRAPS = 10_000
PARTS = 64
"""Prompts of a batch."""

JOBS = {"grpo_gres": GRES["tour"], "grpo_gcg": GCG["tour"]}

CURVES = {
    "reward_sampled": "sampled reward",
    "targets_sampled": "sampled reward, targets",
    "exact_single": "greedy, one target exact",
    "t_acc_sampled": "sampled T-acc",
    "giou": "greedy gIoU",
    "n_acc": "greedy N-acc",
}


def answers(model: str, flags: argparse.Namespace) -> list[ValidationRow]:
    """Answers all test prompts with a model, in this process."""
    preset = JOBS[flags.job]
    config = replace(
        preset,
        model=model,
        tokenizer=flags.tokenizer or preset.tokenizer,
        tracking="off",
        chats=(flags.test,),
        validation=replace(preset.validation, samples=flags.samples),
    )
    prompts = load_prompts(config.chats, config.prompts, seed=config.seed)
    transport = WeightTransport(lambda data: data, lambda data: data, piece_bytes=2**28)
    sampler, scorer = Sampler(config, prompts, prompts, transport), Scorer(config)
    found: list[ValidationRow] = []
    for first in range(0, len(prompts), PARTS):
        found += scorer.validate(*sampler.validate(range(first, min(first + PARTS, len(prompts)))))
    return found


def of_captions(rows: Sequence[ValidationRow], preset: GrpoConfig) -> dict[str, np.ndarray]:
    """Returns numbers per prompt of grounded captions: the reward, and each of its components."""
    found = {
        "sampled reward": np.array([np.mean([one.total for one in row.samples]) for row in rows]),
        "greedy reward": np.array([row.greedy.total for row in rows]),
    }
    for name in preset.reward.weights:
        sampled = [np.mean([one.components[name] for one in row.samples]) for row in rows]
        found[f"sampled {name}"] = np.array(sampled)
        found[f"greedy {name}"] = np.array([row.greedy.components[name] for row in rows])
    return found


def per_prompt(rows: Sequence[ValidationRow], job: str) -> dict[str, np.ndarray]:
    """Returns numbers per prompt, NaN where a prompt does not count."""
    if job == "grpo_gcg":
        return of_captions(rows, JOBS[job])
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
        f"jobs/{flags.job}.py",
        "--preset",
        "tour",
        "--seed",
        str(seed),
        "--out",
        str(out),
    ]
    given = {"model": flags.model, "chats": flags.prompts, "validation.chats": flags.validation}
    given["tokenizer"] = flags.tokenizer
    command += [word for name, value in given.items() if value for word in (f"--{name}", value)]
    command += flags.flags.split()
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
        if validations[0][0].get(name) is not None
    ]
    return curves_plot(panels, title="Held-out prompts while learning from rewards")


def main() -> int:
    parser = argparse.ArgumentParser(description="Learning from rewards, over seeds")
    parser.add_argument("--job", choices=JOBS, default="grpo_gres")
    parser.add_argument("--model", help="instead of that of the preset, as are the next three")
    parser.add_argument("--tokenizer")
    parser.add_argument("--prompts")
    parser.add_argument("--validation")
    parser.add_argument("--test", default="runs/tour/chats-test")
    parser.add_argument("--out", default="runs/benchmarks/grpo-seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--flags", default="", help="further flags of the job")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    Path(flags.out).mkdir(parents=True, exist_ok=True)
    before = answers(flags.model or JOBS[flags.job].model, flags)
    outs = [learn(seed, flags) for seed in flags.seeds]
    rows = [answers(str(out / "final"), flags) for out in outs]
    report(before, rows, flags)
    picture = Path(flags.out) / "validations.png"
    picture.write_bytes(curves(outs))
    print(f"curves: {picture}")
    return 0


def report(
    before: Sequence[ValidationRow], after: Sequence[Sequence[ValidationRow]], flags: argparse.Namespace
) -> None:
    """Prints the tables."""
    start, none = per_prompt(before, flags.job), validation_measures(before)["none_share"]
    assert none is not None
    print(f"{len(before)} test prompts, {none:.3f} of them without a target")
    if flags.job == "grpo_gres":
        targets = float(np.nanmean(start["sampled reward, targets"]))
        edge = none / (1 - none)
        print(f"sampled reward of targets before: {targets:.3f}, above p / (1 - p) = {edge:.3f} masks pay")
    print("\n| | before |" + "".join(f" seed {seed} | change (95 %) |" for seed in flags.seeds))
    print("|---|---|" + "---|---|" * len(flags.seeds))
    for name, values in start.items():
        cells = [f"{np.nanmean(values):.3f}"]
        for n, rows in enumerate(after):
            found = per_prompt(rows, flags.job)[name]
            mean, low, high = interval(values, found, n)
            cells += [f"{np.nanmean(found):.3f}", f"{mean:+.3f} ({low:+.3f}, {high:+.3f})"]
        print(f"| {name} | {' | '.join(cells)} |")
    if flags.job == "grpo_gcg":
        return
    first, later = validation_measures(before), [validation_measures(rows) for rows in after]
    print('\n| greedy | always "No target." | before |' + "".join(f" seed {seed} |" for seed in flags.seeds))
    print("|---|---|---|" + "---|" * len(flags.seeds))
    baseline = {"giou": none, "ciou": 0.0, "n_acc": 1.0, "t_acc": 0.0}
    for name, trivial in baseline.items():
        cells = [f"{trivial:.3f}", *(f"{found[name]:.3f}" for found in (first, *later))]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    raise SystemExit(main())
