"""Options of ``jobs/compose_dialogues.py``, and its presets."""

from typing import Annotated, Literal

import tyro
from annotated_types import Ge

from pipelines.config import (
    AtLeast0,
    AtLeast1,
    NotEmpty,
    Place,
    RunConfig,
    Share,
    ShippedPlace,
    config,
    parse_pairs,
)
from pipelines.schema import CHAT_TASKS
from pipelines.shards import ShardRows
from samtok.errors import ConfigError

Style = Literal["words", "sentence", "json", "authors"]


@config
class ImportConfig:
    """Chats in another project's format, to be imported instead of composing."""

    source: Place | None = None
    """JSONL or one JSON list, local or s3://: ms-swift or OpenAI (messages), LLaVA (conversations), by their
    keys; the authors' mask_generation_gres209k.json is such a list. Or a Parquet file or a folder of them:
    EasyR1 (images, problem, answer; the authors' gres8k, mix_gres8k_ver4k) or verl (prompt, reward_model)."""
    images: Place = ""
    """Folder that relative names of images start from; Parquet files without bytes of images name theirs."""
    dataset: str = "imported"
    """Name in the column dataset, and in the ids of samples."""
    split: str = "train"
    """Name in the column split."""
    task: str = "dialogue"
    """Task of all samples; one of pipelines.schema.CHAT_TASKS."""
    num_codes: AtLeast1 = 256
    """Codes per level of the mask words in the texts."""
    num_levels: AtLeast1 = 2
    """Codes of a mask word."""
    tokenizer: ShippedPlace | None = None
    """Mask tokenizer that the words are of. Its weights are noted, so later jobs can refuse models of other
    words; and where rows have masks, its words are decoded and their IoU is noted (see --min-iou), on a GPU
    if there is one and --workers is 0."""
    ignore: tuple[str, ...] = ("source", "data_source", "dataset", "split")
    """Fields of a line that may be left unread. A line with another field that is not known, such as label,
    tools or videos, is rejected, since what is learnt would not be what was meant."""

    def check(self) -> None:
        """Refuses a task that chats do not have, and a folder that names cannot be joined to."""
        if self.images.startswith("file://"):
            raise ConfigError(
                f"--.images must be a local path without file://, or an s3:// URI, got {self.images}."
            )
        if self.task not in CHAT_TASKS:
            raise ConfigError(f"--.task must be one of {', '.join(CHAT_TASKS)}, got {self.task}.")


@config
class ComposeDialoguesConfig(RunConfig):
    """Corpora of words become a corpus of chats."""

    MAIN = ("words", "out", "tasks", "styles", "min_iou", "export", "workers", "limit", "max_reject_rate")

    words: tuple[Place, ...] = ()
    """Corpora of words, written by jobs/tokenize_corpus.py with one tokenizer."""
    chats: ImportConfig = ImportConfig()
    tasks: str = "gres"
    """Tasks with the share of their items that is taken, as gres=1,instances=0.5; by default 1."""
    mixture: Place | None = None
    """Mixture file (YAML) whose datasets have tasks, and maybe styles, of their own; those without have
    --tasks and --styles."""
    styles: Annotated[tuple[Style, ...], NotEmpty] = ("words",)
    """How masks are answered; each chat draws one. authors: the authors' questions and their JSON."""
    wordings: AtLeast1 | None = None
    """Wordings of a question that are used, the first ones of each task; by default all of them."""
    turns_per_sample: AtLeast1 = 1
    """Questions about one image that become turns of one chat: more to learn per image that is encoded."""
    max_rounds: Annotated[int, Ge(2)] = 4
    """Most rounds of a chat of the task multi_round."""
    max_masks: AtLeast1 = 64
    """Questions that need more masks than this are filtered."""
    min_iou: Share | None = None
    """Filter what needs a mask whose reconstruction IoU is below this; the words need --reconstruct 1, an
    import --chats.tokenizer."""
    keep_rle: bool = True
    """Copy the original masks of a chat into its row, so that answers can be scored against them."""
    psg_vocabulary: Place | None = None
    """JSON file with the lists categories and predicates, which the authors' PSG question names; or OpenPSG's
    psg.json."""
    shard_rows: ShardRows = 256
    """Most images per shard, a multiple of 64: what a killed run repeats at most, per shard in flight."""
    workers: AtLeast0 = 0
    """Ray tasks that compose at a time; they read words and write chats, so both must be reachable from every
    node. 0 composes in this process, without Ray."""
    export: Literal["ms-swift", "ms-swift-boxes", "llava", "openai", "easyr1", "verl"] | None = None
    """Write the finished corpus for other trainers too, a file per shard, to OUT/export/FORMAT: JSONL, or for
    easyr1 and verl Parquet with the images. ms-swift-boxes has boxes in objects instead of mask words."""
    report_samples: AtLeast0 = 24
    """Chats that are drawn in report/index.html; 0 writes no report."""

    def check(self) -> None:
        """Refuses two inputs or none, and tasks that do not exist."""
        super().check()
        if bool(self.words) == (self.chats.source is not None):
            raise ConfigError("give either --.words CORPUS to compose, or --.chats.source FILE to import.")
        shares_of(self.tasks)


