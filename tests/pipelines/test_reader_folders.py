"""Folders of PNG masks, LabelMe and YOLO: what is written is read back, and what is broken is named."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.tokenize_corpus import main as tokenize_corpus
from pipelines import storage
from pipelines.ingestion import external_sort, folder_reader
from pipelines.ingestion.peek import peek
from pipelines.ingestion.reader import Input, read_record
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from pipelines.shards import load_manifest
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import KINDS, WorldConfig, description, make_scene, trace_outline
from tests.folders import (
    HEIGHT,
    KINDS_OF_FOLDERS,
    MASK,
    PICTURE,
    SHARES,
    SMALL,
    SQUARE,
    WIDTH,
    A,
    labelme,
    only_row,
    png,
    put,
    reader_of,
    rejected,
    shape,
)
from tests.readers import build_reader, read_all

WORLD = WorldConfig(sizes_hw=((48, 64), (64, 40)))
CONFIG = ShapesConfig(out="", num_images=8, first_index=3, seed=5, world=WORLD, image_format="png")
SCENES = {f"{index + 1:012d}": make_scene(5, index, WORLD) for index in range(3, 11)}


# ---------------------------------------------------------------- round trips


def shapes_reader(kind: str, root: str, **options: Any) -> Any:
    source, images = {
        "masks": ("masks/train", "train"),
        "labelme": ("train", "train"),
        "yolo": ("labels/train", "images/train"),
    }[kind]
    return build_reader(kind, source=f"{root}/{source}", images=f"{root}/{images}", **options)


def write_format(root: Path | str, kind: Any, **fields: Any) -> None:
    write_shapes(ShapesConfig(**{**vars(CONFIG), "out": str(root), "format": kind, **fields}))


def test_pngs_of_objects_are_read_back_bit_for_bit(tmp_path):
    write_format(tmp_path, "masks")
    rows, rejects = read_all(shapes_reader("masks", str(tmp_path)))
    assert rejects == [] and [row["image_id"] for row in rows] == sorted(SCENES)
    for row in rows:
        scene = SCENES[row["image_id"]]
        assert (row["height"], row["width"]) == scene.size_hw
        found = {mask["mask_id"]: (mask["label"], mask["rle"], mask["flags"]) for mask in row["masks"]}
        assert found == {
            f"{one.kind}_{number}": (one.kind, masks.encode(one.mask), [])
            for number, one in enumerate(scene.objects, start=1)
        }


def test_label_maps_are_read_back_bit_for_bit_with_their_legend(tmp_path):
    write_format(tmp_path, "masks", mask_layout="labelmap")
    rows, rejects = read_all(shapes_reader("masks", str(tmp_path), legend=f"{tmp_path}/legend.json"))
    assert rejects == [] and len(rows) == len(SCENES)
    for row in rows:
        expected: dict[str, np.ndarray] = {}
        for one in SCENES[row["image_id"]].objects:
            expected[one.kind] = expected.get(one.kind, np.zeros_like(one.mask)) | one.mask
        assert {mask["label"]: mask["rle"] for mask in row["masks"]} == {
            kind: masks.encode(mask) for kind, mask in expected.items()
        }
        assert all(mask["mask_id"] == str(KINDS.index(mask["label"]) + 1) for mask in row["masks"])


@pytest.mark.parametrize("segmentation", ["rle", "polygon"])
def test_labelme_files_are_read_back_with_texts_and_flags(tmp_path, segmentation):
    write_format(tmp_path, "labelme", segmentation=segmentation, crowd_share=0.3)
    rows, rejects = read_all(shapes_reader("labelme", str(tmp_path)))
    assert rejects == [] and [row["image_id"] for row in rows] == sorted(SCENES)
    crowds = 0
    for row in rows:
        scene = SCENES[row["image_id"]]
        assert [(mask["rle"], mask["label"]) for mask in row["masks"]] == [
            (masks.encode(one.mask), one.kind) for one in scene.objects
        ]
        assert [made["text"] for made in row["annotations"]] == [description(one) for one in scene.objects]
        assert [made["mask_ids"] for made in row["annotations"]] == [[m["mask_id"]] for m in row["masks"]]
        crowds += sum(mask["flags"] == ["crowd"] for mask in row["masks"])
    assert 0 < crowds < sum(len(scene.objects) for scene in SCENES.values()) / 2


def test_yolo_labels_are_read_back_exactly_where_a_polygon_is(tmp_path):
    write_format(tmp_path, "yolo")
    reader = shapes_reader("yolo", str(tmp_path), class_names=f"{tmp_path}/data.yaml")
    rows, rejects = read_all(reader)
    assert rejects == [] and [row["image_id"] for row in rows] == sorted(SCENES)
    boxes = 0
    for row in rows:
        for mask, one in zip(row["masks"], SCENES[row["image_id"]].objects, strict=True):
            assert mask["label"] == one.kind
            if trace_outline(one.mask):
                assert (mask["rle"], mask["flags"]) == (masks.encode(one.mask), [])
                continue
            boxes += 1
            left, top, right, bottom = one.box_xyxy
            assert mask["rle"] is None and mask["flags"] == ["box_only"]
            assert mask["box_xyxy"] == pytest.approx([left, top, right + 1, bottom + 1], abs=1e-3)
    assert boxes


@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_a_reader_is_small_repeats_itself_and_names_no_place(tmp_path, kind):
    write_format(tmp_path / "a", kind)
    reader = shapes_reader(kind, f"{tmp_path}/a")
    items = list(reader.inputs())
    assert items == list(reader.inputs()) == list(reader.inputs_of(*reader.parts()))
    assert all(isinstance(item, Input) and str(tmp_path) not in item.payload for item in items)
    again = pickle.loads(pickle.dumps(reader))
    assert again.read(items[0]) == reader.read(items[0])
    assert reader.head() == folder_reader.Head(items, more=False)
    write_format(tmp_path / "b", kind)
    copy = shapes_reader(kind, f"{tmp_path}/b")
    assert copy.witness() == reader.witness() and copy.witness(items[:3]) == reader.witness(items[:3])
    place = json.loads(items[0].payload)
    storage.write_bytes(f"{copy.source}/{place['files'][0]}", b"another size")
    assert copy.witness() != reader.witness() and copy.witness(items[:3]) != reader.witness(items[:3])
    (Path(copy.source) / place["files"][0]).unlink()
    assert "missing" in copy.witness(items[:3]).values()


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_of_a_longer_corpus_the_first_images_are_listed_and_opened(tmp_path, kind):
    write_format(tmp_path, kind, num_images=40)
    reader = shapes_reader(kind, str(tmp_path))
    found = peek(reader, limit=6)
    assert 0 < found.images <= 6 and found.more and not found.faults and found.rejects == 0
    assert list(reader.inputs())[: found.images] == reader.head(6).items
    whole = peek(reader)
    assert (whole.images, whole.more, whole.read) == (40, False, 8) and not whole.faults


def test_a_head_of_folders_that_begin_with_other_names_looks_further(tmp_path):
    put(tmp_path, {f"images/a{number}.png": PICTURE for number in range(40)} | {"images/z.png": PICTURE})
    put(tmp_path, {"masks/z/dog.png": MASK})
    assert [item.key for item in reader_of("masks", tmp_path).head(5).items if isinstance(item, Input)] == [
        "z"
    ]


STEM = st.lists(st.sampled_from(["a", "_a", "/a", "-a", "_b"]), max_size=4).map(
    lambda parts: "a" + "".join(parts)
)
STEMS = st.lists(STEM, max_size=8, unique=True)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=STEMS, files=STEMS, run=st.integers(1, 5))
def test_each_file_belongs_to_the_image_with_the_longest_name(monkeypatch, images, files, run):
    monkeypatch.setattr(external_sort, "RUN_ROWS", run)  # so that runs are merged
    reader = replace(reader_of("masks", "s3://nowhere"), mask_layout="objects")
    names = [f"{stem}.jpg" for stem in images], [f"{stem}.png" for stem in files]
    found = [one for one in reader.groups(*names, reader.belongs()) if isinstance(one, folder_reader.Group)]
    made = {name: group.stem for group in found if group.images for name in group.files}
    assert sorted(name for one in found for name in one.images) == sorted(names[0])
    assert sorted(name for one in found for name in one.files) == sorted(names[1])
    for stem in files:
        fits = [image for image in images if stem.startswith((f"{image}/", f"{image}_"))]
        assert made.get(f"{stem}.png") == max(fits, key=len, default=None)


@pytest.mark.parametrize("orientation", ["stored", "upright", "auto"])
def test_masks_of_either_way_up_fit_an_image_on_its_side(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, mask in (("drawn-upright", SQUARE), ("drawn-as-stored", SQUARE.T)):
        (tmp_path / name / "images").mkdir(parents=True)
        Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / name / "images" / "a.jpg", exif=exif)
        put(tmp_path / name, {"masks/a/1.png": png(mask.astype(np.uint8))})
        reader = reader_of("masks", tmp_path / name, orientation=orientation)
        row = only_row(reader)
        assert (row["height"], row["width"]) == mask.shape and row["masks"][0]["rle"] == masks.encode(mask)
        assert not [text for text in peek(reader).faults if "EXIF orientation 6 and is" not in text]


@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_a_folder_becomes_words(tmp_path, kind):
    write_format(tmp_path, kind, num_images=3)
    reader = shapes_reader(kind, str(tmp_path))
    flags = ["--corpus.reader", kind, "--corpus.source", reader.source, "--corpus.images", reader.images]
    flags += ["--out", f"{tmp_path}/words", "--tokenizer", "tiny", "--workers", "0", "--tracking", "off"]
    assert tokenize_corpus([*flags, "--report-images", "0"]) == 0
    totals = load_manifest(f"{tmp_path}/words")["totals"]
    assert totals["rows_out"] == 3 and totals["masks_rejected"] == 0 < totals["masks_out"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_object_storage_gives_the_same_rows(tmp_path, bucket, kind):
    found = []
    for root in (str(tmp_path), f"{bucket}/corpus"):
        write_format(root, kind)
        reader = shapes_reader(kind, root)
        put(reader.source, {"orphan.png": MASK, "orphan.txt": b"", "orphan.json": labelme(image="no.jpg")})
        rows, rejects = read_all(reader)
        assert len(rejects) == 1
        found.append(json.dumps([rows, rejects, reader.witness()]).replace(root, ""))
        assert peek(reader, limit=5).more
    assert found[0] == found[1]


# ---------------------------------------------------------------- what is broken

NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
TWO = {**A, "masks/a/1.png": MASK}
MANY = b"[" * 100_000

BROKEN: list[tuple[str, dict[str, bytes], list[tuple[str, str | None, str, int]]]] = [
    ("masks", {**TWO, "masks/a/2.png": MASK[:-30]}, [("a", "2", "mask_file_truncated", 1)]),
    ("masks", {**TWO, "masks/a/2.png": b""}, [("a", "2", "mask_file_empty", 1)]),
    ("masks", {**TWO, "masks/a/2.png": b"no image"}, [("a", "2", "mask_file_format", 1)]),
    ("masks", {**TWO, "masks/a/2.png": SMALL}, [("a", "2", "rle_size", 1)]),
    ("masks", {**TWO, "masks/a/2.png": png(np.zeros((4, 4, 4), np.uint8))}, [("a", "2", "label_mode", 1)]),
    ("masks", {**TWO, "masks/a/1.PNG": MASK}, [("a", "1", "duplicate_annotation_id", 1)] * 2),
    ("masks", {**TWO, "masks/b/1.png": MASK}, [("b/1", "1", "missing_image", 1)]),
    ("masks", {**TWO, "images/b.jpg": PICTURE}, [("b", None, "missing_annotation", 0)]),
    ("masks", {**TWO, "images/a.png": PICTURE}, [("a", None, "ambiguous_image", 1)]),
    ("masks", {**TWO, "masks/a\\..\\2.png": MASK}, [("a\\..\\2.png", None, "unsafe_path", 0)]),
    ("masks", {**TWO, "masks/a/\n.png": MASK}, [("a/\n.png", None, "unsafe_path", 0)]),
    ("masks", {**A, "masks/a.png": MASK[:-30]}, [("a", None, "label_map_truncated", 0)]),
    ("masks", {**A, "masks/a.png": png(NOISE)}, [("a", None, "label_map_values", 0)]),
    ("masks", {**A, "masks/a.png": MASK, "masks/a.PNG": MASK}, [("a", None, "ambiguous_annotation", 0)]),
    ("labelme", {**A, "json/a.json": labelme(shape())[:-9]}, [("a", None, "json", 0)]),
    ("labelme", {**A, "json/a.json": b""}, [("a", None, "json", 0)]),
    ("labelme", {**A, "json/a.json": MANY}, [("a", None, "json", 0)]),
    ("labelme", {**A, "json/a.json": b"[]"}, [("a", None, "sidecar_layout", 0)]),
    ("labelme", {**A, "json/a.json": b'{"shapes": {}}'}, [("a", None, "sidecar_layout", 0)]),
    ("labelme", {"json/a.json": labelme(shape())}, [("a", None, "missing_image", 1)]),
    ("labelme", {**A, "json/a.json": labelme(shape(), image="..")}, [("a", None, "image_path", 1)]),
    ("labelme", {**A, "json/a.json": labelme(shape(), image=7)}, [("a", None, "image_path", 1)]),
    ("labelme", {**A, "json/a.json": labelme(shape(), image="a\0.jpg")}, [("a", None, "unsafe_path", 1)]),
    ("labelme", {**A, "json/a.json": labelme(image="../../etc/passwd")}, [("a", None, "missing_image", 0)]),
    ("labelme", {**A, "json/a.json": labelme(shape(), imageWidth=0)}, [("a", None, "image_size", 1)]),
    ("labelme", {**A, "json/a.json": labelme(shape(), imageWidth=None)}, [("a", None, "image_size", 1)]),
    ("labelme", {**A, "json/a.json": labelme(shape()), "json/a.JSON": labelme(shape())},
     [("a", None, "duplicate_image_id", 0)]),
    ("yolo", {**A, "labels/a.txt": b"\xff\xfe0"}, [("a", None, "label_text", 0)]),
    ("yolo", {"images/b.jpg": PICTURE, "labels/a.txt": b""}, [("a", None, "missing_image", 0)]),
    ("yolo", {"images/a.jpg": b"no image", "labels/a.txt": b"0 1 1 1 1"}, [("a", None, "image_format", 1)]),
    ("yolo", {**A, "images/a.webp": PICTURE, "labels/a.txt": b""}, [("a", None, "ambiguous_image", 0)]),
    ("yolo", {**A, "labels/a.txt": b"", "labels/a.TXT": b""}, [("a", None, "ambiguous_annotation", 0)]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "files", "expected"), BROKEN)
def test_what_is_broken_is_rejected_with_a_reason(tmp_path, kind, files, expected):
    put(tmp_path, files)
    assert rejected(reader_of(kind, tmp_path)) == expected


@pytest.mark.parametrize(
    ("kind", "name", "data"), [("labelme", "json/a.json", labelme(shape())), ("yolo", "labels/a.txt", b"0")]
)
def test_too_large_files_are_refused_before_they_are_parsed(tmp_path, monkeypatch, kind, name, data):
    put(tmp_path, {**A, name: data})
    monkeypatch.setattr("pipelines.ingestion.labelme.LabelmeReader.max_sidecar_bytes", len(data) - 1)
    monkeypatch.setattr("pipelines.ingestion.yolo.MAX_TEXT_BYTES", len(data) - 1)
    assert rejected(reader_of(kind, tmp_path)) == [("a", None, "sidecar_too_large", 0)]


def test_a_wrong_image_is_found_when_it_is_decoded(tmp_path):
    put(tmp_path, {"images/a.jpg": png(np.zeros((9, 9, 3), np.uint8)), "masks/a/1.png": MASK})
    assert any("annotation states 20x30" in text for text in peek(reader_of("masks", tmp_path)).faults)


@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_links_that_leave_a_folder_are_refused_unless_allowed(tmp_path, kind):
    annotation = {"masks": "masks/a/1.png", "labelme": "json/a.json", "yolo": "labels/a.txt"}[kind]
    content = {"masks": MASK, "labelme": labelme(shape()), "yolo": f"0 {SHARES}".encode()}[kind]
    for linked in ("images/a.jpg", annotation):
        root = tmp_path / linked.partition("/")[0]
        put(root, {**A, annotation: content})
        put(tmp_path / "elsewhere", {linked: (root / linked).read_bytes()})
        (root / linked).unlink()
        (root / linked).symlink_to(tmp_path / "elsewhere" / linked)
        found = rejected(reader_of(kind, root))
        assert [(reason, row) for row, _, reason, _ in found] == [("unsafe_path", "a")]
        assert len(read_all(reader_of(kind, root, link_root=(f"{tmp_path}/elsewhere",)))[0]) == 1


def test_names_of_classes_behind_a_link_that_leaves_the_folder_are_refused(tmp_path):
    put(tmp_path, {**A, "labels/a.txt": b"", "secret": b"key"})
    (tmp_path / "labels" / "classes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="a link leads outside"):
        list(reader_of("yolo", tmp_path).inputs())


def test_files_that_go_away_or_may_not_be_read_are_rejects(tmp_path):
    put(tmp_path, {**A, "json/a.json": labelme(shape())})
    reader = reader_of("labelme", tmp_path)
    (item,) = reader.inputs()
    (tmp_path / "json" / "a.json").unlink()
    assert [entry["reason"] for entry in read_record(reader, item).rejects] == ["record_missing"]
    put(tmp_path, {"masks/a/1.png": MASK})
    reader = reader_of("masks", tmp_path)
    (item,) = reader.inputs()
    (tmp_path / "masks" / "a" / "1.png").unlink()
    assert [entry["reason"] for entry in read_record(reader, item).rejects] == ["mask_file_missing"]


def test_names_that_are_no_text_are_rejected(tmp_path):
    put(tmp_path, {**TWO})
    bad = os.fsencode(str(tmp_path)) + b"/masks/a/\xff.png"
    Path(os.fsdecode(bad)).write_bytes(MASK)
    assert rejected(reader_of("masks", tmp_path)) == [("a/\\udcff.png", None, "unsafe_path", 0)]
