"""Images whose EXIF orientation is not 1 are counted, told of where masks fit only upright, read as asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines.chats.source import load_images
from pipelines.dialogues.imports import _image
from pipelines.ingestion.corpora import CorpusConfig, CorpusSpec
from pipelines.ingestion.image_source import ImageLocation, member_uri, parse_image_uri, read_image
from pipelines.ingestion.orientation import frame_of
from pipelines.ingestion.peek import peek
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tokenization.job import tokenize_corpus
from pipelines.tokenizer_training.config import SamplingConfig
from pipelines.tokenizer_training.corpus import build_index, open_sources
from samtok import masks
from tests import corpora
from tests.readers import build_reader, read_all

HEIGHT, WIDTH = 64, 48  # of the upright picture
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
METHODS = Image.Transpose
BACK = {  # from the upright picture to the stored one
    1: None,
    2: METHODS.FLIP_LEFT_RIGHT,
    3: METHODS.ROTATE_180,
    4: METHODS.FLIP_TOP_BOTTOM,
    5: METHODS.TRANSPOSE,
    6: METHODS.ROTATE_90,
    7: METHODS.TRANSVERSE,
    8: METHODS.ROTATE_270,
}
LOW = [30, 50, 40, 50, 40, 60, 30, 60]  # only upright in the picture
HIGH = [30, 10, 40, 10, 40, 20, 30, 25]


def save(path: Path, orientation: int, picture: Image.Image = PICTURE) -> tuple[int, int]:
    """Writes an image of which viewers show ``picture``; returns the size that is stored."""
    back = BACK[orientation]
    stored = picture if back is None else picture.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.save(path, exif=exif, quality=95)
    return stored.height, stored.width


def rle(size_hw: tuple[int, int]) -> dict[str, Any]:
    dense = np.zeros(size_hw, bool)
    dense[2:9, 3:20] = True
    return {"size": list(size_hw), "counts": masks.encode(dense)}


def coco(folder: Path, sizes: dict[str, tuple[int, int]], segmentations: list, **options: Any) -> Any:
    """Writes a file in which every image has the same masks; returns its reader."""
    images = [
        {"id": number, "file_name": name, "height": size[0], "width": size[1]}
        for number, (name, size) in enumerate(sizes.items(), start=1)
    ]
    marks = [
        {"id": number, "image_id": image["id"], "category_id": 1, "segmentation": one}
        for image in images
        for number, one in enumerate(segmentations, start=1)
    ]
    (folder / "ann.json").write_text(json.dumps({"images": images, "annotations": marks}))
    return build_reader("coco", source=f"{folder}/ann.json", images=str(folder), **options)


def osprey(folder: Path, sizes: dict[str, tuple[int, int]], segmentations: list, **options: Any) -> Any:
    regions = [{"segmentation": one, "bbox": [0, 0, 9, 9]} for one in segmentations]
    body = [
        {"file_name": name, "height": size[0], "width": size[1], "annotation": regions, "description": []}
        for name, size in sizes.items()
    ]
    (folder / "osprey.json").write_text(json.dumps(body))
    return build_reader("osprey", source=f"{folder}/osprey.json", images=str(folder), **options)


def refcocog(folder: Path, sizes: dict[str, tuple[int, int]], segmentations: list, **options: Any) -> Any:
    """Grounded captions, of which no size is stated."""
    refs = [{"sentence": "a shape", "segmentation": one} for one in segmentations]
    body = [{name[:-4]: {"img_file_name": name, "caption": "a shape", "refs": refs}} for name in sizes]
    (folder / "gcg.json").write_text(json.dumps(body))
    return build_reader("granf", source=f"{folder}/gcg.json", images=str(folder), **options)


def seen(row: dict[str, Any]) -> tuple:
    """What a mask means: the size and the masks of a row, and the pixels that whoever reads it gets."""
    pixels = read_image(row["image_uri"], expected_hw=(row["height"], row["width"]))
    return row["height"], row["width"], [mask["rle"] for mask in row["masks"]], pixels.tobytes()


def told(rejects: list[dict[str, Any]]) -> list[str]:
    return [entry["reason"] for entry in rejects]


@pytest.mark.parametrize("write", [coco, osprey, refcocog])
@pytest.mark.parametrize("states_upright", [False, True])
def test_upright_masks_and_pixels_equal_those_of_the_image_stored_upright(tmp_path, write, states_upright):
    sizes = {}
    for orientation in range(1, 9):
        stored_hw = save(tmp_path / f"{orientation}.jpg", orientation)
        with Image.open(tmp_path / f"{orientation}.jpg") as image:
            ImageOps.exif_transpose(image).save(tmp_path / f"up{orientation}.png")
        sizes[f"{orientation}.jpg"] = (HEIGHT, WIDTH) if states_upright else stored_hw
        sizes[f"up{orientation}.png"] = HEIGHT, WIDTH
    rows, rejects = read_all(write(tmp_path, sizes, [[LOW], [HIGH]], orientation="upright"))
    found = {Path(row["image_uri"]).name.removesuffix("#upright"): seen(row) for row in rows}
    assert len(found) == 16 and rejects == []
    for orientation in range(1, 9):
        assert found[f"{orientation}.jpg"] == found[f"up{orientation}.png"]
        assert len(found[f"{orientation}.jpg"][2]) == 2


@pytest.mark.parametrize("write", [coco, osprey, refcocog])
def test_auto_takes_an_image_upright_where_masks_fit_only_that(tmp_path, write):
    sizes = {f"{orientation}.png": save(tmp_path / f"{orientation}.png", orientation) for orientation in BACK}
    rows, rejects = read_all(write(tmp_path, sizes, [[LOW], [HIGH]], orientation="auto"))
    for orientation, row in enumerate(rows, start=1):
        upright = row["image_uri"].endswith("#upright")
        assert (row["height"], row["width"], len(row["masks"])) == (HEIGHT, WIDTH, 2)
        assert upright == (orientation >= 5)  # before that either way fits, and it is as it is stored
        as_shown = seen(row)[3] == np.asarray(PICTURE).tobytes()
        assert as_shown == (upright or orientation == 1)
    assert rejects == []


def test_auto_leaves_images_as_they_are_stored_where_nothing_speaks_for_more(tmp_path):
    stored_hw = save(tmp_path / "6.png", 6)
    save(tmp_path / "1.png", 1, PICTURE.transpose(METHODS.ROTATE_90))
    for name, segmentations in [
        ("6.png", [[HIGH]]),  # fit both
        ("6.png", [[LOW], [[50, 10, 60, 10, 60, 20]]]),  # one fits the stored image only
        ("6.png", [[[30, 40, 40, 40, 40, 48.9, 30, 48.9]]]),  # drawn a little over the edge
        ("6.png", []),
        ("6.png", [rle(stored_hw), [LOW]]),
        ("6.png", [[["a"] * 6], 7, [7], {"size": "x"}, [[10**400] * 6]]),
        ("1.png", [[LOW]]),  # no EXIF orientation
        ("9.png", [[LOW]]),  # no image
    ]:
        rows, rejects = read_all(coco(tmp_path, {name: stored_hw}, segmentations, orientation="auto"))
        assert (rows[0]["height"], rows[0]["width"]) == stored_hw
        assert rows[0]["image_uri"] == f"{tmp_path}/{name}" and "masks_turned" not in told(rejects)


@pytest.mark.parametrize("how", ["auto", "upright"])
def test_the_size_of_rles_decides(tmp_path, how):
    stored_hw = save(tmp_path / "8.png", 8)
    upright_hw = stored_hw[1], stored_hw[0]
    for size_hw in (stored_hw, upright_hw):
        for stated_hw in (stored_hw, upright_hw):
            rows, rejects = read_all(
                coco(tmp_path, {"8.png": stated_hw}, [rle(size_hw), [HIGH]], orientation=how)
            )
            assert (rows[0]["height"], rows[0]["width"], len(rows[0]["masks"])) == (*size_hw, 2)
            assert rejects == [] and seen(rows[0])


def test_a_label_map_of_the_upright_image_is_read_with_it(tmp_path):
    stored_hw = save(tmp_path / "7.png", 6)
    save(tmp_path / "map.png", 1, Image.new("L", (WIDTH, HEIGHT), 5))
    size = {"height": stored_hw[0], "width": stored_hw[1]}
    names = {"image_id": "7", "file_name": "7.png", "pan_seg_file_name": "map.png", **size}
    segment = {"id": 5, "category_id": 0, "area": WIDTH * HEIGHT}
    classes = {"thing_classes": ["sky"], "stuff_classes": [], "predicate_classes": []}
    body = {"data": [{**names, "segments_info": [segment]}], **classes}
    (tmp_path / "psg.json").write_text(json.dumps(body))
    places = {"source": f"{tmp_path}/psg.json", "images": str(tmp_path), "panoptic": str(tmp_path)}
    for how in ("auto", "upright"):
        rows, rejects = read_all(build_reader("psg", **places, split="all", orientation=how))
        assert seen(rows[0])[:2] == (HEIGHT, WIDTH) and len(rows[0]["masks"]) == 1 and rejects == []
    assert told(read_all(build_reader("psg", **places, split="all"))[1]) == ["label_map_size"]


POLYGONS = st.lists(st.lists(st.integers(-9, 9) | st.floats() | st.text(max_size=2), max_size=8), max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.lists(POLYGONS | st.integers() | st.dictionaries(st.just("size"), POLYGONS), max_size=3))
def test_masks_of_any_form_leave_an_image_that_is_not_there_as_it_is(segmentations):
    assert frame_of("auto", "/nowhere/a.png", (4, 6), segmentations) == ("/nowhere/a.png", (4, 6), "")


# ---------------------------------------------------------------- jobs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return corpora.save_micro_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def tokenize(folder: Path, tokenizer: str, **options: Any) -> int:
    places = {"source": f"{folder}/ann.json", "images": str(folder)}
    return tokenize_corpus(
        TokenizeCorpusConfig(
            corpus=CorpusConfig(reader="coco", **places, **options),
            out=f"{folder}/words-{options.get('orientation', 'stored')}",
            tokenizer=tokenizer,
            workers=0,
            report_images=0,
            tracking="off",
            max_reject_rate=1.0,
        )
    )


def test_turned_images_are_counted_and_a_warning_says_where_masks_fit_only_upright(
    tmp_path, tokenizer, capsys
):
    sizes = {f"{orientation}.png": save(tmp_path / f"{orientation}.png", orientation) for orientation in BACK}
    reader = coco(tmp_path, sizes, [[LOW], [HIGH]])
    assert tokenize(tmp_path, tokenizer) == 0
    printed = capsys.readouterr()
    assert "7 image_orientation: image 2 has the EXIF orientation 2 and is read as stored" in printed.out
    assert "masks     in 16  out 12  rejected 4\n" in printed.out
    assert "WARNING 4 masks_turned; for example: image 5: the masks do not fit 48x64 pixels" in printed.err
    assert "but 64x48, as its EXIF orientation 5 turns it; --corpus.orientation auto, or" in printed.err
    assert "EXIF orientation 3 and is read as stored" in str(peek(reader))


def test_words_and_whatever_reads_their_images_later_see_them_upright(tmp_path, tokenizer):
    sizes = {f"{orientation}.png": save(tmp_path / f"{orientation}.png", orientation) for orientation in BACK}
    coco(tmp_path, sizes, [[LOW], [HIGH]])
    assert tokenize(tmp_path, tokenizer, orientation="upright") == 0
    rows = pq.read_table(tmp_path / "words-upright" / "data").to_pylist()
    assert len(rows) == 8
    for row in rows:
        assert [mask["codes"] for mask in row["masks"]] == [mask["codes"] for mask in rows[0]["masks"]]
        image = {"uri": row["image_uri"], "height": row["height"], "width": row["width"]}
        (pixels,) = load_images({"images": [image]})
        np.testing.assert_array_equal(pixels, np.asarray(PICTURE))
        assert _image(row["image_uri"]) == image  # of an exported chat that is imported


def test_training_counts_turned_images(tmp_path):
    save(tmp_path / "3.png", 3)
    coco(tmp_path, {"3.png": (HEIGHT, WIDTH)}, [[HIGH]])
    text = f"reader=coco,source={tmp_path}/ann.json,images={tmp_path}"
    for options, how in (("", "read as stored"), (",orientation=upright", "turned upright")):
        spec = CorpusSpec.parse(text + options, flag="corpora")
        index = build_index([spec], f"{tmp_path}/out{options[:3]}")
        (source,) = open_sources(index, SamplingConfig(min_area_px=1))
        sample = source.read(0, most=4, draw=np.random.default_rng(0))
        (entry,) = sample.rejects
        assert (entry["reason"], entry["num_masks"]) == ("image_orientation", 0) and how in entry["message"]
        assert (sample.image == np.asarray(PICTURE)).all() == (how == "turned upright")


def test_the_option_is_in_the_fingerprint_where_it_is_set():
    plain = CorpusConfig(reader="coco", source="a.json", images="a")
    assert "orientation" not in plain.identity()
    upright = CorpusConfig(reader="coco", source="a.json", images="a", orientation="upright")
    assert upright.identity() == plain.identity() | {"orientation": "upright"}


def test_a_member_of_an_archive_is_read_upright_too():
    where = member_uri("s3://b/a.tar", 512, 99, "x.jpg") + "#upright"
    assert parse_image_uri(where) == ImageLocation("s3://b/a.tar", 512, 99, "x.jpg", upright=True)


def test_no_name_of_an_image_asks_for_another_orientation(tmp_path):
    rows, rejects = read_all(coco(tmp_path, {"1.png#upright": (HEIGHT, WIDTH)}, [[HIGH]]))
    assert rows == [] and told(rejects) == ["unsafe_path"]
