"""What is written has the published layout, loses no pixel, repeats byte for byte, and is never mixed up."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from jobs import make_shapes
from pipelines import job as run
from pipelines.ingestion.synthetic.config import (
    HELD_OUT_INDEX,
    PRESETS,
    ExpressionsConfig,
    Format,
    ShapesConfig,
)
from pipelines.ingestion.synthetic.corpus import write_shapes
from samtok import masks
from samtok.errors import ConfigError
from samtok.shapes import KINDS, WorldConfig, make_scene
from tests.readers import build_reader

WORLD = WorldConfig(sizes_hw=((32, 48), (40, 32)))
CONFIG = ShapesConfig(num_images=12, first_index=5, seed=2, world=WORLD)
SCENES = [make_scene(2, index, WORLD) for index in range(5, 17)]
LAYOUTS = ("flat", "nested", "tar")


def change(**fields):
    return dataclasses.replace(CONFIG, **fields)


def write(root, config=CONFIG, format="coco"):
    return write_shapes(dataclasses.replace(config, out=str(root), format=format))


def files(root):
    """Returns every file below a folder: relative name -> bytes."""
    paths = sorted(path for path in Path(root).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def all_masks():
    return {
        f"{(scene.index + 1) * 100 + number}": (scene, shape)
        for scene in SCENES
        for number, shape in enumerate(scene.objects, start=1)
    }


def rows_of(reader):
    """Reads a whole corpus by a real reader; nothing may be rejected."""
    inputs = list(reader.inputs())
    results = [reader.read(item) for item in inputs]
    assert not any(result.rejects for result in results)
    return [result.row for result in results]


def check_rows(rows):
    """Every mask that a reader returns must be the scene's, pixel for pixel, and none may be missing."""
    expected = all_masks()
    for row in rows:
        for mask in row["masks"]:
            scene, shape = expected.pop(mask["mask_id"])
            assert (row["height"], row["width"]) == scene.size_hw
            assert mask["rle"] == masks.encode(shape.mask)
    assert not expected


# --- COCO -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools on numpy 2
@pytest.mark.parametrize("segmentation", ["rle", "polygon"])
def test_cocos_own_api_reads_every_mask_back(tmp_path, segmentation):
    config = change(segmentation=segmentation, crowd_share=0.3)
    num_masks = write(tmp_path, config)
    coco = COCO(tmp_path / "annotations" / "instances_train.json")
    assert (len(coco.imgs), len(coco.anns)) == (12, num_masks) == (12, len(all_masks()))
    assert [coco.cats[i + 1]["name"] for i in range(len(KINDS))] == list(KINDS)
    for annotation_id, annotation in coco.anns.items():
        scene, shape = all_masks()[str(annotation_id)]
        assert (coco.annToMask(annotation) == shape.mask).all()
        left, top, right, bottom = masks.box_of(shape.mask)
        assert annotation["bbox"] == [left, top, right - left + 1, bottom - top + 1]
        assert annotation["area"] == shape.mask.sum()
        assert annotation["image_id"] == scene.index + 1
        assert coco.cats[annotation["category_id"]]["name"] == shape.kind
        assert annotation["attributes"] == {"colour": shape.colour, "size": shape.size}


def test_segmentations_have_the_form_that_was_asked_for(tmp_path):
    forms = {}
    for form in ("rle", "polygon"):
        write(tmp_path / form, change(segmentation=form, crowd_share=0.3))
        corpus = json.loads((tmp_path / form / "annotations" / "instances_train.json").read_bytes())
        forms[form] = corpus["annotations"]
        crowds = [entry for entry in forms[form] if entry["iscrowd"]]
        assert 0 < len(crowds) < len(forms[form]) / 2
        assert all(isinstance(entry["segmentation"]["counts"], list) for entry in crowds)
    plain = [entry["segmentation"] for entry in forms["rle"] if not entry["iscrowd"]]
    assert all(isinstance(one["counts"], str) for one in plain)
    drawn = [entry["segmentation"] for entry in forms["polygon"] if not entry["iscrowd"]]
    polygons = [one for one in drawn if isinstance(one, list)]
    assert len(drawn) / 2 < len(polygons) < len(drawn)  # rings and split shapes stay RLE
    crowd_ids = [{entry["id"] for entry in forms[form] if entry["iscrowd"]} for form in forms]
    assert crowd_ids[0] == crowd_ids[1]


