"""Shows how a run's model responded: prompts of chosen steps with their masks drawn, on one HTML page.

    python -m pipelines.grpo.observe.trajectory_page runs/grpo --steps 0,50 --num 24

RUN/report/trajectories.html   the page; its pictures are files in RUN/report/trajectories/

Of each prompt it shows the true masks and the best, a middle and the worst response with text, reward,
components and advantage. Pictures lie beside the page, since so many inside of it would make it huge.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipelines import job as runs
from pipelines import storage
from pipelines.grpo.trajectories import by_prompt, components_of, read_trajectories, steps_of
from pipelines.reports import html
from pipelines.reports.pictures import MAX_SHOWN, image_of
from samtok.errors import ConfigError, DataError, StorageError
from samtok.mllm.thinking import answer_of
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots import pictures as viz
from samtok.words import parse_words_lenient

PAGE, PICTURES = "report/trajectories.html", "report/trajectories"
SIDE = 300
_LONGEST_TEXT = 1200
_ALPHA = 0.4

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """One prompt with the responses that are shown."""

    group: Sequence[Row]  # all responses to the prompt, in their order
    responses: Sequence[tuple[str, Row]]  # best, middle and worst by reward, each with what it is
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # JPEGs: ``truth``, and as ``reply-3``
    problem: str | None = None  # why there are no pictures


def write_page(
    out: str, steps: Sequence[int], *, tokenizer: MaskTokenizer, num: int = 24, seed: int = 0
) -> str:
    """Writes the page of a run's trajectories with its pictures, and returns its URI.

    Args:
        steps: Whose responses to show, in this order.
        num: Prompts to draw of each step.

    Raises:
        ConfigError: If the tokenizer cannot have made the words.
        DataError: If no trajectories of one of the steps were kept.
        StorageError: If something cannot be read or written.
    """
    introduction = (
        f"Prompts are drawn at random, seed {seed}. Masks, the true ones too, are decoded from their words. "
        "Rewards compare words; pictures show what the words mean."
    )
    blocks = [html.paragraph(html.faint(introduction))]
    for step in steps:
        groups = by_prompt(read_trajectories(out, step))
        if not groups:
            raise DataError(f"{out} keeps no trajectories of step {step}. {_kept(out)}")
        cards = []
        for group in choose(groups, num, np.random.default_rng([seed, step])):
            shown = draw(group, tokenizer)
            for name, data in shown.pictures.items():
                storage.write_bytes(storage.join(out, PICTURES, _file(group[0], name)), data)
            cards.append(_prompt(shown))
        blocks.append(html.section(f"Step {step:,}", *cards, note=_summary(groups)))
    uri = storage.join(out, PAGE)
    storage.write_bytes(uri, html.page("Trajectories", out, *blocks, pictures_beside=True).encode())
    return uri


def some_steps(out: str) -> list[int]:
    """Returns the first, a middle and the last step whose trajectories are kept, each once."""
    kept = steps_of(out)
    return sorted({kept[0], kept[len(kept) // 2], kept[-1]}) if kept else []


def load_tokenizer(uri: str | None, out: str) -> MaskTokenizer:
    """Loads the mask tokenizer of a run, on a GPU if there is one.

    Raises:
        DataError: If there is no ``uri``, since the config names none.
        CheckpointError: If it cannot be used.
    """
    if not uri:
        raise DataError(f"the config of {out} names no mask tokenizer; give that of the words (--tokenizer).")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return MaskTokenizer.from_pretrained(uri, device=device, read=storage.read_bytes)


# ---------------------------------------------------------------- the page


def _summary(groups: Sequence[Sequence[Row]]) -> str:
    rewards = [[row["reward"] for row in group] for group in groups]
    equal = sum(max(of_group) == min(of_group) for of_group in rewards)
    num = sum(map(len, rewards))
    return (
        f"{len(groups):,} prompts, {num:,} responses, mean reward {sum(map(sum, rewards)) / num:.3f}, "
        f"{html.share_of(equal, len(groups))} of the groups with equal rewards."
    )


def _prompt(shown: Shown) -> html.Block:
    row = shown.group[0]
    rewards = " ".join(f"{response['reward']:.2f}" for response in shown.group)
    where = (
        f"{row['dataset']} {row['image_id']}, {row['sample_id']}, prompt {row['draw']} of the run; "
        f"rewards of all responses: {rewards}"
    )

    def place(name: str) -> str | None:
        return f"trajectories/{_file(row, name)}" if name in shown.pictures else None

    figures = [("truth", place("truth"), _code(row["truth"]))]
    for kind, one in shown.responses:
        figures.append((f"{kind}, response {one['reply']}", place(picture_of(one)), _caption(one)))
    question = html.bold(html.shortened(row["question"], _LONGEST_TEXT))
    return html.card(
        html.paragraph(question, html.BREAK, html.faint(where)), html.figures(figures, shown.problem)
    )


def _caption(row: Row) -> html.Block:
    parts = "".join(f", {name} {value:.3g}" for name, value in components_of(row).items())
    numbers = f"reward {row['reward']:.3f}, advantage {row['advantage']:+.3f}{parts}"
    notes = []
    if not row["complete"]:
        notes.append("cut by the limit of tokens")
    if not row["used"]:
        notes.append("not learnt from")
    if row["staleness"]:
        notes.append(f"{row['staleness']} versions old")
    note = [" ", html.bad("; ".join(notes))] if notes else []
    return html.join(_code(row["text"]), html.BREAK, f"{numbers}; {len(row['token_ids'])} tokens", *note)


def _code(text: str) -> html.Block:
    lines = html.shortened(text, _LONGEST_TEXT).split("\n")
    return html.code(html.BREAK.join(lines))


def _file(row: Row, name: str) -> str:
    return f"step-{row['step']:08d}-prompt-{row['draw']:08d}-{name}.jpg"


def _kept(out: str) -> str:
    kept = steps_of(out)
    if not kept:
        return "Expected the --out of a run of GRPO that kept some (--trajectories-every)."
    named = ", ".join(map(str, kept)) if len(kept) <= 12 else f"{len(kept)} from {kept[0]} to {kept[-1]}"
    return f"It has those of the steps {named} (--steps)."


# ---------------------------------------------------------------- responses and their masks


def choose(groups: Sequence[list[Row]], num: int, rng: np.random.Generator) -> list[list[Row]]:
    """Draws at most ``num`` prompts, every prompt alike, and returns them in their order."""
    places = np.sort(rng.choice(len(groups), min(num, len(groups)), replace=False))
    return [groups[place] for place in places]


def extremes(group: Sequence[Row]) -> list[tuple[str, Row]]:
    """Returns the best, a middle and the worst response of a prompt; a group of two has no middle."""
    ranked = sorted(group, key=lambda row: (-row["reward"], row["reply"]))
    named = [("best", ranked[0])]
    if len(ranked) > 2:
        named.append(("middle", ranked[len(ranked) // 2]))
    if len(ranked) > 1:
        named.append(("worst", ranked[-1]))
    return named


def draw(group: Sequence[Row], tokenizer: MaskTokenizer) -> Shown:
    """Draws true masks and those of the best, a middle and the worst response, all decoded from their words.

    An image that is gone or broken by now gives no pictures and says why.

    Raises:
        ConfigError: If the tokenizer cannot have made the true words.
    """
    first, responses = group[0], extremes(group)
    _check_tokenizer(first, tokenizer)
    if first["image_uri"] is None:
        return Shown(group, responses, problem="The prompt has no image.")
    try:
        image = image_of(first["image_uri"], first["height"], first["width"])
    except (DataError, StorageError) as error:
        return Shown(group, responses, problem=str(error))
    codes = {"truth": [tuple(mask) for mask in first["truth_codes"]][:MAX_SHOWN]}
    for _, row in responses:
        codes[picture_of(row)] = codes_of(row, tokenizer)[:MAX_SHOWN]
    return Shown(group, responses, _overlays(image, codes, tokenizer))


def picture_of(row: Row) -> str:
    """Returns the name of a response's picture among those of its prompt."""
    return f"reply-{row['reply']}"


