"""The REFER family: expressions for objects of a COCO-layout file (family F6).

Serves RefCOCO, RefCOCO+, RefCOCOg and RefClef (``refs(unc).p``, a pickle of plain data) and gRefCOCO
(``grefs(unc).json``, with several targets or none). Sources: lichengunc/refer (refer.py) and
henghuiding/gRefCOCO.

A row is an image with expressions of the split, with *all* its objects, since instances.json also lists those
that nobody refers to. A ref's own ``file_name`` ends in the number of an object and is never used. What is
rejected of other images is not reported. Splits are chosen by the official rule (``selects``).
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipelines import storage
from pipelines.ingestion import annotations, records, safe_pickle
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.expressions import NO_IMAGE, ExpressionReader, InstancesOption
from pipelines.ingestion.file_reader import no_split
from pipelines.ingestion.reader import Reject
from pipelines.ingestion.records import Record
from samtok.errors import ConfigError, DataError

MAX_REFS_BYTES = 2**29
"""Largest file of refs that is read. The largest published one has under 100 MB."""

_REF_FIELDS = ("ref_id", "sent_id", "image_id", "ann_id", "no_target", "tags", "split")


@dataclass(frozen=True, kw_only=True)
class ReferOptions(InstancesOption):
    """Options of the REFER family."""

    sentence: Literal["sent", "raw"] = "sent"
    """refer: expressions in lower case and clean (sent), or as they were typed (raw)."""


@dataclass(frozen=True, kw_only=True)
class ReferReader(ExpressionReader, ReferOptions):
    """Reads the expressions of one split; ``source`` holds the refs, a pickle or JSON.

    Attributes:
        max_refs_bytes: Largest file of refs that is read.
    """

    options: ClassVar[type] = ReferOptions

    max_refs_bytes: int = MAX_REFS_BYTES

    def expressions(self) -> tuple[dict[str, list[Annotation]], list[Reject]]:
        """Returns expressions of the split by image, in the order of their ids, and what cannot be one.

        Raises:
            DataError: If the file has another layout, or a pickle holds more than plain data.
            ConfigError: If no ref is of the split; names those that are there.
        """
        refs, rejects = self._refs()
        by_image: dict[str, list[Annotation]] = defaultdict(list)
        for ref_id in sorted(refs, key=records.id_order):
            image_id = records.id_text(refs[ref_id].get("image_id"))
            try:
                made, lost = self._of_ref(ref_id, refs[ref_id], image_id)
            except DataError as error:
                rejects.append(self.lost(image_id, f"of ref {ref_id}", error))
            else:
                rejects += lost
                by_image[image_id or NO_IMAGE] += made
        return {image_id: made for image_id, made in by_image.items() if made}, rejects

    def _of_ref(
        self, ref_id: str, ref: Record, image_id: str | None
    ) -> tuple[list[Annotation], list[Reject]]:
        if image_id is None:
            raise DataError(f"image_id is {ref.get('image_id')!r:.80}, expected an id", reason="image_id")
        targets, tags = _targets(ref), annotations.tags_of(ref.get("tags"), "tags")
        listed = ref.get("sentences")
        if not isinstance(listed, list) or not listed:
            raise DataError(f"sentences are {listed!r:.80}, expected a list", reason="annotation_text")
        sentences, lost = self._identified("sent_id", listed, lambda _: image_id, f"{ref_id}-")
        made = []
        for sent_id in sorted(sentences, key=records.id_order):
            name = f"{ref_id}-{sent_id}"
            try:
                text = annotations.text_of(sentences[sent_id].get(self.sentence), f'"{self.sentence}"')
            except DataError as error:
                lost.append(self.lost(image_id, name, error))
            else:
                made.append(annotations.annotation(name, "referring", targets, text=text, tags=tags))
        return made, lost

    def _refs(self) -> tuple[dict[str, Record], list[Reject]]:
        refs = self._load()
        splits = Counter(split for ref in refs if (split := _split_of(ref)) is not None)
        chosen = [ref for ref in refs if (split := _split_of(ref)) is None or selects(self.split, split)]
        if not any(selects(self.split, split) for split in splits):
            more = " The reader takes split=test for all splits with test in their name"
            raise ConfigError(no_split(self.source, "refs", self.split, splits) + more)
        found, rejects = self._identified("ref_id", chosen, _image_of, "of ref ")
        for ref_id in [ref_id for ref_id, ref in found.items() if _split_of(ref) is None]:
            ref = found.pop(ref_id)
            error = DataError(
                f"split is {ref.get('split')!r:.80}, expected a text", reason="annotation_split"
            )
            rejects.append(self.lost(_image_of(ref), f"of ref {ref_id}", error))
        return found, rejects

    def _load(self) -> list[Any]:
        raw = storage.read_bytes(self.source, size=self.max_refs_bytes + 1)
        if len(raw) > self.max_refs_bytes:
            raise DataError(
                f"{self.source} has over {self.max_refs_bytes} bytes, more than a file of refs can have",
                reason="refer_layout",
            )
        is_json = raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")  # no pickle begins like it
        load = records.parse_json if is_json else safe_pickle.load_plain
        refs = load(raw, self.source)
        if not isinstance(refs, list):
            raise DataError(
                f"{self.source} holds a {type(refs).__name__}, expected a list of refs (REFER). Check that "
                "--corpus.source names the refs and not the instances",
                reason="refer_layout",
            )
        return refs

    def _identified(
        self, key: str, entries: list[Any], image_of: Callable[[Any], str], prefix: str
    ) -> tuple[dict[str, Record], list[Reject]]:
        found = records.by_id(((records.id_of(entry, key), entry) for entry in entries), self._read_of)
        rejects: list[Reject] = []
        for index, entry in found.nameless:
            error = DataError(f"it is {entry!r:.200}, expected a {key}", reason="annotation_id")
            rejects.append(self.lost(image_of(entry), f"{prefix}#{index}", error))
        for identity, entry, end in found.repeated:
            error = DataError(f"{key} {identity} {end}", reason="duplicate_annotation_id")
            rejects.append(self.lost(image_of(entry), f"{prefix}{identity}", error))
        return found.kept, rejects

    def _read_of(self, entry: Record) -> Record:
        """Returns what is read of a ref or a sentence."""
        read = records.picked(entry, (*_REF_FIELDS, self.sentence))
        listed = entry.get("sentences")
        parts = [self._read_of(one) if isinstance(one, dict) else one for one in listed or []]
        return {**read, "sentences": parts} if isinstance(listed, list) else read


def selects(wanted: str, split: str) -> bool:
    """Tells whether refs of ``split`` belong to the split that is wanted, by the rule of refer.py.

    ``test`` takes every split with ``test`` in its name, ``testA``, ``testB`` and ``testC`` every one with
    that letter (``testAB`` is in both); all others, ``testAB`` too, are taken by their name.
    """
    if wanted == "test":
        return "test" in split
    if wanted in ("testA", "testB", "testC"):
        return wanted[-1] in split
    return wanted == split


def _targets(ref: Record) -> list[str]:
    """Returns the ids of the objects that are meant; none for ``-1`` alone and for ``no_target``."""
    value = ref.get("ann_id")
    entries = value if isinstance(value, list | tuple) else [value]
    targets = [records.id_text(entry) for entry in entries]
    stated_none = ref.get("no_target") in (True, 1)
    if targets == ["-1"] or (stated_none and not targets):
        return []
    if stated_none or not targets or "-1" in targets or None in targets:
        raise DataError(
            f"ann_id is {value!r:.80} and no_target {ref.get('no_target')!r:.20}, expected an id, a list of "
            "ids, or [-1] for no target",
            reason="annotation_targets",
        )
    return list(dict.fromkeys(target for target in targets if target is not None))


def _split_of(ref: object) -> str | None:
    split = ref.get("split") if isinstance(ref, dict) else None
    return split if isinstance(split, str) and split else None


def _image_of(ref: object) -> str:
    return records.id_of(ref, "image_id") or NO_IMAGE
