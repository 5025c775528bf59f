"""Objects of ms-swift's records: phrases and boxes that stand aside of the text.

    {"messages": [..., {"role": "assistant", "content": "<ref-object> at <bbox>"}], "images": ["a.jpg"],
     "objects": {"ref": ["a dog"], "bbox": [[331, 761, 853, 1594]], "bbox_type": "real", "image_id": [0]}}

The n-th ``<ref-object>`` is the n-th text of ``ref``, the n-th ``<bbox>`` the n-th box or point of ``bbox``:
x and y of two corners, or of one point, in pixels of the image ``image_id`` (by default the first), or from 0
to 1 if ``bbox_type`` is ``norm1``. A box becomes ``[(x,y),(x,y)]`` in thousandths of the image, as ms-swift's
base template writes it (modelscope/ms-swift, docs/source_en/Customization/Custom-dataset.md).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from samtok.errors import DataError

REF, BBOX = "<ref-object>", "<bbox>"
_FIELDS = {"ref", "bbox", "bbox_type", "image_id"}


def with_objects(
    texts: Sequence[str], objects: Any, images: Sequence[str], size_hw: Callable[[str], tuple[int, int]]
) -> list[str]:
    """Returns the texts of a chat with phrases and boxes in their places.

    Args:
        objects: The field of the record.
        images: Names of the chat's images.
        size_hw: Opens an image.

    Raises:
        DataError: ``objects`` if they are of another shape, or too many or few; as ``size_hw``.
    """
    if not isinstance(objects, dict) or set(objects) - _FIELDS:
        raise _error(f"expected an object with {', '.join(sorted(_FIELDS))}")
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    owners = objects.get("image_id") or [0] * len(boxes)
    kind = objects.get("bbox_type") or "real"
    if not isinstance(refs, list) or not all(isinstance(ref, str) and "<image>" not in ref for ref in refs):
        raise _error("expected a list of texts in ref")
    if not isinstance(boxes, list) or not isinstance(owners, list) or len(owners) != len(boxes):
        raise _error("expected lists of one length in bbox and image_id")
    if kind not in ("real", "norm1"):
        raise _error(f"expected real or norm1 in bbox_type, got {kind!r:.40}")
    written = [
        _written(box, (1, 1) if kind == "norm1" else _size_of(owner, images, size_hw))
        for box, owner in zip(boxes, owners, strict=True)
    ]
    return _replaced(_replaced(texts, BBOX, written), REF, refs)


def _replaced(texts: Sequence[str], tag: str, values: Sequence[str]) -> list[str]:
    asked = sum(text.count(tag) for text in texts)
    if asked != len(values):
        raise _error(f"{asked} times {tag} for {len(values)} of them")
    left: Iterator[str] = iter(values)
    return ["".join(part + (next(left) if more else "") for part, more in _cut(text, tag)) for text in texts]


def _cut(text: str, tag: str) -> list[tuple[str, bool]]:
    *parts, last = text.split(tag)
    return [*((part, True) for part in parts), (last, False)]


def _size_of(owner: Any, images: Sequence[str], size_hw: Callable[[str], tuple[int, int]]) -> tuple[int, int]:
    if type(owner) is not int or not 0 <= owner < len(images):
        raise _error(f"image_id has {owner!r:.40}, and there are {len(images)} images")
    return size_hw(images[owner])


def _written(box: Any, size_hw: tuple[int, int]) -> str:
    if not isinstance(box, list) or len(box) not in (2, 4) or not all(type(n) in (int, float) for n in box):
        raise _error(f"expected 2 or 4 numbers for each of bbox, got {box!r:.80}")
    height, width = size_hw
    if not all(0 <= n <= size for n, size in zip(box, (width, height) * 2, strict=False)):  # NaN too
        raise _error(f"the box {box!r:.80} is outside its image of {height} x {width}")
    thousandths = [int(n / size * 1000) for n, size in zip(box, (width, height) * 2, strict=False)]
    points = zip(thousandths[::2], thousandths[1::2], strict=True)
    return f"[{','.join(f'({x},{y})' for x, y in points)}]"


def _error(fault: str) -> DataError:
    return DataError(f"the field objects cannot be read: {fault}", reason="objects")
