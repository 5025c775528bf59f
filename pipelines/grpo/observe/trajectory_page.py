"""Shows what a run's model replied: prompts of chosen steps with their masks drawn, on one HTML page.

    python -m pipelines.grpo.observe.trajectory_page runs/grpo --steps 0,50 --num 24

RUN/report/trajectories.html   the page; its pictures are files in RUN/report/trajectories/

Of each prompt it shows the true masks and the best, a middle and the worst reply with text, reward,
components and advantage. Pictures lie beside the page, since so many inside of it would make it huge.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipelines import job as runs
from pipelines import storage
from pipelines.grpo.observe.trajectory_pictures import Row, Shown, choose, draw, groups_of, picture_of
from pipelines.grpo.trajectories import components_of, read_trajectories, steps_of
from pipelines.reports import html
from pipelines.reports.style import STYLE
from samtok.errors import ConfigError, DataError
from samtok.model.tokenizer import MaskTokenizer

PAGE, PICTURES = "report/trajectories.html", "report/trajectories"
_LONGEST_TEXT = 1200
# Files beside the page: browsers ask for file: where it was opened from a disk, and for 'self' where served.
_POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
_COLUMNS = "grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr))"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    flags = _parser().parse_args(argv)
    return runs.guard(lambda: _main(flags))


def write_page(
    out: str, steps: Sequence[int], *, tokenizer: MaskTokenizer, num: int = 24, seed: int = 0
) -> str:
    """Writes the page of a run's trajectories with its pictures, and returns its URI.

    Args:
        out: URI of the run's folder.
        steps: Whose replies to show, in this order.
        tokenizer: Of the words.
        num: Prompts to draw of each step.
        seed: Decides which.

    Raises:
        ConfigError: If the tokenizer cannot have made the words.
        DataError: If no trajectories of one of the steps were kept.
        StorageError: If something cannot be read or written.
    """
    parts = [html.heading("Trajectories", out), _introduction(seed)]
    for step in steps:
        groups = groups_of(read_trajectories(out, step, step))
        if not groups:
            raise DataError(f"{out} keeps no trajectories of step {step}. {_kept(out)}")
        parts.append(_head(step, groups))
        for group in choose(groups, num, np.random.default_rng([seed, step])):
            shown = draw(group, tokenizer)
            for name, data in shown.pictures.items():
                storage.write_bytes(storage.join(out, PICTURES, _file(group[0], name)), data)
            parts.append(_prompt(shown))
    uri = storage.join(out, PAGE)
    storage.write_bytes(uri, _page("Trajectories", parts).encode())
    return uri


def some_steps(out: str) -> list[int]:
    """Returns the first, a middle and the last step whose trajectories are kept, each once."""
    kept = steps_of(out)
    return sorted({kept[0], kept[len(kept) // 2], kept[-1]}) if kept else []


def tokenizer_uri(config: Mapping[str, Any], out: str) -> str:
    """Returns where the mask tokenizer of a run is, by its config.

    Raises:
        DataError: If the config names none.
    """
    if not config.get("tokenizer"):
        raise DataError(f"the config of {out} names no mask tokenizer; give that of the words (--tokenizer).")
    return config["tokenizer"]


def load_tokenizer(uri: str) -> MaskTokenizer:
    """Loads the mask tokenizer of a run, on a GPU if there is one.

    Raises:
        CheckpointError: If it cannot be used.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return MaskTokenizer.from_pretrained(uri, device=device, read=storage.read_bytes)


def _page(title: str, body: Iterable[str]) -> str:
    """Returns a whole page as ``report_html.page`` does, except that pictures may be files beside it."""
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _introduction(seed: int) -> str:
    return (
        f"<p class=faint>Prompts are drawn at random, seed {seed}. Masks, the true ones too, are decoded "
        "from their words. Rewards compare words; pictures show what the words mean.</p>"
    )


