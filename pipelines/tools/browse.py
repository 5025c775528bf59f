"""Shows a corpus of words: a short table on the terminal, pictures in one HTML page.

    python -m pipelines.tools.browse runs/words
    python -m pipelines.tools.browse s3://bucket/words --images 48 --output words.html

Works on unfinished corpora too. ``--tokenizer none`` draws the original masks alone.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch

from pipelines import job as runs
from pipelines import rejects, storage
from pipelines.ingestion.corpora import caveat_of
from pipelines.reports import html, words, words_page
from samtok.errors import CheckpointError, ConfigError
from samtok.metrics import codebook
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger("pipelines.tools.browse")  # also when it runs as __main__


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tools.browse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("uri", metavar="URI", help="folder of the corpus: a local path or s3://bucket/prefix")
    add("--images", type=int, default=24, help="images to draw (default 24; 0 draws none)")
    add("--seed", type=int, default=0, help="decides which images are drawn")
    add("--tokenizer", metavar="URI", help="decodes the words; by default the one that made them")
    add("--output", metavar="FILE", help="where the page goes; by default URI/report/index.html")
    flags = parser.parse_args(argv)
    return runs.guard(lambda: browse(flags))


def browse(flags: argparse.Namespace) -> int:
    """Prints the table, writes the page and prints its place."""
    if flags.images < 0 or flags.seed < 0:
        raise ConfigError(f"--images and --seed must be >= 0, got {flags.images} and {flags.seed}.")
    corpus = words.load_corpus(flags.uri.rstrip("/"))
    sys.stdout.write(rejects.printable("\n".join(lines_of(corpus)) + "\n"))
    sys.stdout.flush()  # the table is there while the tokenizer still loads
    tokenizer = _tokenizer(corpus, flags.tokenizer) if flags.images else None
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_images": flags.images, "seed": flags.seed}
    made = corpus.fingerprint
    if tokenizer is not None and "source" in made:
        options["caveat"] = caveat_of(
            made["tokenizer"],
            tokenizer.config,
            made.get("mixture_sources") or [made["source"]],
            made["dataset"],
        )
    if flags.output is None:
        words_page.write_report(corpus.out, **options)
        where = storage.join(corpus.out, words.FOLDER, "index.html")
    else:
        where = flags.output
        storage.write_bytes(where, words_page.make_report(corpus, **options).page.encode())
    sys.stdout.write(f"\npage      {where}\n")
    return 0


def lines_of(corpus: words.Corpus) -> Iterator[str]:
    """Yields the lines of the table: counts, missing commits, codebooks, IoU, rejects, schema."""
    totals, metrics = corpus.manifest["totals"], words.summary(corpus.manifest)
    yield f"corpus    {corpus.out}"
    yield f"dataset   {corpus.fingerprint.get('dataset')} / {corpus.fingerprint.get('split')}"
    yield f"tokenizer {corpus.fingerprint.get('tokenizer')}"
    done, missing = len(corpus.records), len(corpus.missing)
    if missing:
        first = words_page.some_of(corpus.missing)
        yield f"shards    {done} of {done + missing} committed; UNFINISHED, {missing} missing: {first}"
    else:
        yield f"shards    {done}, all committed"
    for name, kind in (("images", "rows"), ("masks", "masks")):
        into, out, rejected = (totals[f"{kind}_{end}"] for end in ("in", "out", "rejected"))
        filtered = f" + {totals['masks_filtered']} filtered" if kind == "masks" else ""
        yield f"{name:<9} {into} in = {out} out + {rejected} rejected{filtered}"
    for level, use in enumerate(codebook.usage(words.code_counts(corpus.manifest))):
        yield f"level {level}   {use.used} codes used, {use.dead} dead, perplexity {use.perplexity:.1f}"
    if "iou/mean" in metrics:
        yield (
            f"IoU       mean {metrics['iou/mean']:.3f}, median about {metrics['iou/median']:.3f}, "
            f"{metrics['iou/share_below_half']:.1%} below 0.5, of {metrics['iou/count']:.0f} masks"
        )
    lines = rejects.of_corpus(corpus.out, corpus.manifest)
    yield "\nrejects" if lines else "\nrejects   none"
    for line in lines:
        example = html.shortened(" ".join(line.example.split()), 90)
        yield f"  {line.count:>8}  {line.stage + '/' + line.reason:<28} {example}"
    yield "\nschema"
    for depth, name, kind, nullable in words_page.flat_schema(words.row_schema(corpus)):
        yield f"  {'  ' * depth}{name}: {kind}{' or null' if nullable else ''}"


def _tokenizer(corpus: words.Corpus, uri: str | None) -> MaskTokenizer | None:
    if uri == "none":
        return None
    wanted = uri or corpus.fingerprint["tokenizer"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    log.info("loading the tokenizer %s on %s", wanted, device)
    try:
        return MaskTokenizer.from_pretrained(wanted, device=device, read=storage.read_bytes)
    except CheckpointError as error:
        if uri is not None:
            raise
        raise CheckpointError(
            f"{error} The corpus names this tokenizer; give its place now with --tokenizer URI, or draw "
            "original masks alone with --tokenizer none."
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
