"""What a PNG mask and a YOLO line become, and why some become none."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.ingestion import folder_reader
from pipelines.ingestion.reader import read_record
from samtok import masks
from samtok.errors import ConfigError, DataError
from tests.folders import (
    HEIGHT,
    MASK,
    PICTURE,
    SHARES,
    SMALL,
    SQUARE,
    SQUARE_RLE,
    WIDTH,
    only_row,
    png,
    put,
    reader_of,
    rejected,
)
from tests.readers import ANY, build_reader, read_all

# ---------------------------------------------------------------- masks: names and pixels


def test_names_of_objects_become_ids_and_labels(tmp_path):
    put(tmp_path, {"images/sub/a.JPeG": PICTURE, "images/sub/a_b.webp": PICTURE})
    names = ("a/dog_2", "a/17", "a/big dog", "a/a_cat_1", "a/x/7", "a_9", "a_horse", "a_b_car", "a_b/a_b")
    put(tmp_path, {f"masks/sub/{name}.png": MASK for name in names} | {"masks/sub/a/tree.PNG": MASK})
    rows, rejects = read_all(reader_of("masks", tmp_path))
    assert rejects == []
    found = {row["image_id"]: {m["mask_id"]: m["label"] for m in row["masks"]} for row in rows}
    assert found == {
        "sub/a": {
            **{"17": None, "dog_2": "dog", "big dog": "big dog", "a_cat_1": "cat", "x/7": None},
            **{"a_9": None, "a_horse": "horse", "tree": "tree"},
        },
        "sub/a_b": {"a_b_car": "car", "a_b": None},
    }
    assert all(mask["rle"] == SQUARE_RLE for row in rows for mask in row["masks"])


PALETTE = [255, 255, 255, 0, 0, 0] + [9] * 762


@pytest.mark.parametrize(
    "data",
    [
        png(SQUARE),
        png(SQUARE.astype(np.uint8)),
        png(SQUARE.astype(np.uint16) * 700),
        png(SQUARE.astype(np.uint8), PALETTE),
        png(np.stack([SQUARE.astype(np.uint8) * n for n in (255, 0, 3)], axis=-1)),
    ],
    ids=["1 bit", "gray", "16 bits", "palette", "RGB"],
)
def test_every_value_but_0_is_inside(tmp_path, data):
    put(tmp_path, {"images/a.jpg": PICTURE, "masks/a/1.png": data})
    (mask,) = only_row(reader_of("masks", tmp_path))["masks"]
    assert mask["rle"] == SQUARE_RLE


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_of_a_label_map_are_masks_named_by_the_legend(tmp_path, dtype):
    labels = np.zeros((HEIGHT, WIDTH), dtype)
    labels[2:5, 2:9], labels[8:12, 3:20], labels[15:, :] = 1, 7, 255
    put(tmp_path, {"images/a.jpg": PICTURE, "masks/a.png": png(labels), "legend.json": b'{"1": "road"}'})
    reader = reader_of("masks", tmp_path, legend=f"{tmp_path}/legend.json", void_value=255)
    (row,), notes = read_all(reader)
    assert [(m["mask_id"], m["label"], m["flags"]) for m in row["masks"]] == [
        ("1", "road", []),
        ("7", None, []),
        ("255", None, ["void"]),
    ]
    assert [mask["rle"] for mask in row["masks"]] == [masks.encode(labels == n) for n in (1, 7, 255)]
    assert [(note["mask_id"], note["reason"], note["num_masks"]) for note in notes] == [
        ("7", "unknown_category", 0)
    ]


def test_an_empty_mask_is_kept_as_empty_and_an_empty_label_map_as_a_row_without_masks(tmp_path):
    nothing = png(np.zeros((HEIGHT, WIDTH), np.uint8))
    put(tmp_path, {"images/a.jpg": PICTURE, "masks/a/1.png": nothing})
    assert only_row(reader_of("masks", tmp_path))["masks"][0]["flags"] == ["empty"]
    put(tmp_path / "maps", {"images/a.jpg": PICTURE, "masks/a.png": nothing})
    assert only_row(reader_of("masks", tmp_path / "maps"))["masks"] == []


def test_a_folder_that_can_be_read_in_two_ways_needs_the_option(tmp_path):
    put(tmp_path, {"images/a.jpg": PICTURE, "images/a_1.jpg": PICTURE, "images/b.jpg": PICTURE})
    put(tmp_path, {"masks/a.png": MASK, "masks/a_1.png": MASK, "masks/b/1.png": MASK})
    with pytest.raises(DataError, match=r"2 PNGs named as an image and 1 .* set mask_layout to labelmap or"):
        list(reader_of("masks", tmp_path).inputs())
    assert rejected(reader_of("masks", tmp_path, mask_layout="labelmap")) == [
        ("b", None, "missing_annotation", 0),
        ("b/1", None, "missing_image", 0),
    ]
    assert rejected(reader_of("masks", tmp_path, mask_layout="objects")) == [
        ("a", "a", "missing_image", 1),
        ("a_1", None, "missing_annotation", 0),
    ]


def test_options_of_label_maps_are_refused_for_objects(tmp_path):
    put(tmp_path, {"images/a.jpg": PICTURE, "masks/a/1.png": MASK})
    with pytest.raises(ConfigError, match="legend and void_value are of label maps"):
        list(reader_of("masks", tmp_path, void_value=3).inputs())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"images/a.jpg": PICTURE, "masks/b.png": MASK}, r"no PNG whose name fits an image.*check --images"),
        ({"images/a.jpg": PICTURE, "masks/b.txt": b""}, r"no PNG whose name fits|there is not a \.png file"),
        ({"images/a.txt": b"", "masks/b.png": MASK}, "no PNG whose name fits|there is not an image below"),
    ],
)
def test_folders_without_anything_to_read_are_refused(tmp_path, files, message):
    put(tmp_path, files)
    with pytest.raises(DataError, match=message):
        list(reader_of("masks", tmp_path).inputs())


def test_masks_among_the_images_are_refused_and_below_them_left_out(tmp_path):
    put(tmp_path, {"a.jpg": PICTURE, "masks/a/1.png": MASK})
    with pytest.raises(DataError, match="is the folder of the images too"):
        list(build_reader("masks", source=str(tmp_path), images=str(tmp_path)).inputs())
    reader = build_reader("masks", source=f"{tmp_path}/masks", images=str(tmp_path))
    assert only_row(reader)["image_id"] == "a"


# ---------------------------------------------------------------- yolo: lines and names


def yolo_reader(root: Path, text: bytes, names: bytes | None = b"cat\ndog\n", **options: Any) -> Any:
    put(root, {"images/a.jpg": PICTURE, "labels/a.txt": text})
    put(root, {} if names is None else {"labels/classes.txt": names})
    return reader_of("yolo", root, **options)


def test_lines_are_polygons_or_boxes(tmp_path):
    text = f"\ufeff0 {SHARES}\r\n\r\n1.0 0.5 0.5 0.2 0.4\r\n".encode()
    polygon, box = only_row(yolo_reader(tmp_path, text))["masks"]
    assert (polygon["mask_id"], polygon["label"], polygon["rle"]) == ("1", "cat", SQUARE_RLE)
    assert (box["mask_id"], box["label"], box["rle"], box["flags"]) == ("3", "dog", None, ["box_only"])
    assert box["box_xyxy"] == pytest.approx([12, 6, 18, 14])


@pytest.mark.parametrize("text", [None, b"", b" \n"])
def test_an_image_without_lines_shows_nothing(tmp_path, text):
    put(tmp_path, {"images/a.jpg": PICTURE, "images/b.png": PICTURE, "labels/b.txt": b"0 0.5 0.5 0.2 0.2"})
    put(tmp_path, {} if text is None else {"labels/a.txt": text})
    rows, rejects = read_all(reader_of("yolo", tmp_path))
    assert rejects == [] and [(row["image_id"], len(row["masks"])) for row in rows] == [("a", 0), ("b", 1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", b"names: [cat, dog]\nnc: 2\npath: ../..\n"),
        ("data.yml", b"names:\n  0: cat\n  1: dog\n"),
        ("names.txt", b"cat\r\ndog\r\n"),
    ],
)
def test_names_of_classes_are_read_of_yaml_or_text(tmp_path, name, text):
    put(tmp_path, {name: text})
    reader = yolo_reader(tmp_path, b"1 0.5 0.5 0.2 0.4", None, class_names=f"{tmp_path}/{name}")
    assert only_row(reader)["masks"][0]["label"] == "dog"


@pytest.mark.parametrize(
    ("name", "text", "got"),
    [
        ("data.yaml", b"names: 3", "a int"),
        ("data.yaml", b"[1, 2]", "a NoneType"),
        ("data.yaml", b"names: [cat, 3]", "name 3 of the class 1"),
        ("data.yaml", b"names: {a: cat}", "the key 'a'"),
        ("data.yaml", b"names: [", "cannot be read as names"),
        ("data.yaml", b"names: !!python/object/apply:os.system ['x']", "cannot be read as names"),
        ("c.txt", b"", "name '' of the class 0"),
        ("c.txt", b"cat\n\xff", "cannot be read as names"),
    ],
)
def test_names_that_are_none_are_refused_when_the_corpus_is_listed(tmp_path, name, text, got):
    put(tmp_path, {name: text})
    reader = yolo_reader(tmp_path, b"", None, class_names=f"{tmp_path}/{name}")
    with pytest.raises(DataError, match=got):
        list(reader.inputs())


def test_names_that_changed_since_the_listing_are_a_reject(tmp_path):
    reader = yolo_reader(tmp_path, f"0 {SHARES}".encode())
    (item,) = reader.inputs()
    put(tmp_path, {"labels/classes.txt": b"dog\ncat\n"})
    folder_reader.names_of.cache_clear()  # as in another process
    assert [entry["reason"] for entry in read_record(reader, item).rejects] == ["names_changed"]


def test_without_names_masks_have_no_label(tmp_path):
    assert only_row(yolo_reader(tmp_path, f"5 {SHARES}".encode(), None))["masks"][0]["label"] is None


def test_an_image_on_its_side_is_read_as_ultralytics_does_where_that_is_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "images" / "a.jpg", exif=exif)
    put(tmp_path, {"labels/a.txt": f"0 {SHARES}".encode()})
    stored, upright = (only_row(reader_of("yolo", tmp_path, orientation=o)) for o in ("stored", "upright"))
    assert (stored["height"], stored["width"]) == (WIDTH, HEIGHT)
    assert (upright["height"], upright["width"]) == (HEIGHT, WIDTH)
    assert upright["image_uri"].endswith("#upright") and upright["masks"][0]["rle"] == SQUARE_RLE


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"cat {SHARES}", "label_class"),
        (f"-1 {SHARES}", "label_class"),
        (f"0.5 {SHARES}", "label_class"),
        ("0", "label_line"),
        ("0 0.1 0.2", "label_line"),
        ("0 0.1 0.2 0.3 0.4 0.5", "label_line"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "label_line"),
        ("0 nan 0.2 0.3 0.4", "label_share"),
        ("0 0.1 0.2 inf 0.4 0.5 0.6", "label_share"),
        ("0 0.1 0.2 1e300 0.4 0.5 0.6", "label_share"),
        ("0 12 30 40 50", "label_share"),
        ("0 x y w h", "label_share"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3", "polygon_collinear"),
    ],
)
def test_a_line_that_cannot_be_used_leaves_the_others(tmp_path, line, reason):
    reader = yolo_reader(tmp_path, f"0 {SHARES}\n{line}\n".encode())
    (row,), _ = read_all(reader)
    assert [mask["rle"] for mask in row["masks"]] == [SQUARE_RLE]
    assert rejected(reader) == [("a", "2", reason, 1)]


def test_an_unknown_class_leaves_the_mask_without_label(tmp_path):
    (row,), notes = read_all(yolo_reader(tmp_path, f"2 {SHARES}".encode()))
    assert (row["masks"][0]["label"], row["masks"][0]["rle"]) == (None, SQUARE_RLE)
    assert [(note["reason"], note["num_masks"]) for note in notes] == [("unknown_category", 0)]


# ---------------------------------------------------------------- anything at all

WORDS = st.sampled_from(
    ["0", "1", "9", "0.1", "0.5", "1", "-1", "nan", "inf", "1e999", "x", "\x00", "1_0", "٣", "\u2028"]
)


@ANY
@given(lines=st.lists(st.lists(WORDS, max_size=9).map(" ".join), max_size=5), noise=st.binary(max_size=6))
def test_any_text_gives_masks_or_rejects(tmp_path_factory, lines, noise):
    root = tmp_path_factory.mktemp("any")
    rows, rejects = read_all(yolo_reader(root, "\n".join(lines).encode() + noise))
    lost = sum(entry["num_masks"] for entry in rejects)
    if rows:
        given_lines = [
            line for line in ("\n".join(lines).encode() + noise).decode().split("\n") if line.strip()
        ]
        assert len(rows[0]["masks"]) + lost == len(given_lines)
    else:
        assert [entry["reason"] for entry in rejects] == ["label_text"]


STEMS = st.sampled_from(["a", "a_1", "a/1", "b", "b_a_1", "c/d", "c", "c_2", "..", "x y", "a__"])
PNGS = st.sampled_from([MASK, MASK[:40], b"", SMALL, PICTURE, png(np.full((HEIGHT, WIDTH), 900, np.uint16))])


@ANY
@given(
    images=st.lists(st.tuples(STEMS, st.sampled_from(["jpg", "png", "JPG"])), max_size=5),
    files=st.lists(st.tuples(STEMS, st.sampled_from(["png", "PNG"]), PNGS), max_size=6),
    layout=st.sampled_from(["objects", "labelmap"]),
)
def test_any_folder_of_masks_gives_each_file_a_place(tmp_path_factory, images, files, layout):
    root = tmp_path_factory.mktemp("any")
    pictures = {f"images/{stem.replace('..', 'e')}.{suffix}": PICTURE for stem, suffix in images}
    made = {f"masks/{stem.replace('..', 'e')}.{suffix}": data for stem, suffix, data in files}
    put(root, {**pictures, **made})
    reader = reader_of("masks", root, mask_layout=layout)
    if not pictures or not made:
        with pytest.raises(DataError, match="there is not"):
            list(reader.inputs())
        return
    rows, rejects = read_all(reader)
    keys = Counter(name.removeprefix("images/").rpartition(".")[0] for name in pictures)
    whole = [one["row_id"] for one in rejects if one["mask_id"] is None and one["reason"] != "missing_image"]
    assert sorted([row["image_id"] for row in rows] + whole) == sorted(keys)
    if layout == "objects":
        kept = sum(len(row["masks"]) for row in rows)
        assert kept + sum(one["num_masks"] for one in rejects) == len(made)
