"""The table of benchmarks: what each asks, how its answers are read, and what they are scored by.

A new benchmark is one line of ``BENCHMARKS`` and, if its answers are of a new kind, one function in a module
``of_*`` of this package.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.mllm_evaluation import of_captions, of_graphs, of_instances, of_judged, of_masks
from pipelines.mllm_evaluation.answers import Numbers, Row, Scoring
from samtok.metrics.judged import Ask, Wording
from samtok.metrics.judged_dlc import DlcWording
from samtok.metrics.judged_mdvp import GROUPS, MdvpWording
from samtok.metrics.judged_videorefer import DIMENSIONS, VideoReferWording
from samtok.metrics.referring import MODES, Mode
from samtok.metrics.text_masks import Codes

THINKING_TOKENS = 1024
"""Room for a thought and its answer in the authors' script of GRES (RL)."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One line of the table.

    Attributes:
        title: Name for people.
        paper: Where the paper has its numbers; empty if nowhere.
        tasks: Of chat rows that are asked.
        masks: Masks that an answer may name: all of its words (``several``), the ``first`` one, or ``none``
            for answers that are text.
        all_in_strict: In "strict" all masks of an answer count where "official" takes the first one.
        max_new_tokens: Longest answer of the authors' script.
        numbers: Of an answered corpus, by the name of their section.
        headlines: What tables show: a name, a section, a key. Without a name all of the section's numbers
            are shown, by their keys without underscores.
        codes: Those of each mask that an answer names, by its text, the mode, and the numbers of codes and of
            levels; by default the words of the whole text.
        asks: What a judge is asked about the answers, in the texts of ``wording``; its replies are
            ``Scoring.replies``.
        turns: Questions of a chat that are asked unless ``--turns`` says others.
        modes: In which answers can be scored.
        keeps_masks: Whether rows hold each mask, which ``numbers`` then finds by the words of the text.
    """

    title: str
    paper: str
    tasks: tuple[str, ...]
    masks: Literal["several", "first", "none"]
    all_in_strict: bool = False
    max_new_tokens: int = 128
    numbers: Callable[[Sequence[Row], Mode, Scoring], Numbers]
    headlines: tuple[tuple[str | None, str, str], ...]
    turns: Literal["last", "first", "all"] = "last"
    modes: tuple[Mode, ...] = MODES
    keeps_masks: bool = False
    codes: Callable[[str, Mode, int, int], Sequence[Codes]] | None = None
    asks: Callable[[Sequence[Row], Scoring], list[Ask]] | None = None
    wording: type[Wording] | None = None

    def room(self, *, thinking: bool) -> int:
        """Returns how many tokens an answer may have, a thought included."""
        return max(self.max_new_tokens, THINKING_TOKENS) if thinking else self.max_new_tokens


BENCHMARKS: Mapping[str, Benchmark] = {
    "gcg": Benchmark(
        title="Grounded captions",
        paper="Table 1",
        tasks=("gcg",),
        masks="several",
        max_new_tokens=512,
        numbers=of_captions.gcg,
        headlines=(
            ("METEOR", "gcg", "meteor"),
            ("CIDEr", "gcg", "cider"),
            ("AP50", "gcg", "ap50"),
            ("mIoU", "gcg", "miou"),
            ("recall", "gcg", "recall"),
            ("recall of equal phrases", "gcg", "recall_exact"),
        ),
        keeps_masks=True,
        codes=of_captions.codes,
    ),
    "gres": Benchmark(
        title="Generalised referring segmentation",
        paper="Table 3",
        tasks=("gres",),
        masks="several",
        numbers=of_masks.gres,
        headlines=of_masks.with_words(
            ("gIoU", "gres", "giou"),
            ("cIoU", "gres", "ciou"),
            ("N-acc", "gres", "n_acc"),
            ("T-acc", "gres", "t_acc"),
        ),
    ),
    "res": Benchmark(
        title="Referring segmentation",
        paper="Table 4",
        tasks=("res",),
        masks="first",
        numbers=of_masks.res,
        headlines=of_masks.with_words(
            ("cIoU", "res", "ciou_cumulative"),
            ("mIoU", "res", "miou"),
            ("mIoU by key (PaDT)", "res", "padt_dedup_miou"),
            (None, "averages", ""),
        ),
    ),
    "rec": Benchmark(
        title="Referring comprehension: boxes",
        paper="Table 6",
        tasks=("grounding", "res"),
        masks="first",
        numbers=of_masks.rec,
        headlines=of_masks.with_words(
            ("Acc@0.5", "rec", "accuracy"),
            ("Acc@0.5 by key (PaDT)", "rec", "padt_dedup_accuracy"),
        ),
    ),
    "rounds": Benchmark(
        title="Referring segmentation in several rounds",
        paper="Table 2",
        tasks=("multi_round", "dialogue"),
        masks="first",
        all_in_strict=True,  # a round may ask for several objects
        turns="all",
        numbers=of_masks.rounds,
        headlines=of_masks.with_words((None, "rounds", ""), ("cIoU, all rounds", "res", "ciou_cumulative")),
    ),
    "groundingsuite": Benchmark(
        title="GroundingSuite-Eval: gIoU by kind of target",
        paper="Table 5",
        tasks=("grounding",),
        masks="several",
        max_new_tokens=512,
        numbers=of_masks.grounding_suite,
        headlines=of_masks.with_words(
            (None, "groundingsuite", ""), ("Acc@0.5 of boxes", "boxes", "accuracy")
        ),
    ),
    "psg": Benchmark(
        title="Panoptic scene graphs",
        paper="Table 10",
        tasks=("psg",),
        masks="first",
        max_new_tokens=2048,
        numbers=of_graphs.psg,
        headlines=(
            ("R@20", "psg", "recall_20"),
            ("mR@20", "psg", "mean_recall_20"),
            ("R@50", "psg", "recall_50"),
            ("mR@50", "psg", "mean_recall_50"),
        ),
        keeps_masks=True,
        codes=of_graphs.codes,
    ),
    "dlc": Benchmark(
        title="DLC-Bench: descriptions of regions, judged by questions",
        paper="Table 7",
        tasks=("region_caption",),
        masks="none",
        max_new_tokens=1024,
        numbers=of_judged.dlc,
        headlines=(("Avg", "dlc", "avg"), ("Pos", "dlc", "pos"), ("Neg", "dlc", "neg")),
        asks=of_judged.dlc_asks,
        wording=DlcWording,
    ),
    "videorefer": Benchmark(
        title="VideoRefer-Bench-D: descriptions of regions, judged from 0 to 5",
        paper="Table 9",
        tasks=("region_caption",),
        masks="none",
        max_new_tokens=1024,
        numbers=of_judged.videorefer,
        headlines=(
            ("Avg", "videorefer", "avg"),
            *((name.upper(), "videorefer", name) for name in DIMENSIONS),
        ),
        asks=of_judged.videorefer_asks,
        wording=VideoReferWording,
    ),
    "mdvp": Benchmark(
        title="MDVP-Bench: descriptions of regions, judged beside the true ones",
        paper="Table 8",
        tasks=("region_caption",),
        masks="none",
        max_new_tokens=1024,
        numbers=of_judged.mdvp,
        headlines=tuple((name.replace("_", "-"), "mdvp", name) for name in GROUPS),
        asks=of_judged.mdvp_asks,
        wording=MdvpWording,
        modes=("strict",),
    ),
    "instances": Benchmark(
        title="All objects of a class: COCO's AP",
        paper="",
        tasks=("instances",),
        masks="several",
        max_new_tokens=2048,
        numbers=of_instances.instances,
        headlines=(
            ("AP", "instances", "ap"),
            ("AP50", "instances", "ap50"),
            ("AP75", "instances", "ap75"),
            ("IoU of targets", "targets", "mean_iou"),
        ),
        keeps_masks=True,
    ),
    "region_captions": Benchmark(
        title="Captions of regions",
        paper="",
        tasks=("region_caption",),
        masks="none",
        max_new_tokens=1024,
        numbers=of_captions.regions,
        headlines=(
            ("METEOR", "captions", "meteor"),
            ("CIDEr", "captions", "cider"),
            ("equal captions", "captions", "exact"),
        ),
    ),
}
"""By the name of ``--benchmark``."""


def headlines(benchmark: str, section: Mapping[str, Any]) -> dict[str, float | str | None]:
    """Returns the numbers that tables show, by their names; in the place of one that cannot be computed here
    what it needs, as ``needs Java``."""
    found: dict[str, float | str | None] = {}
    for name, part, key in BENCHMARKS[benchmark].headlines:
        if name is None:
            found |= {key.replace("_", " "): value for key, value in section[part].items()}
        else:
            value = section[part][key]
            found[name] = section[part].get(f"{key}_missing") if value is None else value
    return found