def codes_of(row: Row, tokenizer: MaskTokenizer) -> list[tuple[int, ...]]:
    """Returns the codes of a response's well-formed words; of a thinking one, those of its answer."""
    text = answer_of(row["text"]) if row["thinking"] else row["text"]
    return parse_words_lenient(text, num_codes=tokenizer.num_codes, num_levels=tokenizer.num_levels).codes


def _check_tokenizer(row: Row, tokenizer: MaskTokenizer) -> None:
    for mask in row["truth_codes"]:
        if len(mask) != tokenizer.num_levels or not all(0 <= code < tokenizer.num_codes for code in mask):
            raise ConfigError(
                f"sample {row['sample_id']!r} has the true codes {tuple(mask)}, the given tokenizer makes "
                f"{tokenizer.num_levels} codes below {tokenizer.num_codes}. Give the one that made the words "
                "(--tokenizer)."
            )


def _overlays(
    image: np.ndarray, codes: Mapping[str, Sequence[tuple[int, ...]]], tokenizer: MaskTokenizer
) -> dict[str, bytes]:
    """Draws every set of masks; the image is encoded once for all of them."""
    flat = [mask for stack in codes.values() for mask in stack]
    decoded = tokenizer.decode(image, np.array(flat, np.int64)) if flat else []
    small, fitted = viz.fit(image, SIDE), [viz.fit_mask(mask, SIDE) for mask in decoded]
    drawn = {}
    for name, stack in codes.items():
        own, fitted = fitted[: len(stack)], fitted[len(stack) :]
        drawn[name] = viz.jpeg_bytes(viz.overlay(small, own, alpha=_ALPHA, numbers=True))
    return drawn


# ---------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.grpo.observe.trajectory_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run: a local path or s3://bucket/prefix")
    parser.add_argument(
        "--steps", help="steps to show, as 0,50; by default the first, a middle and the last kept"
    )
    parser.add_argument("--num", type=int, default=24, help="prompts to draw of each step (default 24)")
    parser.add_argument("--seed", type=int, default=0, help="decides which prompts are drawn")
    parser.add_argument("--tokenizer", metavar="URI", help="decodes the words; by default that of the run")
    flags = parser.parse_args(argv)
    return runs.guard(lambda: _main(flags))


def _main(flags: argparse.Namespace) -> int:
    out = flags.run.rstrip("/")
    if flags.num < 1 or flags.seed < 0:
        raise ConfigError(f"--num must be >= 1 and --seed >= 0, got {flags.num} and {flags.seed}.")
    steps = some_steps(out) if flags.steps is None else _numbers(flags.steps)
    if not steps:
        raise DataError(f"{out} has no trajectories. {_kept(out)}")
    uri = flags.tokenizer or storage.read_json(storage.join(out, "config.json")).get("tokenizer")
    tokenizer = load_tokenizer(uri, out)
    where = write_page(out, steps, tokenizer=tokenizer, num=flags.num, seed=flags.seed)
    sys.stdout.write(f"page {where}\n")
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--steps must be numbers with commas between them, got {text!r}.") from error


if __name__ == "__main__":
    raise SystemExit(main())
