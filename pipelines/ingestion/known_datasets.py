"""Datasets whose files are known: what each is for, who publishes it, and how it is read below a folder.

They are the rows of ``known_datasets.yaml``. ``python -m pipelines.tools.datasets`` lists and checks them,
and a mixture file names them with ``known``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import format_pairs, parse_pairs
from samtok.errors import ConfigError

USES = ("tokenizer", "SFT", "benchmark")
"""What the paper uses a dataset for (its Fig. 4, and docs/TRAIN_TOKENIZER.md of the authors' code)."""

ROWS = Path(__file__).with_suffix(".yaml")

_ASK = "see where it is published"


@dataclass(frozen=True)
class KnownDataset:
    """A dataset in its published layout.

    Attributes:
        gives: What a row has besides masks.
        use: Of ``USES``; empty for one that the paper does not use.
        get: Where its files are published.
        splits: Name of a split -> how it is read, as ``--corpora`` has it, with places below one folder.
    """

    name: str
    title: str
    gives: str
    use: tuple[str, ...]
    get: str
    licence: str
    splits: Mapping[str, str]
    note: str = ""


def _read(name: str, row: Mapping[str, Any]) -> KnownDataset:
    splits = {}
    for names, text in row["splits"].items():
        for split in names.split():
            parts = parse_pairs(text.replace("{split}", split), flag="known")
            splits[split] = format_pairs({**parts, "dataset": name, "split": split})
    about = {"licence": _ASK, **row, "use": tuple(row.get("use", ())), "splits": splits}
    return KnownDataset(name, **about)


KNOWN: Mapping[str, KnownDataset] = {
    name: _read(name, row) for name, row in yaml.safe_load(ROWS.read_text()).items()
}
"""All of them by their name."""


def parts_of(name: str, root: str, split: str | None = None) -> dict[str, str]:
    """Returns a split of a known dataset as keys and values of ``--corpora``, with ``root`` in them; without
    a split its first one.

    Raises:
        ConfigError: If there is no such dataset or split; names those that there are.
    """
    known = KNOWN.get(name)
    if known is None:
        raise ConfigError(f"there is no known dataset {name}; there are {', '.join(KNOWN)}.")
    split = split or next(iter(known.splits))
    if split not in known.splits:
        raise ConfigError(f"{name} has no split {split}; it has {', '.join(known.splits)}.")
    return {"root": root, **parse_pairs(known.splits[split], flag="known")}