def _head(step: int, groups: Sequence[Sequence[Row]]) -> str:
    rewards = [[row["reward"] for row in group] for group in groups]
    alike = sum(max(of_group) == min(of_group) for of_group in rewards)
    num = sum(map(len, rewards))
    mean = sum(map(sum, rewards)) / num
    return (
        f"<h2>Step {step:,}</h2>\n<p class=faint>{len(groups):,} prompts, {num:,} replies, "
        f"mean reward {mean:.3f}, {html.share_of(alike, len(groups))} of the groups with equal rewards.</p>"
    )


def _prompt(shown: Shown) -> str:
    row = shown.group[0]
    where = f"{row['dataset']} {row['image_id']}, {row['sample_id']}, prompt {row['draw']} of the run"
    rewards = " ".join(f"{reply['reward']:.2f}" for reply in shown.group)
    figures = [_figure(shown, "truth", "truth", f"<code>{_text(row['truth'])}</code>")]
    figures += [
        _figure(shown, picture_of(r), f"{kind}, reply {r['reply']}", _said(r)) for kind, r in shown.replies
    ]
    problem = ""
    if shown.problem is not None:
        problem = f"<div class=problem>The image cannot be shown: {html.escape(shown.problem)}</div>\n"
    return html.card(
        f"<p class=text><b>{_text(row['question'])}</b><br>\n<span class=faint>{html.escape(where)}; "
        f"rewards of all replies: {rewards}</span></p>\n{problem}<div class=shots style='{_COLUMNS}'>\n"
        + "\n".join(figures)
        + "\n</div>"
    )


def _figure(shown: Shown, name: str, title: str, said: str) -> str:
    image = ""
    if name in shown.pictures:
        source = f"trajectories/{_file(shown.group[0], name)}"
        image = f"<img loading=lazy alt='{html.escape(title)}' src='{source}'>"
    caption = f"<figcaption class=text>\n<b>{html.escape(title)}</b><br>\n{said}</figcaption>"
    return f"<figure>{image}{caption}</figure>"


def _said(row: Row) -> str:
    parts = "".join(f", {html.escape(name)} {value:.3g}" for name, value in components_of(row).items())
    notes = []
    if not row["complete"]:
        notes.append("cut by the limit of tokens")
    if not row["used"]:
        notes.append("not learnt from")
    if row["staleness"]:
        notes.append(f"{row['staleness']} versions old")
    note = f" <span class=bad>{'; '.join(notes)}</span>" if notes else ""
    return (
        f"<code>{_text(row['text'])}</code><br>\nreward {row['reward']:.3f}, advantage "
        f"{row['advantage']:+.3f}{parts}; {len(row['token_ids'])} tokens{note}"
    )


def _file(row: Row, name: str) -> str:
    return f"step-{row['step']:08d}-prompt-{row['draw']:08d}-{name}.jpg"


def _text(text: str) -> str:
    """Returns untrusted text for the page, its lines kept, a long one without its end."""
    kept = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
    return html.escape(kept).replace("\n", "<br>\n")


def _kept(out: str) -> str:
    kept = steps_of(out)
    if not kept:
        return "Expected the --out of a run of GRPO that kept some (--trajectories-every)."
    named = ", ".join(map(str, kept)) if len(kept) <= 12 else f"{len(kept)} from {kept[0]} to {kept[-1]}"
    return f"It has those of the steps {named} (--steps)."


def _main(flags: argparse.Namespace) -> int:
    out = flags.run.rstrip("/")
    if flags.num < 1 or flags.seed < 0:
        raise ConfigError(f"--num must be at least 1 and --seed at least 0, got {flags.num} and {flags.seed}")
    steps = some_steps(out) if flags.steps is None else _numbers(flags.steps)
    if not steps:
        raise DataError(f"{out} has no trajectories. {_kept(out)}")
    uri = flags.tokenizer
    if uri is None:
        uri = tokenizer_uri(storage.read_json(storage.join(out, "config.json")), out)
    tokenizer = load_tokenizer(uri)
    where = write_page(out, steps, tokenizer=tokenizer, num=flags.num, seed=flags.seed)
    sys.stdout.write(f"page {where}\n")
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--steps must be numbers with commas between them, got {text!r}") from error


def _parser() -> argparse.ArgumentParser:
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
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