def test_images_are_near_the_scene_as_jpeg_and_equal_as_png(tmp_path):
    write(tmp_path / "jpg")
    write(tmp_path / "png", change(image_format="png"))
    for scene in SCENES:
        name = f"{scene.index + 1:012d}"
        exact = pixels(tmp_path / "png" / "train" / f"{name}.png")
        near = pixels(tmp_path / "jpg" / "train" / f"{name}.jpg")
        assert (exact == scene.image).all()
        assert near.shape == scene.image.shape
        assert np.abs(near.astype(int) - scene.image).mean() < 4


def test_the_coco_reader_serves_the_corpus(tmp_path):
    write(tmp_path, change(segmentation="polygon", crowd_share=0.2))
    reader = build_reader(
        "coco",
        source=str(tmp_path / "annotations" / "instances_train.json"),
        images=str(tmp_path / "train"),
        split="train",
        dataset="shapes",
    )
    rows = rows_of(reader)
    check_rows(rows)
    flags = [mask["flags"] for row in rows for mask in row["masks"]]
    assert ["crowd"] in flags and [] in flags
    labels = {mask["mask_id"]: mask["label"] for row in rows for mask in row["masks"]}
    assert labels == {mask_id: shape.kind for mask_id, (_, shape) in all_masks().items()}


# --- SA-1B ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sa1b_reader_serves_every_layout(tmp_path, layout):
    num_masks = write(tmp_path, change(layout=layout, images_per_folder=5), "sa1b")
    rows = rows_of(build_reader("sa1b", source=str(tmp_path), split="train", dataset="shapes"))
    check_rows(rows)
    assert num_masks == len(all_masks())
    assert {row["image_id"] for row in rows} == {f"sa_{scene.index + 1}" for scene in SCENES}


def test_layouts_hold_the_same_pairs_where_sa1b_has_them(tmp_path):
    found = {}
    for layout in LAYOUTS:
        write(tmp_path / layout, change(layout=layout, images_per_folder=5), "sa1b")
        found[layout] = {k: v for k, v in files(tmp_path / layout).items() if not k.startswith("shapes.")}
    assert list(found["tar"]) == ["sa_000000.tar", "sa_000001.tar", "sa_000002.tar"]
    unpacked = {}
    for content in found["tar"].values():
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            unpacked |= {one.name: archive.extractfile(one).read() for one in archive}
    assert unpacked == found["flat"]
    assert {name.split("/")[1]: content for name, content in found["nested"].items()} == found["flat"]
    assert {name.split("/")[0] for name in found["nested"]} == {"sa_000000", "sa_000001", "sa_000002"}
    assert set(found["flat"]) == {f"sa_{i}.{suffix}" for i in range(6, 18) for suffix in ("jpg", "json")}


def test_a_side_car_has_all_published_fields(tmp_path):
    write(tmp_path, change(layout="flat"), "sa1b")
    for scene in SCENES:
        record = json.loads((tmp_path / f"sa_{scene.index + 1}.json").read_bytes())
        height, width = scene.size_hw
        name = f"sa_{scene.index + 1}.jpg"
        image = {"image_id": scene.index + 1, "width": width, "height": height, "file_name": name}
        assert record["image"] == image
        assert pixels(tmp_path / name).shape == (height, width, 3)
        assert len(record["annotations"]) == len(scene.objects)
        for annotation, shape in zip(record["annotations"], scene.objects, strict=True):
            assert set(annotation) == {
                *("id", "segmentation", "bbox", "area", "predicted_iou", "stability_score"),
                *("crop_box", "point_coords"),
            }
            ((x, y),) = annotation["point_coords"]
            assert shape.mask[int(y), int(x)]
            assert annotation["area"] == shape.mask.sum()
            assert 0.88 <= annotation["predicted_iou"] <= 1 and 0.92 <= annotation["stability_score"] <= 1
            assert annotation["crop_box"] == [0, 0, width, height]


