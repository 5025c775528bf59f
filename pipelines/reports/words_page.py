"""The report of a corpus of words: one self-contained HTML page, and its pictures as files.

    OUT/report/index.html          counts, fingerprint, schema, codebooks, IoU, rejects, images
    OUT/report/contact_sheet.png   the same images as one picture
    OUT/report/iou_histogram.png   if reconstructions were compared
    OUT/report/code_usage.png

Of the shards only the row groups of drawn images are read, and all IoUs. The same corpus, tokenizer and seed
give the same page.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines import rejects
from pipelines.rejects import Reason
from pipelines.reports import gallery, html, words
from pipelines.reports.pictures import MAX_WORST, draw_rows, make_gallery, rows_of_worst
from pipelines.reports.training import write_page
from pipelines.reports.words import Corpus
from samtok.errors import ConfigError
from samtok.metrics import codebook
from samtok.metrics.codebook import Agreement, LevelUsage
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots.base import code_usage_plot, histogram_plot


class Report(NamedTuple):
    """A page, its pictures by file name, and how far the words of what is drawn are those of float32."""

    page: str
    pictures: dict[str, bytes]
    agreement: Agreement | None


def write_report(
    out: str, *, tokenizer: MaskTokenizer | None, max_images: int = 24, seed: int = 0, caveat: str = ""
) -> Report:
    """Writes the report of a corpus to ``OUT/report``, as ``index.html`` and its pictures.

    Raises:
        ConfigError: If the tokenizer cannot have made these words.
        DataError: If there is no corpus.
        StorageError: If something cannot be read or written.
    """
    corpus = words.load_corpus(out)
    made = make_report(corpus, tokenizer=tokenizer, max_images=max_images, seed=seed, caveat=caveat)
    write_page(out, made.page, made.pictures)
    return made


def make_report(
    corpus: Corpus, *, tokenizer: MaskTokenizer | None, max_images: int = 24, seed: int = 0, caveat: str = ""
) -> Report:
    """Makes the report, and writes nothing.

    The tokenizer, in float32, decodes the words of the drawn images, and makes those of their masks once more
    to compare them; None shows the original masks alone. ``caveat`` is what speaks against it.

    Raises:
        ConfigError: If the tokenizer cannot have made these words.
        StorageError: If a shard that the records name cannot be read.
    """
    fingerprint, manifest = corpus.fingerprint, corpus.manifest
    wanted = (fingerprint["num_codes"], fingerprint["num_levels"])
    if tokenizer is not None and (tokenizer.num_codes, tokenizer.num_levels) != wanted:
        raise ConfigError(
            f"the words of {corpus.out} have {wanted[1]} codes of {wanted[0]} each, the given tokenizer "
            f"makes {tokenizer.num_levels} of {tokenizer.num_codes}. Use "
            f"{fingerprint.get('tokenizer')!r}, which made them."
        )
    rng = np.random.default_rng(seed)
    rows = draw_rows(corpus.out, corpus.records, max_images, rng)
    threshold = float(fingerprint.get("threshold", 0.0))
    lowest = rows_of_worst(corpus.out, corpus.records, MAX_WORST) if max_images and tokenizer else []
    most = 0 if lowest else MAX_WORST
    box_prompt = fingerprint.get("box_prompt", True)
    shown = make_gallery(rows, tokenizer, threshold=threshold, rng=rng, max_worst=most, box_prompt=box_prompt)
    of_corpus = make_gallery(lowest, tokenizer, threshold=threshold, rng=rng)
    counts, metrics = words.code_counts(manifest), words.summary(manifest)
    usage = codebook.usage(counts)
    pictures = {"code_usage.png": code_usage_plot(counts)}
    if "iou/mean" in metrics:
        pictures["iou_histogram.png"] = histogram_plot(
            manifest["iou"]["histogram"],
            np.linspace(0, 1, len(manifest["iou"]["histogram"]) + 1),
            title="Reconstruction from words",
            x_label="IoU of a mask with its reconstruction (no unit, 0 to 1)",
            y_label="masks",
            mean=metrics["iou/mean"],
        )
    if shown.panels:
        pictures["contact_sheet.png"] = shown.contact_sheet()
    columns = [
        [html.code("\u2003" * depth + name), html.code(kind), "may be null" if nullable else ""]
        for depth, name, kind, nullable in flat_schema(words.row_schema(corpus))
    ]
    worst = []
    if found := of_corpus.worst or shown.worst:
        where = "of all that were compared" if lowest else "among the images below"
        note = html.join(f"The lowest IoUs {where}, at most {MAX_WORST}, cropped.", html.legend())
        worst.append(html.section("Worst masks", gallery.close_ups(found, numbered=not lowest), note=note))
    kind = html.legend() if tokenizer is not None else " Without a tokenizer, only original masks are shown."
    page = html.page(
        f"{fingerprint.get('dataset', 'corpus')} {fingerprint.get('split', '')} in mask words",
        corpus.out,
        *_unfinished(corpus),
        *caveats([caveat]),
        html.tiles(_tiles(corpus, metrics, usage, shown.agreement())),
        html.section("Counts", _counts(corpus)),
        *_datasets(corpus),
        *_flags(corpus),
        html.beside(
            _reconstruction(metrics, pictures.get("iou_histogram.png"), fingerprint),
            codebooks(usage, fingerprint["num_codes"], pictures["code_usage.png"]),
        ),
        html.section("Rejects", rejects_table(rejects.of_corpus(corpus.out, corpus.manifest))),
        *worst,
        html.section(
            "Images",
            gallery.images(shown),
            note=html.join(f"{len(shown.cards)} images drawn at random, seed {seed}.", kind),
        ),
        html.section("Fingerprint", html.card(html.settings(_made_with(corpus)))),
        html.section("Schema", html.card(html.grid(["column", "type", ""], columns))),
    )
    return Report(page, pictures, shown.agreement())


def _made_with(corpus: Corpus) -> list[tuple[str, Any]]:
    gpus = [("gpus", "; ".join(corpus.gpus))] if corpus.gpus else []
    return sorted([*corpus.fingerprint.items(), *gpus])


def told_agreement(found: Agreement) -> str:
    """Returns how far words are those of float32, in a line."""
    levels = ", ".join(f"level {number} {share:.1%}" for number, share in enumerate(found.by_level))
    return f"{found.equal:.1%} of {found.masks} drawn masks have the words of float32 ({levels})"


def caveats(texts: Iterable[str]) -> list[html.Block]:
    """Returns a banner for each text that is not empty."""
    return [html.banner(text, "Careful:") for text in dict.fromkeys(texts) if text]


def _unfinished(corpus: Corpus) -> list[html.Block]:
    if not corpus.missing:
        return []
    done = len(corpus.records)
    text = (
        f"{done} of {done + len(corpus.missing)} shards are committed; without a commit record: "
        f"{some_of(corpus.missing)}. Numbers and images are of the committed shards. "
        "Run the job again to resume it."
    )
    return [html.banner(text, "Unfinished.")]


def some_of(numbers: Sequence[int]) -> str:
    """Returns the first eight of some numbers as text."""
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _tiles(
    corpus: Corpus, metrics: Mapping[str, float], usage: Sequence[LevelUsage], agreement: Agreement | None
) -> list[tuple[str, str]]:
    same = [(f"{agreement.equal:.1%}", "of drawn masks with the words of float32")] if agreement else []
    totals, num_codes = corpus.manifest["totals"], corpus.fingerprint["num_codes"]
    lost = totals["masks_rejected"] + totals["masks_filtered"]
    return [
        (f"{totals['rows_out']:,}", "images with rows"),
        (f"{totals['masks_out']:,}", "masks with words"),
        (html.share_of(lost, totals["masks_in"]), "of the masks without words"),
        (html.decimal(metrics.get("iou/mean")), "mean IoU of reconstructions"),
        (" / ".join(str(level.used) for level in usage), f"of {num_codes} codes used, by level"),
        *same,
        (_size(metrics["corpus/size_bytes"]), f"in {len(corpus.records)} shards"),
    ]


def _counts(corpus: Corpus) -> html.Block:
    totals, rows = corpus.manifest["totals"], []
    for name, kind in (("images", "rows"), ("masks", "masks")):
        into, out, rejected = (totals[f"{kind}_{part}"] for part in ("in", "out", "rejected"))
        filtered = totals.get(f"{kind}_filtered", 0)
        off = into - out - rejected - filtered
        verdict = html.bad(f"does not add up: {off:+,} unaccounted for") if off else "adds up"
        parts = [f"= {out:,}", f"+ {rejected:,}", f"+ {filtered:,}" if kind == "masks" else ""]
        rows.append([name, f"{into:,}", *parts, html.share_of(rejected, into), verdict])
    heads = ["", "in", "out", "rejected", "filtered by policy", "reject rate", ""]
    planned = corpus.num_planned if corpus.missing else None
    note = "" if planned is None else f"The plan has {planned:,} images."
    return html.card(html.grid(heads, rows, numbers=range(1, 6), kind="narrow"), note=note)


def _datasets(corpus: Corpus) -> list[html.Block]:
    """Returns a table of the datasets of a mixture; nothing for a corpus of one."""
    found = corpus.manifest.get("datasets")
    if not found:
        return []
    total = sum(counts["masks"] for counts in found.values())
    rows = [
        [
            name,
            *(f"{counts[key]:,}" for key in ("rows", "masks")),
            html.share_of(counts["masks"], total),
            *(f"{counts[key]:,}" for key in ("masks_rejected", "masks_filtered")),
            html.decimal(counts["iou_sum"] / counts["iou_count"] if counts["iou_count"] else None),
        ]
        for name, counts in found.items()
    ]
    heads = ["", "images", "masks", "of all masks", "rejected", "filtered by policy", "mean IoU"]
    note = "What was rejected when the datasets were listed is in the counts above."
    table = html.card(html.grid(heads, rows, numbers=range(1, 7), kind="narrow"), note=note)
    return [html.section("Datasets", table)]


def _flags(corpus: Corpus) -> list[html.Block]:
    """Returns a table of the flags of masks with words; nothing if none has any."""
    found = corpus.manifest.get("flags")
    if not found:
        return []
    total = corpus.manifest["totals"]["masks_out"]
    rows = [[html.code(flag), f"{count:,}", html.share_of(count, total)] for flag, count in found.items()]
    table = html.card(html.grid(["flag", "masks", "of all masks"], rows, numbers=(1, 2), kind="narrow"))
    return [html.section("Flags of masks", table)]


def _reconstruction(
    metrics: Mapping[str, float], histogram: bytes | None, fingerprint: Mapping[str, Any]
) -> html.Block:
    title = "Reconstruction"
    if histogram is None:
        note = "No reconstruction was compared while the corpus was made (--reconstruct 0)."
        return html.card(title=title, note=note)
    text = (
        f"{metrics['iou/count']:,.0f} masks: mean IoU {metrics['iou/mean']:.3f}, median about "
        f"{metrics['iou/median']:.3f}, {metrics['iou/share_below_half']:.1%} below 0.5. "
        + (
            "Compared at the size of the images."
            if fingerprint.get("full_size_scores", True)
            else "Compared on the grid of the network's logits (--full-size-scores compares every pixel)."
        )
    )
    plot = html.plot(histogram, "IoU histogram", wide=False)
    return html.card(html.paragraph(text), plot, title=title)


def codebooks(usage: Sequence[LevelUsage], num_codes: int, plot: bytes) -> html.Block:
    """Returns a card about the use of the codebooks, one per level, with a plot of ``code_usage_plot``."""
    rows = [
        [str(level), f"{use.used} of {num_codes}", str(use.dead), f"{use.perplexity:.1f}"]
        for level, use in enumerate(usage)
    ]
    return html.card(
        html.grid(["level", "used", "dead", "perplexity"], rows, numbers=range(1, 4)),
        html.plot(plot, "masks per code, by rank", wide=False),
        title="Codebooks",
        note="Dashed: all codes used alike. Grey: codes that no mask uses.",
    )


def rejects_table(reasons: Iterable[Reason]) -> html.Block:
    """Returns a card of what got no words, and why."""
    rows = [
        [line.stage, html.code(line.reason), f"{line.count:,}", html.shortened(line.example)]
        for line in reasons
    ]
    return html.card(html.grid(["stage", "reason", "entries", "example"], rows, numbers=[2], kind="whole"))


def flat_schema(fields: Iterable[pa.Field], depth: int = 0) -> list[tuple[int, str, str, bool]]:
    """Returns (depth, name, type, nullable) of all fields, those of nested lists below their list."""
    found = []
    for field in fields:
        kind, inner = field.type, []
        while pa.types.is_list(kind):
            kind, inner = kind.value_type, ["list of", *inner]
        nested = pa.types.is_struct(kind)
        name = " ".join([*inner, "struct" if nested else str(kind)])
        found.append((depth, field.name, name, field.nullable))
        found += flat_schema(kind.fields, depth + 1) if nested else []
    return found


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
