"""Where the phrases of a caption stand, so that they lie in order and apart.

Offsets are characters, the end exclusive, into the caption without the white space and quotes around it.
"""

from collections.abc import Iterable
from typing import NamedTuple

from samtok.errors import DataError


class Span(NamedTuple):
    """A stretch of the caption, and the masks that it means."""

    start: int
    end: int
    masks: tuple[int, ...]


def stated(value: object, text: str) -> tuple[int, int]:
    """Returns ``[start, end]`` of a record.

    Raises:
        DataError: ``span`` if it is not two whole numbers inside the text, the first below the second.
    """
    numbers = value if isinstance(value, list) and len(value) == 2 else [None, None]
    start, end = (number if type(number) is int else -1 for number in numbers)
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"span is {value!r:.80}, expected [start, end] in the caption's {len(text)} characters",
            reason="span",
        )
    return start, end


def found(phrase: object, text: str) -> tuple[int, int]:
    """Returns the first place of a phrase, whatever its case.

    Raises:
        DataError: ``span_not_found`` if the caption does not have it.
    """
    # casefold and lower can change lengths; compared at each place they cannot shift what follows
    wanted = phrase.strip().lower() if isinstance(phrase, str) else ""
    lower = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    start = lower.find(wanted) if wanted else -1
    if start < 0:
        raise DataError(f"phrase {phrase!r:.80} is not in the caption {text!r:.200}", reason="span_not_found")
    return start, start + len(wanted)


def apart(spans: Iterable[Span], text: str) -> tuple[list[Span], list[Span]]:
    """Makes spans ascend without overlap: equal ones are joined, others end where the next begins.

    Returns:
        The spans, without white space at their ends, and those of which nothing was left.
    """
    joined: dict[tuple[int, int], list[int]] = {}
    for span in spans:
        joined.setdefault((span.start, span.end), []).extend(span.masks)
    ordered = [Span(*place, tuple(dict.fromkeys(masks))) for place, masks in sorted(joined.items())]
    kept, lost = [], []
    for i, span in enumerate(ordered):
        end = min([span.end, *(later.start for later in ordered[i + 1 : i + 2])])
        piece = text[span.start : end]
        start = span.start + len(piece) - len(piece.lstrip())
        if piece.strip():
            kept.append(Span(start, start + len(piece.strip()), span.masks))
        else:
            lost.append(span)
    return kept, lost