# --- repeating --------------------------------------------------------------------------------------------

NAMES = ("coco", "refer", "granf", "psg", "dam", "vqa", "panoptic", "ade20k", "cityscapes", "sav", "mevis")
NAMES += ("segllm",)
NAMES += ("cityscapes_polygons", "reasonseg", "lisa", "pixelweb")
NAMES += (
    "osprey",
    "groundingsuite",
    "mdvp",
    "dlc",
    "revos",
    "ytvos",
    "visual7w",
    "invig",
    "copsref",
    "v3det",
)
FORMATS = [(name, {}) for name in (*NAMES, "masks", "labelme", "yolo")]
FORMATS += [("masks", {"mask_layout": "labelmap"})]
FORMATS += [(name, {"images_per_folder": 5}) for name in ("gar", "dam_tar", "easyr1")]
FORMATS += [("sa1b", {"layout": layout, "images_per_folder": 5}) for layout in LAYOUTS]


def test_every_format_is_in_the_list_above():
    assert {name for name, _ in FORMATS} == set(get_args(Format))


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(("format", "fields"), FORMATS)
def test_an_interrupted_corpus_is_finished_to_the_same_bytes(tmp_path, format, fields):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    num_masks = write(whole, change(**fields), format)
    write(cut, change(**fields), format)
    (cut / "shapes.complete").unlink()
    lost = [name for name in files(cut) if not name.startswith("shapes.")][1::3]
    for name in lost:
        (cut / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in cut.rglob("*") if path.suffix in (".jpg", ".tar")}
    assert lost and write(cut, change(**fields), format) == num_masks
    assert files(cut) == files(whole)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # only what was missing is written


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(("format", "fields"), FORMATS)
def test_a_complete_corpus_is_left_alone(tmp_path, format, fields):
    num_masks = write(tmp_path, change(**fields), format)
    missing = next(path for path in tmp_path.rglob("*") if path.is_file() and "shapes." not in path.name)
    missing.unlink()
    assert write(tmp_path, change(**fields), format) == num_masks
    assert not missing.exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_corpus_of_another_config_is_refused_and_the_difference_named(tmp_path, finished):
    write(tmp_path)
    if not finished:
        (tmp_path / "shapes.complete").unlink()
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="num_images: there 12, wanted 13"):
        write(tmp_path, change(num_images=13))
    with pytest.raises(ConfigError, match="max_objects"):
        write(tmp_path, change(world=dataclasses.replace(WORLD, max_objects=5)))
    with pytest.raises(ConfigError, match="format: there 'coco', wanted 'sa1b'"):
        write(tmp_path, format="sa1b")
    assert files(tmp_path) == before


def test_a_corpus_of_another_release_is_refused(tmp_path):
    write(tmp_path)
    record = tmp_path / "shapes.complete"
    record.write_text(record.read_text().replace('"world_version":1', '"world_version":0'))
    with pytest.raises(ConfigError, match="world_version: there 0, wanted 1"):
        write(tmp_path)


def test_expressions_are_part_of_a_corpus_only_where_it_has_them(tmp_path):
    other = change(expressions=ExpressionsConfig(none=3))
    assert other.identity() == CONFIG.identity()
    write(tmp_path, format="refer")
    with pytest.raises(ConfigError, match="expressions: there .*'none': 1"):
        write(tmp_path, other, "refer")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"not empty.*notes\.txt"):
        write(tmp_path, format="sa1b")
    assert list(files(tmp_path)) == ["notes.txt"]


