"""Several datasets that are read as one: a YAML file names them, and one reader hands over to theirs.

root: s3://data                # before relative places; by default the working directory
datasets:
  - reader: coco               # keys as in --corpora
    source: coco/annotations/instances_train2017.json
    images: coco/train2017
    dataset: coco
    weight: 2                  # how often it is drawn in training, relative to the others
    limit: 100000              # only its first images
    tasks: instances=1         # what dialogues are composed of it
    styles: authors            # and in which styles
  - known: coconut-s           # a dataset that ``python -m pipelines.tools.datasets list`` names
    root: data/coconut
    split: train
chats:                         # of fine-tuning, as in --chats
  - uri: s3://chats/words
    weight: 1
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import yaml

from pipelines import storage
from pipelines.ingestion.file_reader import NoOptions
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.reader import MAX_NAMES, Head, Input, Reader, ReadResult, Reject
from samtok.errors import ConfigError

MAX_FILE_BYTES = 2**20
MAX_DATASETS = 999

MIXTURE_SUFFIXES = (".yaml", ".yml")
"""Of files where a chat corpus could be named too."""

_KEYS = {"root", "datasets", "chats"}
_NUMBER = 3  # digits before the keys of a dataset


@dataclass(frozen=True)
class Entries:
    """A mixture file as it is written.

    Attributes:
        datasets: Keys and values of each dataset, all as texts; ``root`` is in each.
        chats: Likewise, of each chat corpus.
    """

    datasets: tuple[dict[str, str], ...]
    chats: tuple[dict[str, str], ...]


def read_entries(uri: str, *, flag: str) -> Entries:
    """Reads a mixture file; ``flag`` (with dashes) is the one that names it.

    Raises:
        ConfigError: If it is not there or not of this form.
        StorageError: If it cannot be read.
    """
    return _parsed(uri, _file_bytes(uri, flag), f"{flag} {uri}")


def _file_bytes(uri: str, flag: str) -> bytes:
    try:
        raw = storage.read_bytes(uri, size=MAX_FILE_BYTES + 1)
    except storage.ObjectError as error:
        raise ConfigError(f"{flag}: {error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{flag} {uri} has over {MAX_FILE_BYTES} bytes, more than a mixture file can have.")
    return raw


@lru_cache(maxsize=8)
def _parsed(uri: str, raw: bytes, where: str) -> Entries:
    try:
        body = yaml.safe_load(raw)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where} is no YAML: {error}") from error
    if not isinstance(body, dict) or not set(body) <= _KEYS:
        found = f"the keys {', '.join(map(str, body))}" if isinstance(body, dict) else f"{body!r:.80}"
        raise ConfigError(f"{where} has {found}, expected some of root, datasets and chats.")
    root = _text(body.get("root", ""), f"{where}: root")
    datasets = [{"root": root, **one} for one in _listed(body, "datasets", where)]
    if len(datasets) > MAX_DATASETS:
        raise ConfigError(f"{where} has {len(datasets)} datasets; at most {MAX_DATASETS} can be one corpus.")
    chats = [{"root": root, **one} for one in _listed(body, "chats", where)]
    return Entries(tuple(datasets), tuple(chats))


def _listed(body: Mapping[str, Any], key: str, where: str) -> Iterator[dict[str, str]]:
    entries = body.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{where}: {key} must be a list of entries such as `- dataset: coco`.")
    for number, entry in enumerate(entries, start=1):
        yield {
            str(name): _text(value, f"{where}: {name} of {key}[{number}]") for name, value in entry.items()
        }


def _text(value: Any, where: str) -> str:
    if isinstance(value, list):
        return ",".join(_text(one, where) for one in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{where} must be a text, a number or a list of them, got {value!r:.80}.")
    return str(value)


def below(root: str, place: str) -> str:
    """Returns a place; one that is relative is below ``root``, if that is not empty, and ``.`` is it."""
    if not root or storage.is_remote(place) or place.startswith("/"):
        return place
    return f"{root.rstrip('/')}/{place}" if place != "." else root


@dataclass(frozen=True, kw_only=True)
class MixtureReader:
    """Reads datasets one after the other, each by its own reader; keys begin with the dataset's number.

    Attributes:
        source: The file that names them.
        readers: Of the datasets, in its order.
        limits: Images that are taken of each, the first ones; None for all.
    """

    options: ClassVar[type] = NoOptions

    name: str
    split: str
    source: str
    readers: tuple[Reader, ...]
    limits: tuple[int | None, ...]
    orientation: Orientation = "stored"

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns what all readers return, each of its own inputs."""
        found = {}
        for number, reader in enumerate(self.readers):
            prefix = _prefix(number)
            own = [_without_prefix(item) for item in inputs if item.key.startswith(prefix)]
            found |= {prefix + name: text for name, text in reader.witness(own).items()}
        return found

    def parts(self) -> tuple[str, ...]:
        """Returns the parts of all datasets; one of which only the first images are taken is one part."""
        numbered = enumerate(zip(self.readers, self.limits, strict=True))
        return tuple(
            _prefix(number) + part
            for number, (reader, limit) in numbered
            for part in (reader.parts() if limit is None else ("",))
        )

    def inputs_of(self, part: str) -> Iterator[Input | Reject]:
        """Yields the images of a part of one dataset."""
        number, _, own = part.partition("/")
        reader, limit = self.readers[int(number)], self.limits[int(number)]
        items = reader.inputs_of(own) if limit is None else _first(reader, limit)
        for item in items:
            yield _with_prefix(item, int(number)) if isinstance(item, Input) else item

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields the images of the datasets one after the other."""
        for number, (reader, limit) in enumerate(zip(self.readers, self.limits, strict=True)):
            for item in reader.inputs() if limit is None else _first(reader, limit):
                yield _with_prefix(item, number) if isinstance(item, Input) else item

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists as many first images of each dataset as of every other."""
        items: list[Input | Reject] = []
        more, unlisted = False, 0
        for number, (reader, own) in enumerate(zip(self.readers, self.limits, strict=True)):
            most = max(1, limit // len(self.readers))
            head = reader.head(most if own is None else min(most, own))
            items += [_with_prefix(one, number) if isinstance(one, Input) else one for one in head.items]
            capped = own is not None and own <= most
            more, unlisted = more or (head.more and not capped), unlisted + (0 if capped else head.unlisted)
        return Head(items, more, unlisted)

    def read(self, item: Input) -> ReadResult:
        """Reads an image's record by the reader of its dataset."""
        return self.readers[int(item.key[:_NUMBER])].read(_without_prefix(item))


def _first(reader: Reader, limit: int) -> Iterator[Input | Reject]:
    """Yields the first images of a dataset, and the rejects among them."""
    taken = 0
    for item in reader.inputs():
        taken += isinstance(item, Input)
        if taken > limit:
            return
        yield item


def _prefix(number: int) -> str:
    return f"{number:0{_NUMBER}d}/"


def _with_prefix(item: Input, number: int) -> Input:
    return item._replace(key=_prefix(number) + item.key)


def _without_prefix(item: Input) -> Input:
    return item._replace(key=item.key[_NUMBER + 1 :])
