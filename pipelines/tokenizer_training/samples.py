"""What training and validation read: one image with some of its masks, from whatever dataset."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Sample:
    """An image and the masks of it that are trained on or measured; never without masks.

    Attributes:
        name: ``dataset/image id``.
        image: RGB.
        masks: Bool arrays at the image's size, none of them empty.
        counts: ``masks_in`` of the image, and how many of them were ``masks_rejected`` or ``masks_filtered``.
    """

    name: str
    image: UInt8[np.ndarray, "height width 3"]
    masks: list[np.ndarray]
    counts: Mapping[str, int] = field(default_factory=dict)


class Source(Protocol):
    """One dataset with a fixed order of images. Small and picklable: it travels to loader processes."""

    @property
    def name(self) -> str:
        """Name of the dataset."""
        ...

    def __len__(self) -> int:
        """Images that may be drawn."""
        ...

    def read(self, index: int, *, most: int, draw: np.random.Generator) -> Sample:
        """Reads an image and at most ``most`` of its masks, drawn as the run's sampling says.

        Raises:
            Unusable: If the image or all of its masks cannot be used.
        """
        ...
