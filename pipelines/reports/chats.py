"""The report of a chat corpus: what went in and out, and some chats with their masks drawn over the image."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines import rejects, storage
from pipelines.chats.commit import ENDS, OF_DATASET
from pipelines.chats.corpus import ChatCorpus
from pipelines.chats.source import ChatSource
from pipelines.reports import html, words_page
from pipelines.reports.pictures import image_of
from samtok import masks
from samtok.errors import DataError, StorageError
from samtok.plots import pictures as viz

SIDE = 384
"""Longer side of a drawn image, in pixels."""


def make_page(corpus: ChatCorpus, *, max_samples: int, seed: int) -> str:
    """Returns the report as one HTML page; images that cannot be read say so."""
    totals = corpus.manifest["totals"]
    tiles = [
        (f"{totals['samples_out']:,}", "chats"),
        (f"{totals['rows_out']:,}", f"of {totals['rows_in']:,} images with chats"),
        (f"{totals['items_out']:,}", f"of {totals['items_in']:,} items in chats"),
    ]
    heads = ["task", "chats", *(f"items {end}" for end in ENDS)]
    tasks = html.grid(heads, by_task(totals), numbers=range(1, 8))
    lost = words_page.rejects_table(rejects.of_corpus(corpus.uri, corpus.manifest))
    return html.page(
        "Chats",
        corpus.uri,
        html.tiles(tiles),
        html.section("Tasks", html.card(tasks)),
        *_datasets(totals),
        html.section("Rejected and filtered", lost),
        html.section("Chats", html.beside(*map(_card, drawn_at_random(corpus, max_samples, seed)))),
        html.section("Settings", html.card(html.settings(corpus.manifest["fingerprint"].items()))),
    )


def by_task(totals: Mapping[str, int]) -> list[list[str]]:
    """Returns a line per task: its name, chats, and its items by what became of them."""
    columns = ("samples_out", *(f"items_{end}" for end in ENDS))
    return [[task, *(f"{totals.get(f'{task}/{name}', 0):,}" for name in columns)] for task in _tasks(totals)]


def _tasks(counts: Mapping[str, int]) -> list[str]:
    names = {name for name in counts if "/" in name and not name.startswith(OF_DATASET)}
    return sorted({name.partition("/")[0] for name in names})


def _datasets(totals: Mapping[str, int]) -> list[html.Block]:
    """Returns a table of the datasets of a mixture; nothing where chats are not counted by dataset."""
    found = {name.removeprefix(OF_DATASET): n for name, n in totals.items() if name.startswith(OF_DATASET)}
    if not found:
        return []
    rows = [[name, f"{n:,}", html.share_of(n, totals["samples_out"])] for name, n in sorted(found.items())]
    table = html.grid(["", "chats", "of all chats"], rows, numbers=range(1, 3), kind="narrow")
    return [html.section("Datasets", html.card(table))]


def drawn_at_random(corpus: ChatCorpus, most: int, seed: int) -> list[dict[str, Any]]:
    """Draws chats of all tasks, as evenly as there are some; by task.

    Shards are read in a random order until every task has its part, a quarter of it from one shard if others
    have more.
    """
    rng, totals = random.Random(seed), corpus.manifest["totals"]
    tasks = [task for task in _tasks(totals) if totals.get(f"{task}/samples_out")]
    need = {task: most // len(tasks) + (number < most % len(tasks)) for number, task in enumerate(tasks)}
    order = rng.sample(range(len(corpus.shards)), len(corpus.shards))
    starts = [0, *itertools.accumulate(shard.rows for shard in corpus.shards)]
    chosen: set[int] = set()
    for parts in (4, 1):
        for shard in order:
            counts = corpus.manifest["shards"][shard]["counts"]
            wanted = [task for task in tasks if need[task] and counts.get(f"{task}/samples_out")]
            for task, places in _places(corpus, shard, wanted).items():
                free = [starts[shard] + place for place in places if starts[shard] + place not in chosen]
                taken = rng.sample(free, min(len(free), need[task], -(-most // len(tasks) // parts)))
                chosen |= {*taken}
                need[task] -= len(taken)
    source = ChatSource(corpus)
    return sorted(map(source.row, sorted(chosen)), key=lambda row: row["task"])


def _places(corpus: ChatCorpus, shard: int, tasks: Sequence[str]) -> dict[str, list[int]]:
    if not tasks:
        return {}
    with storage.open_input(corpus.shards[shard].uri) as file:
        column = pq.ParquetFile(file).read(columns=["task"])["task"].to_pylist()
    return {task: [place for place, one in enumerate(column) if one == task] for task in tasks}


def _card(row: Mapping[str, Any]) -> html.Block:
    colours = viz.mask_colours(len(row["masks"]))
    chips = {
        mask["mask_id"]: (mask["words"], html.chip(number, colour))
        for number, (mask, colour) in enumerate(zip(row["masks"], colours, strict=True), start=1)
    }
    return html.card(
        *(_shot(row, number, colours) for number in range(len(row["images"]))),
        *(_message(message, chips) for message in row["messages"]),
        title=html.join(row["task"], " ", html.faint(row["sample_id"])),
    )


def _message(message: Mapping[str, Any], chips: Mapping[str, tuple[str, html.Block]]) -> html.Block:
    """Returns a message with numbered colours instead of words."""
    text = "".join(part["text"] or "" for part in message["content"])
    found, position = [], 0
    for mask_id in message["mask_ids"]:
        words, chip = chips[mask_id]
        start = text.index(words, position)
        found += [text[position:start], chip]
        position = start + len(words)
    return html.message(message["role"], *found, text[position:])


def _shot(row: Mapping[str, Any], number: int, colours: Sequence[viz.Colour]) -> html.Block:
    image = row["images"][number]
    size_hw = image["height"], image["width"]
    try:
        picture = image_of(image["uri"], *size_hw)
    except (DataError, StorageError) as error:
        return html.figures([], str(error))
    dense = [viz.fit_mask(_outline(mask, number, size_hw), SIDE) for mask in row["masks"]]
    drawn = viz.overlay(viz.fit(picture, SIDE), dense, colours, numbers=True)
    return html.picture(viz.jpeg_bytes(drawn), f"image of {row['sample_id']}")


def _outline(mask: Mapping[str, Any], number: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Returns a mask of an image; an empty one if it is another image's, or its outline was not kept."""
    if mask["image"] != number or mask["rle"] is None:
        return np.zeros(size_hw, bool)
    return masks.decode(mask["rle"], height=size_hw[0], width=size_hw[1])
