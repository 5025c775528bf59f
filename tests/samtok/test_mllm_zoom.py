"""Cut-outs of small regions: which are made, how large, and what is in them."""

import numpy as np
import pytest

from samtok.mllm.zoom import cut_out

HEIGHT, WIDTH = 400, 600


def region(top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image whose pixels say where they are, and a rectangle in it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return np.stack([y // 2, x // 3, mask * 200], -1).astype(np.uint8), mask


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((100, 200, 21, 41), (280, 280)),  # both sides are widened to 140, and enlarged
        ((100, 200, 201, 41), (400, 280)),  # 200 x 140, and the shorter side becomes 280
        ((0, 0, 21, 41), (280, 315)),  # 20 + 60 rows and 40 + 50 columns are there
        ((50, 100, 301, 201), (300, 200)),  # long enough to stay as it is
    ],
)
def test_a_cut_out_is_widened_where_it_is_short_and_enlarged_where_it_is_small(box, size):
    found = cut_out(*region(*box), below=0.9)
    assert found is not None and found.image.shape == (*size, 3) and found.mask.shape == size


def test_it_has_the_pixels_and_the_mask_of_its_place():
    image, mask = region(50, 100, 301, 201)
    found = cut_out(image, mask, below=0.9)
    assert found is not None
    assert (found.image == image[50:350, 100:300]).all() and found.mask.all()
    image, mask = region(100, 200, 21, 41)
    found = cut_out(image, mask, below=0.9)
    assert found is not None  # rows 40 to 180 and columns 150 to 290, twice as large
    assert found.mask[122:160, 102:180].all() and found.mask.sum() == pytest.approx(4 * 21 * 41, rel=0.05)
    assert (
        abs(int(found.image[140, 140, 0]) - 110 // 2) <= 1
        and abs(int(found.image[140, 140, 1]) - 220 // 3) <= 1
    )


def test_large_regions_and_those_of_which_nothing_is_left_have_none():
    image, mask = region(0, 0, 201, 301)
    share = 200 * 300 / (HEIGHT * WIDTH)
    assert cut_out(image, mask, below=share) is None and cut_out(image, mask, below=share + 1e-6) is not None
    assert cut_out(image, np.zeros_like(mask), below=1.0) is None
    edge = np.zeros_like(mask)
    edge[50:350, 300] = (
        True  # one column, which the box of the authors' scripts ends before; widened, it is in
    )
    assert cut_out(image, edge, below=1.0) is not None
