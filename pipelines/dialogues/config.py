"""What can be told to ``jobs/compose_dialogues.py``, and its presets."""

from dataclasses import dataclass, field
from typing import Literal

import tyro

from pipelines.cli import FORBID_UNKNOWN, refuse_password
from pipelines.schema import CHAT_TASKS
from pipelines.shards import ROW_GROUP_ROWS
from samtok.errors import ConfigError

Style = Literal["words", "sentence", "json", "authors"]


@dataclass(frozen=True, kw_only=True)
class JsonlConfig:
    """A file of chats in another project's format, to be imported instead of composing."""

    __pydantic_config__ = FORBID_UNKNOWN

    source: str | None = None
    """JSONL, local or s3://: ms-swift (messages, images) or LLaVA (conversations, image), by its keys."""
    images: str = ""
    """Folder that relative names of images start from."""
    dataset: str = "imported"
    """Name in the column dataset, and in the ids of samples."""
    split: str = "train"
    """Name in the column split."""
    task: str = "dialogue"
    """Task of all samples; one of pipelines.schema.CHAT_TASKS."""
    num_codes: int = 256
    """Codes per level of the mask words in the texts."""
    num_levels: int = 2
    """Codes of a mask word."""

    def __post_init__(self) -> None:
        if self.num_codes < 1 or self.num_levels < 1:
            raise ConfigError(
                f"--jsonl.num-codes and --jsonl.num-levels must be at least 1, got {self.num_codes} and "
                f"{self.num_levels}"
            )
        if self.task not in CHAT_TASKS:
            raise ConfigError(f"--jsonl.task must be one of {', '.join(CHAT_TASKS)}, got {self.task!r}")


@dataclass(frozen=True, kw_only=True)
class ComposeDialoguesConfig:
    """Corpora of words become a corpus of chats."""

    __pydantic_config__ = FORBID_UNKNOWN

    out: str
    """URI of the folder that receives the corpus of chats: a local path or s3://bucket/prefix."""
    words: tuple[str, ...] = ()
    """Corpora of words, written by jobs/tokenize_corpus.py with one tokenizer."""
    jsonl: JsonlConfig = field(default_factory=JsonlConfig)
    tasks: str = "gres"
    """Tasks with the share of their items that is taken, as gres=1,instances=0.5; 1 where none is said."""
    styles: tuple[Style, ...] = ("words",)
    """How masks are answered; each chat draws one. authors: the authors' questions and their JSON."""
    wordings: int | None = None
    """Wordings of a question that are used, the first ones of each task; by default all of them."""
    turns_per_sample: int = 1
    """Questions about one image that become turns of one chat: more to learn per image that is encoded."""
    max_rounds: int = 4
    """Most rounds of a chat of the task multi_round."""
    max_masks: int = 64
    """Questions that need more masks than this are filtered."""
    min_iou: float | None = None
    """Filter what needs a mask whose reconstruction IoU is below this; the words need --reconstruct 1."""
    keep_rle: bool = True
    """Copy the original masks of a chat into its row, so that answers can be scored against them."""
    psg_vocabulary: str | None = None
    """JSON file with the lists categories and predicates, told to the model in the authors' PSG question."""
    shard_rows: int = 256
    """Most images per shard, a multiple of 64: what a killed run repeats at most, per shard in flight."""
    workers: int = 0
    """Ray tasks that compose at a time; they read words and write chats, so both must be reachable from every
    node. 0 composes in this process, without Ray."""
    export: Literal["ms-swift", "llava"] | None = None
    """Write the finished corpus as JSONL too, a file per shard, to OUT/export/NAME."""
    max_reject_rate: float = 1.0
    """The job fails (exit code 3) if a larger share of items is unusable."""
    limit: int | None = None
    """Take only the first images of each corpus, or the first lines of --jsonl.source."""
    seed: int = 0
    """Draws templates, styles, shares and the turns of a chat."""
    tracking: str = "sqlite:///mlflow.db"
    """MLflow tracking URI, or off."""
    report_samples: int = 24
    """Chats that are drawn in report/index.html; 0 writes no report."""
    dry_run: bool = False
    """Print the resolved config, the checks and the size of the plan, and write nothing."""

    def __post_init__(self) -> None:
        if bool(self.words) == (self.jsonl.source is not None):
            raise ConfigError("give either --words CORPUS ... to compose, or --jsonl.source FILE to import")
        shares_of(self.tasks)
        if not self.styles:
            raise ConfigError("--styles names no style")
        for name, least in (
            ("wordings", 1),
            ("turns_per_sample", 1),
            ("max_rounds", 2),
            ("max_masks", 1),
            ("limit", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        for name in ("workers", "report_samples"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} cannot be negative, got {getattr(self, name)}")
        for name in ("min_iou", "max_reject_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} must lie in [0, 1], got {value}")
        if self.shard_rows < 1 or self.shard_rows % ROW_GROUP_ROWS:
            raise ConfigError(
                f"--shard-rows must be a multiple of {ROW_GROUP_ROWS}, the rows that are read at a time, got "
                f"{self.shard_rows}"
            )
        refuse_password(self.tracking)


def shares_of(tasks: str) -> dict[str, float]:
    """Reads ``gres=1,instances=0.5``, in the order of the text.

    Raises:
        ConfigError: For an unknown task, one that is there twice, none, or a share outside (0, 1].
    """
    shares: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in tasks.split(","))):
        name, _, text = part.partition("=")
        try:
            share = float(text or 1)
        except ValueError:
            share = 0.0
        if name not in CHAT_TASKS or name in shares or not 0 < share <= 1:
            raise ConfigError(
                f"--tasks: {part!r} is no NAME=SHARE with a share in (0, 1] and each name once; names are "
                f"{', '.join(CHAT_TASKS)}"
            )
        shares[name] = share
    if not shares:
        raise ConfigError("--tasks names no task, expected such as gres=1,instances=0.5")
    return shares


_REQUIRED = tyro.MISSING

PRESETS: dict[str, ComposeDialoguesConfig] = {
    # The words of `make quickstart`, whose masks have labels and no other annotations.
    "smoke": ComposeDialoguesConfig(words=("runs/words",), out="runs/chats", tasks="instances"),
    # Expressions of the synthetic corpus, one per chat: its answer can only come from the image, while later
    # answers of a longer chat could be taken from earlier ones.
    "tour": ComposeDialoguesConfig(
        words=("runs/tour/words-train",), out="runs/tour/chats-train", tasks="gres", wordings=1
    ),
    # The same for evaluation.
    "tour-val": ComposeDialoguesConfig(
        words=("runs/tour/words-val",), out="runs/tour/chats-val", tasks="gres", wordings=1
    ),
    # And once more, for what nothing is chosen by (tests.benchmarks.grpo_learning).
    "tour-test": ComposeDialoguesConfig(
        words=("runs/tour/words-test",), out="runs/tour/chats-test", tasks="gres", wordings=1
    ),
    # All tasks in the authors' wording, for checkpoints that answer as theirs do. Masks that the tokenizer
    # cannot say are left out. The paper gives no mixture; shares are to be chosen per corpus.
    "authors": ComposeDialoguesConfig(
        words=_REQUIRED,
        out=_REQUIRED,
        tasks="res,gres,grounding,gcg,psg,region_caption,region_qa,multi_round,dialogue",
        styles=("authors",),
    ),
}
