"""Images as the mask tokenizer's decoder wants them, for rewards and validations of pixels."""

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.chats.source import load_images
from samtok.model.backbone import ImageFeatures
from samtok.model.tokenizer import MaskTokenizer


class ImageEncoder:
    """Encodes the images of records on the tokenizer's device, and encodes the last one only once.

    Args:
        max_pixels: As of ``load_images``.
        kept: Images whose features stay in the host's memory, for records that come again and again; the
            first ones that came, since those of a validation come in turn.
    """

    def __init__(self, tokenizer: MaskTokenizer, *, max_pixels: int, kept: int) -> None:
        self.tokenizer, self.max_pixels, self.kept = tokenizer, max_pixels, kept
        self._kept: dict[str, ImageFeatures] = {}
        self._last: tuple[str, ImageFeatures] | None = None

    def features_of(self, record: Mapping[str, Any], *, keep: bool = False) -> ImageFeatures:
        """Returns the features of a record's first image.

        Args:
            keep: Keep them for later calls, if there is room.

        Raises:
            DataError: The image cannot be read.
        """
        uri = record["images"][0]["uri"]
        if self._last is not None and self._last[0] == uri:
            return self._last[1]
        if uri in self._kept:
            found = _on(self._kept[uri], self.tokenizer.device)
        else:
            image = load_images(dict(record), self.max_pixels)[0]
            found = self.tokenizer.features_of([image])
            if keep and len(self._kept) < self.kept:
                self._kept[uri] = _on(found, torch.device("cpu"))
        self._last = uri, found
        return found


def _on(features: ImageFeatures, device: torch.device) -> ImageFeatures:
    return ImageFeatures(*(level.to(device) for level in (features.fine, features.middle, features.coarse)))
