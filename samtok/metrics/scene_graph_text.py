"""Scene graphs as models write them (PSG, the paper's Table 10): from an answer's text to its triplets.

Two forms are known. The authors' is a list of JSON in a fence::

    [{"subject": {"mask_2d": "WORD", "label": "person"}, "predicate": "on", "object": {...}}]

The other one is a triplet per line, ``person WORD on grass WORD``. Words of masks are kept as text; which
masks they mean is ``samtok.metrics.text_masks``, how triplets are scored ``samtok.metrics.scene_graphs``.
Nothing that a model can write is an error: what is no triplet is counted. Source of the official reading:
github.com/devinxzhang/CycleGRPO, projects/vlm/tokenmask/evaluation/psg. Loads no torch.
"""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from samtok.metrics.referring import Mode, check_mode

END_OF_TURN = "<|im_end|>"
"""Where a chat model ends its answer; what comes after it is not read."""

MAX_ENTRY_CHARS = 4096
"""Longest entry that is read from a broken list; an ordinary one has 250 characters."""

_WORDS = r"(?:<\|mt_(?:start|end|[0-9]{4,9})\|>)+"
_SPLIT = re.compile(f"({_WORDS})")
_UNQUOTED = re.compile(rf'("mask_2d"\s*:\s*)({_WORDS}(?:\s*,\s*{_WORDS})*)')
_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)
_ENTRY = re.compile(r'\{\s*"subject"\s*:')


@dataclass(frozen=True, kw_only=True)
class StatedTriplet:
    """A triplet as it was written: labels without space around them, words of masks as text, maybe none."""

    subject: str
    subject_words: str
    predicate: str
    object: str
    object_words: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What could be read of an answer.

    Attributes:
        triplets: In the order of the text.
        num_malformed: Entries of the list, or lines, that are no triplet.
        num_unknown: Triplets that were left out, since a label or the predicate is in no list.
        finished: The answer ends with the end of a fence, and the end of the turn, if it is there, follows
            at once.
    """

    triplets: tuple[StatedTriplet, ...]
    num_malformed: int
    num_unknown: int
    finished: bool

    def used(self, mode: Mode) -> tuple[StatedTriplet, ...] | None:
        """Returns the triplets to score; None in "official" mode for an answer that is not finished, since
        its image is left out there."""
        check_mode(mode)
        return self.triplets if self.finished or mode == "strict" else None


def read_answer(
    text: str,
    *,
    classes: Collection[str] | None = None,
    predicates: Collection[str] | None = None,
    mode: Mode = "strict",
) -> Answer:
    """Reads the triplets of an answer, without its thought.

    JSON is read in a fence, in a fence that nothing closes, or without one; words of masks may stand without
    quotes. Of a list that is cut off or broken, the entries that are whole are kept. Text that has no entry
    of JSON is read line by line. In a line the longest predicate is taken that leaves a known label.

    Args:
        text: What the model wrote.
        classes: Labels that objects may have; None allows any.
        predicates: Predicates that there are; None allows any. Without both lists the last word before the
            second mask of a line is taken for the object's label.
        mode: "official" needs JSON with quotes around words. Of a list that is broken anywhere it keeps the
            longest entry alone, since the public script takes the longest piece that is JSON.
    """
    check_mode(mode)
    turn = text.partition(END_OF_TURN)[0]
    body = _body(turn)
    if body.lstrip()[:1] in ("[", "{") or _ENTRY.search(body):
        entries = _of_json(body, mode)
    else:
        lines = [line for line in body.splitlines() if line.strip()]
        entries = [_of_line(line, classes, predicates) for line in lines]
    stated = [entry for entry in entries if entry is not None]
    kept = tuple(one for one in stated if _is_known(one, classes, predicates))
    return Answer(
        triplets=kept,
        num_malformed=len(entries) - len(stated),
        num_unknown=len(stated) - len(kept),
        finished=turn.endswith("```"),
    )


def words_of(triplets: Iterable[StatedTriplet]) -> list[str]:
    """Returns the texts that masks are decoded from: of the first subject, its object, the next subject."""
    return [words for one in triplets for words in (one.subject_words, one.object_words)]


def _body(turn: str) -> str:
    """Returns what is in the first fence, to the end if nothing closes it; without a fence everything."""
    fence = _FENCE.search(turn)
    return turn if fence is None else turn[fence.end() :].partition("```")[0]


def _of_json(body: str, mode: Mode) -> list[StatedTriplet | None]:
    if mode == "strict":
        body = _UNQUOTED.sub(r'\1"\2"', body)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # broken, a number too long for an int, or nested without end
        return _of_broken_json(body, mode)
    return [_triplet(entry) for entry in (found if isinstance(found, list) else [found])]


def _of_broken_json(body: str, mode: Mode) -> list[StatedTriplet | None]:
    """Reads entry by entry, and after a broken one goes on where it broke."""
    read = json.JSONDecoder().raw_decode
    entries: list[StatedTriplet | None] = []
    lengths: list[int] = []
    position = 0
    while start := _ENTRY.search(body, position):
        # A piece, since an error of json counts all lines before it: time would be the square of the length.
        piece = body[start.start() : start.start() + MAX_ENTRY_CHARS]
        try:
            entry, length = read(piece)
        except json.JSONDecodeError as error:
            entry, length = None, max(error.pos, len(start[0]))
        except (ValueError, RecursionError):
            entry, length = None, len(piece)
        position = start.start() + length
        entries.append(_triplet(entry))
        lengths.append(length if entries[-1] else 0)
    if mode == "official" and entries:
        longest = lengths.index(max(lengths))
        entries = [entry if place == longest else None for place, entry in enumerate(entries)]
    return entries or [None]


def _triplet(entry: Any) -> StatedTriplet | None:
    match entry:
        case {
            "subject": {"label": str(subject), "mask_2d": str(subject_words)},
            "predicate": str(predicate),
            "object": {"label": str(object_), "mask_2d": str(object_words)},
        }:
            return StatedTriplet(
                subject=subject.strip(),
                subject_words=subject_words,
                predicate=predicate.strip(),
                object=object_.strip(),
                object_words=object_words,
            )
    return None


def _of_line(
    line: str, classes: Collection[str] | None, predicates: Collection[str] | None
) -> StatedTriplet | None:
    parts = [part.strip() for part in _SPLIT.split(line)]
    if len(parts) != 5 or parts[4] or not parts[0]:
        return None
    subject, subject_words, between, object_words, _ = parts
    words = between.split()
    choices = [
        StatedTriplet(
            subject=subject,
            subject_words=subject_words,
            predicate=" ".join(words[:place]),
            object=" ".join(words[place:]),
            object_words=object_words,
        )
        for place in range(len(words) - 1, 0, -1)
    ]
    known = (one for one in choices if _is_known(one, None, predicates) and _in(one.object, classes))
    return next(known, choices[0] if choices else None)


def _is_known(
    one: StatedTriplet, classes: Collection[str] | None, predicates: Collection[str] | None
) -> bool:
    return _in(one.subject, classes) and _in(one.predicate, predicates) and _in(one.object, classes)


def _in(text: str, allowed: Collection[str] | None) -> bool:
    return allowed is None or text in allowed
