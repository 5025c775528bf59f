"""Chooses replies of a step to look at, and draws their masks on the image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.ingestion.image_source import read_image_bytes
from pipelines.reports.pictures import MAX_SHOWN
from samtok import images
from samtok.errors import ConfigError, DataError, StorageError
from samtok.mllm.thinking import answer_of
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots import pictures as viz
from samtok.words import parse_words_lenient

SIDE = 300
_ALPHA = 0.4

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """One prompt with the replies that are shown.

    Attributes:
        group: All replies of the prompt, in their order.
        replies: The best, a middle and the worst one by reward, each with what it is.
        pictures: JPEG files: under ``truth`` the true masks, under ``reply-3`` those of reply 3.
        problem: Why there are no pictures.
    """

    group: Sequence[Row]
    replies: Sequence[tuple[str, Row]]
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    problem: str | None = None


def groups_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Returns the rows of one step by prompt, prompts and replies in their order."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["draw"], []).append(row)
    return [sorted(groups[draw], key=lambda row: row["reply"]) for draw in sorted(groups)]


def choose(groups: Sequence[list[Row]], num: int, rng: np.random.Generator) -> list[list[Row]]:
    """Draws at most ``num`` prompts, every prompt alike, and returns them in their order."""
    places = np.sort(rng.choice(len(groups), min(num, len(groups)), replace=False))
    return [groups[place] for place in places]


def extremes(group: Sequence[Row]) -> list[tuple[str, Row]]:
    """Returns the best, a middle and the worst reply of a prompt; a group of two has no middle."""
    ranked = sorted(group, key=lambda row: (-row["reward"], row["reply"]))
    named = [("best", ranked[0])]
    if len(ranked) > 2:
        named.append(("middle", ranked[len(ranked) // 2]))
    if len(ranked) > 1:
        named.append(("worst", ranked[-1]))
    return named


def draw(group: Sequence[Row], tokenizer: MaskTokenizer) -> Shown:
    """Draws true masks and those of the best, a middle and the worst reply, all decoded from their words.

    An image that is gone or broken by now gives no pictures and says why.

    Raises:
        ConfigError: If the tokenizer cannot have made the true words.
    """
    first, replies = group[0], extremes(group)
    _check_tokenizer(first, tokenizer)
    uri, size_hw = first["image_uri"], (first["height"], first["width"])
    try:
        image = images.decode_image(read_image_bytes(uri), where=uri, expected_hw=size_hw)
    except (DataError, StorageError) as error:
        return Shown(group, replies, problem=str(error))
    codes = {"truth": [tuple(mask) for mask in first["truth_codes"]][:MAX_SHOWN]}
    for _, row in replies:
        codes[picture_of(row)] = codes_of(row, tokenizer)[:MAX_SHOWN]
    return Shown(group, replies, _overlays(image, codes, tokenizer))


def picture_of(row: Row) -> str:
    """Returns the name of a reply's picture among those of its prompt."""
    return f"reply-{row['reply']}"


def codes_of(row: Row, tokenizer: MaskTokenizer) -> list[tuple[int, ...]]:
    """Returns the codes of a reply's well-formed words; of a thinking one, those of its answer."""
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
