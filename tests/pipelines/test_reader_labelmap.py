"""The reader of label maps: what is wrong with a map, whole corpora, and that nothing is lost."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import storage
from pipelines.ingestion.corpora import CorpusSpec
from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.label_encodings import ENCODINGS
from pipelines.ingestion.reader import Input, Reader
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from pipelines.ingestion.synthetic.scenes import crowds
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.shapes import KINDS, Scene, WorldConfig, make_scene
from tests.label_maps import (
    HEIGHT,
    WIDTH,
    covers,
    inputs_of,
    picture,
    reader_of,
    reasons,
    regions,
    save,
    write_cityscapes,
)
from tests.readers import build_reader, read_all


def write_bad(folder: Path) -> None:
    """A good map, and beside it all that may be wrong with others."""
    good = save(folder / "maps" / "good.png", regions(1, 2))
    for name in ("good", "empty", "text", "cut", "alpha", "photo", "noise", "link", "folder/x"):
        picture(folder / "images" / f"{name}.jpg")
    whole = (folder / "maps" / "good.png").read_bytes()
    for name, raw in (("empty", b""), ("text", b"no image"), ("cut", whole[:50]), ("alone", whole)):
        (folder / "maps" / f"{name}.png").write_bytes(raw)
    Image.new("RGBA", (WIDTH, HEIGHT)).save(folder / "maps" / "alpha.png")
    Image.new("L", (WIDTH, HEIGHT)).save(folder / "maps" / "photo.png", "JPEG")
    noise = np.random.default_rng(0).permutation(2**16).reshape(256, 256)
    save(folder / "maps" / "noise.png", noise, np.uint16)
    save(folder / "outside" / "link.png", good)
    (folder / "maps" / "link.png").symlink_to(folder / "outside" / "link.png")
    (folder / "outside" / "there").mkdir()
    (folder / "outside" / "there" / "x.png").write_bytes(whole)
    (folder / "maps" / "folder").symlink_to(folder / "outside" / "there")
    (folder / "images" / "twice.jpeg").write_bytes(b"x")
    (folder / "images" / "twice.png").write_bytes(b"x")
    (folder / "maps" / "twice.png").write_bytes(whole)
    (folder / "outside.jpg").write_bytes(b"x")
    (folder / "images" / "away.jpg").symlink_to(folder / "outside.jpg")
    (folder / "maps" / "away.png").write_bytes(whole)
    (folder / "maps" / "good.PNG").write_bytes(whole)
    (folder / "maps" / "a\x1b[2J.png").write_bytes(whole)


EXPECTED = [
    ("ambiguous_image", "twice", "", 0),
    ("duplicate_image_id", "good", "", 0),
    ("image_format", "photo", "", 0),
    ("image_format", "text", "", 0),
    ("image_truncated", "cut", "", 0),
    ("label_map_empty", "empty", "", 0),
    ("label_map_ids", "noise", "", 0),
    ("label_mode", "alpha", "", 0),
    ("missing_image", "alone", "", 0),
    ("unsafe_path", "a\x1b[2J.png", "", 0),
    ("unsafe_path", "away", "", 0),
    ("unsafe_path", "folder/x", "", 0),
    ("unsafe_path", "link", "", 0),
]


@pytest.mark.slow
@pytest.mark.numerics
def test_each_map_at_fault_is_one_reject_and_the_others_stay(tmp_path):
    write_bad(tmp_path)
    rows, rejects = read_all(reader_of(tmp_path, "sceneparsing"))
    assert [row["image_id"] for row in rows] == ["good"] and reasons(rejects) == EXPECTED


def test_links_may_lead_to_a_folder_that_was_named(tmp_path):
    write_bad(tmp_path)
    reader = reader_of(tmp_path, "sceneparsing", link_root=(str(tmp_path / "outside"),))
    assert [row["image_id"] for row in read_all(reader)[0]] == ["folder/x", "good", "link"]


def test_images_that_are_looked_for_among_maps_are_not_the_maps(tmp_path):
    save(tmp_path / "maps" / "a.png", regions(1, 2))
    reader = reader_of(tmp_path, "sceneparsing", images=f"{tmp_path}/maps")
    assert reasons(read_all(reader)[1]) == [("missing_image", "a", "", 0)]


def test_a_folder_without_maps_of_the_encoding_is_refused(tmp_path):
    for encoding in ENCODINGS:
        with pytest.raises(DataError, match=f"has no file .* of the encoding {encoding}"):
            list(reader_of(tmp_path, encoding).inputs())
    write_cityscapes(tmp_path)
    with pytest.raises(DataError, match="has no file"):
        reader_of(tmp_path, "ade20k").head()


def test_options_that_do_not_go_together_are_refused_by_name():
    text = "reader=labelmap,source=maps,images=images"
    for more, message in (
        ("", "reader labelmap needs encoding, one of ade20k, .*train_ids"),
        (",encoding=voc", "encoding must be one of ade20k, .*got voc"),
        (",encoding=cityscapes,part_levels=1", "part_levels is for encoding ade20k"),
        (",encoding=ade20k,part_levels=x", "part_levels must be a whole number >= 1, got x"),
    ):
        with pytest.raises(ConfigError, match=message):
            CorpusSpec.parse(text + more, flag="corpora")


# ---------------------------------------------------------------- the whole corpus


def test_maps_and_legend_are_part_of_the_corpus(tmp_path):
    write_cityscapes(tmp_path)
    (tmp_path / "names.json").write_text('{"26": "car"}')
    reader = reader_of(tmp_path, "cityscapes", legend=f"{tmp_path}/names.json")
    inputs = inputs_of(reader)
    before = reader.witness(), reader.witness(inputs)
    assert set(before[0]) == {"names.json", "label maps"}
    name = "aachen/aachen_000000_000019_gtFine_instanceIds.png"
    assert set(before[1]) == {"names.json", name}
    shutil.copytree(tmp_path, tmp_path / "copy")
    moved = pickle.loads(
        pickle.dumps(reader_of(tmp_path / "copy", "cityscapes", legend=f"{tmp_path}/copy/names.json"))
    )
    assert (moved.witness(), moved.witness(inputs)) == before and inputs_of(moved) == inputs
    (tmp_path / "copy" / "maps" / name).unlink()
    assert moved.witness() != before[0] and moved.witness(inputs)[name] == "missing"


def test_a_head_has_the_first_maps(tmp_path):
    for name in ("c", "b", "a"):
        write_cityscapes(tmp_path, f"{name}/{name}_0_0")
    head = reader_of(tmp_path, "cityscapes").head(2)
    keys = [item.key for item in head.items if isinstance(item, Input)]
    assert keys == ["a/a_0_0", "b/b_0_0"] and head.more


def test_what_parts_list_is_what_the_whole_lists(tmp_path):
    for name in ("b", "a", "c"):
        write_cityscapes(tmp_path, f"{name}/{name}_0_0")
    reader = reader_of(tmp_path, "cityscapes")
    assert len(reader.parts()) == 3
    parts = [item for part in reader.parts() for item in reader.inputs_of(part)]
    assert sorted(item for item in parts if isinstance(item, Input)) == inputs_of(reader)


def synthetic(root: str, form: Any, **fields: Any) -> ShapesConfig:
    world = WorldConfig.square(48)
    config = ShapesConfig(out=root, format=form, num_images=6, seed=4, world=world, **fields)
    write_shapes(config)
    return config


def scene_of(config: ShapesConfig, row: dict[str, Any]) -> Scene:
    number = int("".join(filter(str.isdigit, row["image_id"].rpartition("_")[2])))
    scene = make_scene(config.seed, number - 1, config.world)
    assert read_size_hw(row["image_uri"]) == (row["height"], row["width"]) == scene.size_hw
    return scene


def objects_of(row: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {
        mask["rle"]: (mask["label"], mask["flags"]) for mask in row["masks"] if "void" not in mask["flags"]
    }


def union(shapes: list[np.ndarray]) -> str:
    return masks.encode(np.any(shapes, axis=0))


def by_kind(scene: Scene) -> dict[str, tuple[Any, ...]]:
    """The masks of a scene, those of a kind as one."""
    kinds = [kind for kind in KINDS if any(shape.kind == kind for shape in scene.objects)]
    return {union([one.mask for one in scene.objects if one.kind == kind]): (kind, []) for kind in kinds}


def test_synthetic_ade20k_is_read_back_as_it_was_written(tmp_path):
    config = synthetic(str(tmp_path), "ade20k")
    place = {"source": f"{tmp_path}/ADE/training", "images": f"{tmp_path}/ADE/training", "dataset": "s"}
    for encoding in ("ade20k", "ade20k_instances"):
        rows, rejects = read_all(build_reader("labelmap", **place, encoding=encoding))
        assert len(rows) == 6 and not rejects
        for row in rows:
            scene = scene_of(config, row)
            each = {masks.encode(shape.mask): (shape.kind, []) for shape in scene.objects}
            assert covers(row) and objects_of(row) == (each if "instances" in encoding else by_kind(scene))


def check_cityscapes(config: ShapesConfig, rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 6
    for row in rows:
        scene = scene_of(config, row)
        groups: dict[Any, list[np.ndarray]] = {}
        for index, (shape, crowd) in enumerate(
            zip(scene.objects, crowds(scene, config.crowd_share), strict=True)
        ):
            groups.setdefault((shape.kind, None if crowd else index), []).append(shape.mask)
        expected = {
            union(found): (kind, ["crowd"] if index is None else [])
            for (kind, index), found in groups.items()
        }
        assert covers(row) and objects_of(row) == expected


def cityscapes_reader(root: str, encoding: str = "cityscapes") -> Reader:
    place = {"source": f"{root}/gtFine/train", "images": f"{root}/leftImg8bit/train", "dataset": "s"}
    return build_reader("labelmap", **place, encoding=encoding, legend=f"{root}/legend.json")


def test_synthetic_cityscapes_is_read_back_as_it_was_written(tmp_path):
    config = synthetic(str(tmp_path), "cityscapes", crowd_share=0.4)
    rows, rejects = read_all(cityscapes_reader(str(tmp_path)))
    assert not rejects and any("crowd" in mask["flags"] for row in rows for mask in row["masks"])
    check_cityscapes(config, rows)
    rows, rejects = read_all(cityscapes_reader(str(tmp_path), "cityscapes_labels"))
    assert not rejects
    for row in rows:
        assert objects_of(row) == by_kind(scene_of(config, row))


@pytest.mark.slow
def test_a_corpus_on_s3_is_read_as_on_a_disk(tmp_path, bucket):
    config = synthetic(f"{bucket}/shapes", "cityscapes", crowd_share=0.4)
    synthetic(str(tmp_path), "cityscapes", crowd_share=0.4)
    there, here = cityscapes_reader(f"{bucket}/shapes"), cityscapes_reader(str(tmp_path))
    inputs = inputs_of(there)
    assert inputs == inputs_of(here)
    assert there.witness() == here.witness() and there.witness(inputs) == here.witness(inputs)
    rows, rejects = read_all(there)
    assert not rejects
    check_cityscapes(config, rows)
    name = "shapes/shapes_000000_000001"
    storage.delete(f"{bucket}/shapes/leftImg8bit/train/{name}_leftImg8bit.png")
    assert reasons(read_all(there)[1]) == [("missing_image", name, "", 0)]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), encoding=st.sampled_from(sorted(ENCODINGS)))
def test_a_map_of_any_pixels_and_bytes_is_read_whole_or_rejected(tmp_path, data, encoding):
    shutil.rmtree(tmp_path / "maps", ignore_errors=True)
    names = {"ade20k": "_seg", "ade20k_instances": "_seg", "train_ids": "_labelTrainIds"}
    names |= {"cityscapes": "_gtFine_instanceIds", "cityscapes_labels": "_gtFine_labelIds"}
    path = tmp_path / "maps" / f"a{names.get(encoding, '')}.png"
    shape = data.draw(st.sampled_from([(3, 5), (3, 5, 3), (3, 5, 4)]))
    dtype = np.uint16 if len(shape) == 2 and data.draw(st.booleans()) else np.uint8
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    save(path, draw.integers(0, data.draw(st.sampled_from([2, 40, 256, 65536])), shape), dtype)
    for image in ("a.jpg", "a_leftImg8bit.png"):
        picture(tmp_path / "images" / image)
    if data.draw(st.booleans()):
        raw = bytearray(path.read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
            raw[place] = data.draw(st.integers(0, 255))
        path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    (tmp_path / "maps" / "a.json").write_bytes(
        data.draw(st.sampled_from([b"", b"[]", b"\xff{}", b'{"a": 1}']))
    )
    levels = 2 if encoding.startswith("ade20k") else 0
    rows, rejects = read_all(reader_of(tmp_path, encoding, part_levels=levels))
    assert len(rows) + sum(one["mask_id"] is None for one in rejects) == 1
    assert all(covers(row) for row in rows)
