"""Pictures: what is painted where, legible sizes, refused input, and that plots leave matplotlib alone."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from samtok.plots import base, pictures

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

GREY = np.full((40, 60, 3), 100, np.uint8)


def square(top, left, side, size_hw=(40, 60)):
    mask = np.zeros(size_hw, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def colours_of(picture):
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def mixed(colour, grey):
    return tuple(round(0.2 * grey + 0.8 * part) for part in colour)


def test_overlay_paints_an_opaque_outline_around_a_half_transparent_fill():
    mask = square(10, 10, 12)
    picture = pictures.overlay(GREY, [mask], [(200, 0, 0)], alpha=0.5)
    assert tuple(picture[15, 15]) == (150, 50, 50)
    assert tuple(picture[10, 15]) == (200, 0, 0)
    assert tuple(picture[9, 15]) == (45, 45, 45)  # the dark rim just outside
    outside = ~mask
    outside[9:23, 9:23] = False
    assert (picture[outside] == 100).all()
    assert (GREY == 100).all()


def test_overlay_of_nothing_is_the_image():
    assert np.array_equal(pictures.overlay(GREY, []), GREY)
    assert np.array_equal(pictures.overlay(GREY, [np.zeros((40, 60), bool)], numbers=True), GREY)


def test_a_small_mask_is_painted_over_a_large_one_whatever_their_order():
    small, large = square(15, 15, 6), square(5, 5, 30)
    for order in ((small, large), (large, small)):
        colours = [(255, 0, 0) if mask is small else (0, 0, 255) for mask in order]
        picture = pictures.overlay(GREY, order, colours, alpha=1.0)
        assert tuple(picture[18, 18]) == (255, 0, 0)


def test_a_mask_that_touches_the_border_has_no_line_there():
    picture = pictures.overlay(GREY, [square(0, 0, 10)], [(200, 0, 0)], alpha=0.0)
    assert tuple(picture[0, 5]) == (100, 100, 100)
    assert tuple(picture[9, 5]) == (200, 0, 0)


def test_numbers_stand_on_the_mask_even_if_its_centre_is_a_hole():
    ring = square(0, 0, 200, (200, 200)) & ~square(30, 30, 140, (200, 200))
    image = np.full((200, 200, 3), 100, np.uint8)
    plain, numbered = (pictures.overlay(image, [ring], numbers=numbers) for numbers in (False, True))
    changed = (plain != numbered).any(axis=-1)
    assert changed.any()
    assert not changed[60:140, 60:140].any()


@pytest.mark.parametrize(
    ("masks", "colours", "match"),
    [
        ([np.zeros((40, 61), bool)], None, r"mask 0 is \(40, 61\), its image \(40, 60\)"),
        ([square(0, 0, 3)], [], "got 0 colours for 1 masks"),
    ],
)
def test_overlay_refuses_what_does_not_fit(masks, colours, match):
    with pytest.raises(ValueError, match=match):
        pictures.overlay(GREY, masks, colours)


def test_a_panel_must_hold_rgb_bytes():
    with pytest.raises(ValueError, match="must be RGB uint8"):
        pictures.contact_sheet([pictures.Panel(GREY.astype(np.float32), None)])


def test_masks_may_be_one_array():
    masks = [square(2, 2, 9), square(20, 20, 9)]
    assert np.array_equal(pictures.overlay(GREY, np.stack(masks)), pictures.overlay(GREY, masks))


def test_mask_colours_stay_distinct_beyond_the_palette():
    assert pictures.mask_colours(0) == []
    assert len(set(pictures.mask_colours(60))) == 60
    assert pictures.mask_colours(60)[:5] == pictures.mask_colours(5)


def test_difference_shows_agreed_missed_and_extra():
    a, b = square(0, 0, 4, (8, 8)), square(2, 2, 4, (8, 8))
    picture = pictures.difference(a, b)
    assert tuple(picture[3, 3]) == mixed(pictures.AGREED, 46)
    assert tuple(picture[0, 0]) == mixed(pictures.MISSED, 46)
    assert tuple(picture[5, 5]) == mixed(pictures.EXTRA, 46)
    assert tuple(picture[7, 7]) == (46, 46, 46)
    assert len(colours_of(picture)) == 4


def test_difference_of_stacks_compares_mask_by_mask():
    """The two masks are swapped: as one region they agree, mask by mask they do not."""
    left, right = square(0, 0, 4, (8, 8)), square(0, 4, 4, (8, 8))
    picture = pictures.difference(np.stack([left, right]), np.stack([right, left]))
    assert colours_of(picture) == {mixed(pictures.MISSED, 46), (46, 46, 46)}


def test_difference_is_drawn_on_the_dimmed_image():
    nothing = np.zeros((40, 60), bool)
    assert colours_of(pictures.difference(nothing, nothing, GREY)) == {(60, 60, 60)}


def test_difference_refuses_masks_of_different_shapes():
    with pytest.raises(ValueError, match=r"\(40, 60\) and \(8, 8\)"):
        pictures.difference(square(0, 0, 4), square(0, 0, 4, (8, 8)))


def test_small_images_grow_by_whole_pixels_and_large_ones_shrink_with_their_masks():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (30, 50, 3), np.uint8)
    grown = pictures.fit(small, 128)
    assert grown.shape == (60, 100, 3)
    assert np.array_equal(grown[::2, ::2], small)
    mask = square(3, 7, 20, (30, 50))
    assert np.array_equal(pictures.fit_mask(mask, 128)[::2, ::2], mask)
    assert pictures.fit(GREY.repeat(10, 0).repeat(10, 1), 120).shape == (80, 120, 3)
    shrunk = pictures.fit_mask(square(100, 100, 200, (400, 600)), 120)
    assert shrunk.shape == (80, 120)
    assert shrunk.sum() == 40 * 40


@pytest.mark.parametrize(("rows", "kept"), [(2, 0), (3, 1), (7, 1), (8, 2)])
def test_a_shrunken_pixel_belongs_to_the_mask_if_half_of_it_does(rows, kept):
    mask = np.zeros((400, 600), bool)
    mask[:rows] = True
    assert pictures.fit_mask(mask, 120).sum() == kept * 120


def test_a_very_thin_image_keeps_a_pixel_of_height():
    assert pictures.fit(np.zeros((1, 4000, 3), np.uint8), 100).shape == (1, 100, 3)
    assert pictures.fit_mask(np.ones((1, 4000), bool), 100).shape == (1, 100)


def panel(**fields):
    mask = square(4, 4, 12, (32, 32))
    image = np.full((32, 32, 3), 90, np.uint8)
    return pictures.Panel(
        image, [mask], [square(6, 4, 12, (32, 32))], **{"captions": ["0.71 a"], "title": "t", **fields}
    )


def test_a_contact_sheet_grows_with_its_panels_and_holds_all_three_pictures():
    one, three = (pictures.contact_sheet([panel()] * count, side=128) for count in (1, 3))
    wide = pictures.contact_sheet([panel()] * 3, side=128, columns=2)
    assert three.shape[0] > 2 * one.shape[0] > 256
    assert wide.shape[1] > 1.9 * one.shape[1]
    assert one.shape[1] > 3 * 128
    grey = 20 + 0.4 * 90
    assert {
        mixed(colour, grey) for colour in (pictures.AGREED, pictures.MISSED, pictures.EXTRA)
    } <= colours_of(one)


def test_a_contact_sheet_says_what_is_not_available():
    full = pictures.contact_sheet([panel()], side=128)
    bare = pictures.contact_sheet([pictures.Panel(panel().image, None, None, title="t")], side=128)
    assert bare.shape == full.shape
    assert mixed(pictures.MISSED, 56) not in colours_of(bare)


def test_captions_that_do_not_fit_are_cut_and_counted():
    captions = [f"caption {i} " + "x" * 300 for i in range(101)]
    more, most = (pictures.contact_sheet([panel(captions=captions[:n])], side=128) for n in (100, 101))
    assert more.shape == most.shape == pictures.contact_sheet([panel()], side=128).shape
    assert (more != most).any()  # the last line says how many are left out


def test_an_empty_contact_sheet_is_only_the_legend():
    assert pictures.contact_sheet([]).shape[0] < 60


def test_a_contact_sheet_needs_a_column():
    with pytest.raises(ValueError, match="columns must be >= 1, got 0"):
        pictures.contact_sheet([], columns=0)


def test_pictures_survive_png_exactly_and_jpeg_nearly():
    rng = np.random.default_rng(0)
    smooth = np.array(Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((64, 64)))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures.png_bytes(smooth)))), smooth)
    again = np.asarray(Image.open(io.BytesIO(pictures.jpeg_bytes(smooth))))
    assert np.abs(again.astype(int) - smooth).max() < 24


def opened(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def test_plots_are_png_files_that_show_their_data():
    shown = [
        opened(
            base.histogram_plot(
                counts, np.array([0, 0.5, 1]), title="t", x_label="IoU", y_label="masks", mean=0.6
            )
        )
        for counts in ([1, 9], [9, 1], [0, 0])
    ]
    assert shown[0].shape == shown[1].shape
    assert (shown[0] != shown[1]).any()
    usage = [
        opened(base.code_usage_plot(np.array(counts)))
        for counts in ([[5, 0, 2]], [[0, 0, 0]], [[1, 1], [2, 0]])
    ]
    assert usage[2].shape[0] > usage[0].shape[0]
    blue = [(plot == (0, 114, 178)).all(axis=-1).any() for plot in (*shown, *usage)]
    assert blue == [True, True, False, True, False, True]


def test_a_histogram_needs_one_more_edge_than_bins():
    with pytest.raises(ValueError, match="got 2 edges for 2 bins, expected 3"):
        base.histogram_plot([1, 2], [0.0, 1.0], title="", x_label="", y_label="")


def test_drawing_loads_no_matplotlib_and_plots_no_pyplot():
    code = (
        "import sys; import numpy as np; from samtok.plots import base, pictures;"
        "pictures.contact_sheet([]); assert 'matplotlib' not in sys.modules;"
        "base.code_usage_plot(np.ones((1, 2), int)); assert 'matplotlib.pyplot' not in sys.modules;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