def test_disjoint_ranges_share_no_id_and_the_same_scene_is_the_same_anywhere(tmp_path):
    write(tmp_path / "all", change(layout="flat"), "sa1b")
    write(tmp_path / "a", change(layout="flat", num_images=6), "sa1b")
    write(tmp_path / "b", change(layout="flat", num_images=6, first_index=11), "sa1b")
    parts = [{k: v for k, v in files(tmp_path / name).items() if "shapes." not in k} for name in ("a", "b")]
    assert not parts[0].keys() & parts[1].keys()
    assert parts[0] | parts[1] == {k: v for k, v in files(tmp_path / "all").items() if "shapes." not in k}


# --- config and job ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_images": 0}, "--num-images must be >= 1, got 0"),
        ({"first_index": -1}, "--first-index must be >= 0"),
        ({"crowd_share": 2.0}, "--crowd-share must be in"),
        ({"jpeg_quality": 100}, r"--jpeg-quality must be in \[1, 95\], got 100"),
        ({"split": "../train"}, "--split must be a plain name"),
        ({"format": "sa1b", "image_format": "png"}, "SA-1B has JPEG images only"),
        ({"format": "ade20k", "image_format": "png"}, "ADE20K has JPEG images only"),
        ({"format": "copsref", "image_format": "png"}, "Cops-Ref has JPEG images only"),
        ({"format": "ytvos", "expressions": ExpressionsConfig(single=0)}, "expressions.single must be >= 1"),
        (
            {"format": "groundingsuite", "expressions": ExpressionsConfig(single=0, multi=0)},
            "expressions.single or --.*multi must be >= 1",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        change(**fields)


def test_presets_keep_training_and_held_out_scenes_apart():
    train, held_out = PRESETS["train"], PRESETS["heldout"]
    assert train.first_index + train.num_images <= HELD_OUT_INDEX == held_out.first_index
    assert (train.seed, train.world) == (held_out.seed, held_out.world)
    largest_mask_id = (held_out.first_index + held_out.num_images) * 100 + 99
    assert largest_mask_id < 2**31


def test_the_job_writes_what_its_flags_say(tmp_path):
    flags = ["--preset", "smoke", "--out", str(tmp_path / "x"), "--num-images", "3", "--format", "sa1b"]
    assert make_shapes.main([*flags, "--dry-run"]) == 0
    assert not (tmp_path / "x").exists()
    assert make_shapes.main(flags) == 0
    assert len(list((tmp_path / "x" / "sa_000000").glob("*.jpg"))) == 3
    assert make_shapes.main([*flags, "--seed", "1"]) == 2  # another corpus is there


def test_without_a_flag_the_job_makes_the_smoke_corpus(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert make_shapes.main([]) == 0
    assert capsys.readouterr().out.startswith("no flags: running --preset smoke")
    assert len(list((tmp_path / "runs" / "shapes-smoke" / "train").glob("*.jpg"))) == 64


def test_a_dry_run_prints_the_plan_and_finds_what_is_in_the_way(tmp_path, capsys):
    flags = ["--preset", "smoke", "--num-images", "3", "--out", str(tmp_path)]
    assert make_shapes.main([*flags, "--dry-run"]) == 0
    assert f"plan      3 images as coco in {tmp_path}: all to be written\n" in capsys.readouterr().out
    assert make_shapes.main(flags) == 0
    assert make_shapes.main([*flags, "--dry-run"]) == 0
    assert "complete already" in capsys.readouterr().out
    assert make_shapes.main([*flags, "--seed", "1", "--dry-run"]) == 2


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("form", ["coco", "refer", "psg"])
def test_a_config_file_repeats_the_corpus(tmp_path, form):
    config = change(out=str(tmp_path / "a"), format=form)
    (tmp_path / "config.json").write_text(run.config_json(config))
    assert make_shapes.main(["--config", str(tmp_path / "config.json")]) == 0
    assert make_shapes.main(["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "b")]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
