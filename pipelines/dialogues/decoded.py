"""Words of imported chats against the masks that their rows have: decoded and compared."""

import functools
from collections.abc import Mapping
from typing import Any

from pipelines import storage
from pipelines.chats.source import load_images
from samtok import masks
from samtok.errors import DataError


def checked(row: dict[str, Any], tokenizer: str | None, min_iou: float | None) -> DataError | None:
    """Notes the IoU of each mask of a chat row that has an RLE with what its words decode to.

    Args:
        row: In the shape of ``pipelines.schema.CHAT_ROW``; its masks get their ``iou``.
        tokenizer: Whose words they are; with None nothing is compared.
        min_iou: Least IoU that is enough.

    Returns:
        Why the chat is to be filtered: ``low_iou``; None if it is kept.

    Raises:
        DataError: ``no_iou`` if there is a least IoU and a mask without an RLE; as ``load_images``.
    """
    known = [mask for mask in row["masks"] if mask["rle"] is not None]
    if tokenizer is not None and known:
        _compare(row, tokenizer)
    for mask in row["masks"] if min_iou is not None else ():
        if mask["iou"] is None:
            raise DataError(f"the word {mask['words']} has no mask to compare it with", reason="no_iou")
        if mask["iou"] < min_iou:
            message = f"the word {mask['words']} decodes to an IoU of {mask['iou']:.3f}, below --min-iou"
            return DataError(f"{message} {min_iou}", reason="low_iou")
    return None


def _compare(row: dict[str, Any], uri: str) -> None:
    tokenizer = _tokenizer(uri)
    for number, pixels in enumerate(load_images(row)):
        of_image = [mask for mask in row["masks"] if mask["image"] == number and mask["rle"] is not None]
        decoded = tokenizer.decode(pixels, [mask["codes"] for mask in of_image])
        for mask, found in zip(of_image, decoded, strict=True):
            mask["iou"] = masks.iou(_truth(mask, row["images"][number]), found)


def _truth(mask: Mapping[str, Any], image: Mapping[str, Any]) -> Any:
    return masks.decode(mask["rle"], height=image["height"], width=image["width"])


@functools.lru_cache(maxsize=1)
def _tokenizer(uri: str) -> Any:
    import torch

    from samtok.model.tokenizer import MaskTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return MaskTokenizer.from_pretrained(uri, device=device, read=storage.read_bytes)