def shares_of(tasks: str) -> dict[str, float]:
    """Reads ``gres=1,instances=0.5``, in the order of the text.

    Raises:
        ConfigError: For an unknown task, one that is there twice, none, or a share outside (0, 1].
    """
    parts = [part.strip() for part in tasks.split(",") if part.strip()]
    text = ",".join(part if "=" in part else f"{part}=1" for part in parts)
    pairs = parse_pairs(text, flag="tasks", keys=CHAT_TASKS)
    if not pairs:
        raise ConfigError("--tasks must not be empty, expected such as gres=1,instances=0.5.")
    return {task: _share(task, share) for task, share in pairs.items()}


def _share(task: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"--tasks {task} must be in (0, 1], got {text}.")
    return share


def _tour(split: str, *, tour: str = "tour") -> ComposeDialoguesConfig:
    """One expression per chat: its answer can only come from the image, while later answers of a longer chat
    could be taken from earlier ones."""
    return ComposeDialoguesConfig(
        words=(f"runs/{tour}/words-{split}",), out=f"runs/{tour}/chats-{split}", tasks="gres", wordings=1
    )


def _tour_tasks(split: str) -> ComposeDialoguesConfig:
    return ComposeDialoguesConfig(
        words=(f"runs/tour-tasks/words-{split}",),
        out=f"runs/tour-tasks/chats-{split}",
        mixture=f"infra/mixtures/tour-tasks-{split}.yaml",
        wordings=1,
    )


PRESETS: dict[str, ComposeDialoguesConfig] = {
    # Referring questions about the synthetic corpus that jobs make for themselves.
    "smoke": ComposeDialoguesConfig(words=("runs/embedded/gres-val/words",), out="runs/chats"),
    # Expressions of the synthetic corpus of `make tour`.
    "tour": _tour("train"),
    # The same for evaluation.
    "tour-val": _tour("val"),
    # And once more, for what nothing is chosen by (tests.benchmarks.grpo_learning).
    "tour-test": _tour("test"),
    # Expressions of the synthetic corpora of `make tour-thinking`.
    "tour-thinking": _tour("train", tour="tour-thinking"),
    "tour-thinking-val": _tour("val", tour="tour-thinking"),
    # Grounded captions, relations, captions of regions and several rounds, for `make tour-tasks`.
    "tour-tasks": _tour_tasks("train"),
    # The same for evaluation.
    "tour-tasks-val": _tour_tasks("val"),
    # All tasks in the authors' wording, for checkpoints that answer as theirs do. Masks that the tokenizer
    # cannot say are left out. The paper gives no mixture; shares are to be chosen per corpus.
    "authors": ComposeDialoguesConfig(
        words=tyro.MISSING,
        out=tyro.MISSING,
        tasks="res,gres,grounding,gcg,psg,region_caption,region_qa,multi_round,dialogue",
        styles=("authors",),
    ),
}
