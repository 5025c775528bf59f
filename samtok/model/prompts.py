"""What the mask encoder reads of a mask: a small soft mask and a box, both made from its runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from samtok import mask_resize
from samtok.mask_resize import SmallMasks
from samtok.masks import RunMask

BOX_LABELS = (2, 3)
"""SAM's point labels of a box: top-left and bottom-right corner."""


@dataclass(frozen=True)
class MaskPrompts:
    """The prompts of some masks, of one image or several; small enough to travel between processes.

    Attributes:
        soft: Masks by antialiased bilinear interpolation, with values in [0, 1].
        boxes: x0, y0, x1, y1 of each: smallest and largest pixel index over width and height, in [0, 1).
            No pixel is added to the far side, as in the authors' code.
    """

    soft: SmallMasks
    boxes: Float[np.ndarray, "mask 4"]

    @classmethod
    def of(cls, masks: Sequence[RunMask | np.ndarray], size: int) -> "MaskPrompts":
        """Returns the prompts of masks, whose images may differ in size, with soft masks of ``size`` cells.

        Raises:
            ValueError: If a mask is empty, because an empty mask has no box.
        """
        runs = [mask if isinstance(mask, RunMask) else RunMask.of_dense(mask) for mask in masks]
        boxes = np.empty((len(runs), 4), dtype=np.float32)
        for i, mask in enumerate(runs):
            box, (height, width) = mask.box_xyxy, mask.shape
            if box is None:
                raise ValueError(
                    f"mask {i} of {len(masks)} is empty; an empty mask has no words. Leave it out."
                )
            boxes[i] = box[0] / width, box[1] / height, box[2] / width, box[3] / height
        return cls(mask_resize.soft(runs, size), boxes)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, part: slice) -> "MaskPrompts":
        return MaskPrompts(self.soft[part], self.boxes[part])

    def take(self, chosen: Sequence[int]) -> "MaskPrompts":
        """Returns those of some masks, in the order given."""
        return MaskPrompts(self.soft.take(chosen), self.boxes[list(chosen)])

    def on(
        self, device: torch.device | str
    ) -> tuple[Float[Tensor, "mask 1 size size"], Float[Tensor, "mask 4"]]:
        """Returns soft masks and boxes as the network takes them; copies to a GPU overlap with its work."""
        pinned = torch.device(device).type == "cuda"
        soft = torch.zeros(len(self), 1, self.soft.size, self.soft.size, pin_memory=pinned)
        self.soft.fill(soft.numpy()[:, 0])
        boxes = torch.tensor(self.boxes)  # a copy, since those of a chunk cannot be written to
        boxes = boxes.pin_memory() if pinned else boxes
        return soft.to(device, non_blocking=True), boxes.to(device, non_blocking=True)
