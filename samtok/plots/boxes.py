"""Images with numbered boxes, as judges of MDVP-Bench are shown them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

# As MDVP-Bench draws them; dimming makes them stand out.
_DIMMED = 0.8
_GREEN, _LINE_PX = (0, 255, 0), 2
_TEXT_PX, _INSET_PX = 18, 4


def numbered_boxes(
    image: UInt8[np.ndarray, "height width 3"], boxes_xyxy: Sequence[tuple[int, int, int, int] | None]
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a dimmed copy of an image with the outlines of boxes, each with its number, from 1, inside its
    upper left corner.

    Args:
        image: RGB, values 0 to 255.
        boxes_xyxy: In pixels, far side included; None for an empty region, whose number is not drawn.
    """
    picture = Image.fromarray((image.astype(np.float32) * _DIMMED).round().astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_TEXT_PX)
    for number, box in enumerate(boxes_xyxy, start=1):
        if box is None:
            continue
        draw.rectangle(box, outline=_GREEN, width=_LINE_PX)
        corner = (box[0] + _INSET_PX, box[1] + _INSET_PX)
        draw.rectangle(draw.textbbox(corner, str(number), font=font), fill="black")
        draw.text(corner, str(number), font=font, fill="white")
    return np.asarray(picture)
