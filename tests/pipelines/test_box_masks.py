"""Boxes and points without masks: SAM2's masks of them in words, the others filtered and counted."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.tokenize_corpus import main as tokenize_corpus
from pipelines import schema
from pipelines.ingestion.reader import Input, read_record
from pipelines.tokenization import boxes
from samtok import masks
from samtok.model.prompted import PromptedSegmenter
from samtok.shapes import WorldConfig, make_scene
from tests.jobs import read_manifest, run_job
from tests.published import tiny_sam2
from tests.readers import build_reader

HERE = ("--tracking", "off", "--report-images", "0", "--tokenizer", "tour")


@pytest.fixture(scope="module")
def sam2(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("sam2") / "hf")
    tiny_sam2().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A corpus in COCO layout: of each image one object has a mask, and two have a box only."""
    home = tmp_path_factory.mktemp("boxes")
    (home / "images").mkdir()
    images, marks = [], []
    for number in range(3):
        scene = make_scene(0, number, WorldConfig.square(96))
        Image.fromarray(scene.image).save(home / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
        rle = {"size": [96, 96], "counts": masks.encode(scene.objects[0].mask)}
        about = {"image_id": number, "category_id": 1, "iscrowd": 0}
        marks.append({"id": 10 * number, "segmentation": rle, **about})
        marks += [{"id": 10 * number + place, "bbox": [8 * place, 10, 40, 30], **about} for place in (1, 2)]
    body = {"images": images, "annotations": marks, "categories": [{"id": 1, "name": "thing"}]}
    (home / "boxes.json").write_text(json.dumps(body))
    return home


def flags(home: Path, out: Path, *more: str) -> list[str]:
    corpus = ["--corpus.reader", "coco", "--corpus.source", str(home / "boxes.json")]
    return [*corpus, "--corpus.images", str(home / "images"), "--out", str(out), *HERE, *more]


def rows_in(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / read_manifest(out)["shards"][0]["data"]["file"]).to_pylist()


def predicted(home: Path, sam2: str) -> dict[str, dict[str, tuple[str, float]]]:
    """Returns what SAM2 says of each box, by a call of its own."""
    segmenter = PromptedSegmenter.from_pretrained(sam2)
    reader = build_reader("coco", source=str(home / "boxes.json"), images=str(home / "images"))
    found = {}
    for item in reader.inputs():
        assert isinstance(item, Input)
        row = read_record(reader, item).row
        assert row is not None
        image = np.asarray(Image.open(home / "images" / f"{item.key}.png"))
        prompts = [mask for mask in row["masks"] if "box_only" in mask["flags"]]
        made, scores = segmenter.segment(image, [mask["box_xyxy"] for mask in prompts])
        found[item.key] = {
            mask["mask_id"]: (masks.encode(one), float(score))
            for mask, one, score in zip(prompts, made, scores, strict=True)
        }
    return found


@pytest.mark.slow
@pytest.mark.numerics
def test_boxes_get_the_masks_that_sam2_predicts_and_those_of_low_score_are_filtered(home, sam2, tmp_path):
    expected = predicted(home, sam2)
    scores = sorted(score for of_image in expected.values() for _, score in of_image.values())
    least = (scores[2] + scores[3]) / 2
    out = tmp_path / "words"
    chosen = ("--boxes.sam2", sam2, "--boxes.min-score", str(least), "--workers", "0")
    assert tokenize_corpus(flags(home, out, *chosen, "--max-reject-rate", "1")) == 0
    kept = {
        mask["mask_id"]: mask
        for row in rows_in(out)
        for mask in row["masks"]
        if mask["flags"] == ["from_prompt"]
    }
    wanted = {
        mask_id: counts
        for of_image in expected.values()
        for mask_id, (counts, score) in of_image.items()
        if score >= least
    }
    assert {mask_id: mask["rle"] for mask_id, mask in kept.items()} == wanted and len(wanted) == 3
    assert all(mask["words"] and mask["area_px"] for mask in kept.values())
    manifest = read_manifest(out)
    totals = manifest["totals"]
    assert (totals["masks_in"], totals["masks_out"], totals["masks_filtered"]) == (9, 6, 3)
    assert manifest["shards"][0]["reject_reasons"] == {"filter/low_score": 3}
    assert manifest["fingerprint"]["min_score"] == least and manifest["fingerprint"]["sam2_sha256"]
    assert tokenize_corpus(flags(home, out, *chosen, "--max-reject-rate", "1")) == 0
    other = ("--boxes.sam2", sam2, "--boxes.min-score", "0", "--workers", "0")
    assert tokenize_corpus(flags(home, out, *other, "--max-reject-rate", "1")) == 2  # another corpus


def test_without_sam2_boxes_are_filtered_as_before(home, tmp_path):
    out = tmp_path / "words"
    assert tokenize_corpus(flags(home, out, "--workers", "0")) == 0
    manifest = read_manifest(out)
    assert manifest["totals"]["masks_out"] == 3
    assert manifest["shards"][0]["reject_reasons"] == {"filter/box_only": 6}
    assert not {"min_score", "sam2_sha256", "sam2_preset"} & set(manifest["fingerprint"])


@pytest.mark.slow
@pytest.mark.cluster
def test_actors_predict_what_this_process_does(home, sam2, tmp_path):
    chosen = ("--boxes.sam2", sam2, "--boxes.min-score", "0", "--chunk-rows", "2")
    here, there = tmp_path / "here", tmp_path / "there"
    assert tokenize_corpus(flags(home, here, *chosen, "--workers", "0")) == 0
    code, output = run_job(
        "tokenize_corpus", *flags(home, there, *chosen, "--workers", "1"), log=tmp_path / "log"
    )
    assert code == 0, output[-3000:]
    assert rows_in(here) == rows_in(there)


def test_a_point_of_labelme_is_an_object_without_a_mask_that_sam2_can_make(sam2, tmp_path):
    scene = make_scene(0, 0, WorldConfig.square(96))
    (home := tmp_path / "home").mkdir()
    Image.fromarray(scene.image).save(home / "a.png")
    points = [[30.0, 40.0], [50.5, 60.0]]
    shapes = [{"label": "dot", "points": [point], "shape_type": "point"} for point in points]
    body = {"imagePath": "a.png", "imageHeight": 96, "imageWidth": 96, "shapes": shapes}
    (home / "a.json").write_text(json.dumps(body))
    corpus = [
        "--corpus.reader",
        "labelme",
        "--corpus.source",
        str(home),
        "--corpus.images",
        str(home),
    ]
    plain, made = tmp_path / "plain", tmp_path / "made"
    assert tokenize_corpus([*corpus, "--out", str(plain), *HERE, "--workers", "0"]) == 3  # nothing to say
    (record,) = (json.loads(file.read_text()) for file in (plain / "commits").iterdir())
    assert record["reject_reasons"] == {"filter/point_only": 2}
    chosen = ["--boxes.sam2", sam2, "--boxes.min-score", "0", "--workers", "0"]
    assert tokenize_corpus([*corpus, "--out", str(made), *HERE, *chosen]) == 0
    (row,) = rows_in(made)
    found, _ = PromptedSegmenter.from_pretrained(sam2).segment(scene.image, points=points)
    assert [mask["rle"] for mask in row["masks"]] == [masks.encode(one) for one in found]
    assert {mask["label"] for mask in row["masks"]} == {"dot"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--boxes.sam2", "/none.pt"), "--boxes.preset"),
        (("--boxes.sam2", "/none.pt", "--boxes.preset", "sam2.1-tiny"), "--boxes.sam2: there is no /none.pt"),
        (("--boxes.min-score", "1.5"), "--boxes.min-score"),
    ],
)
def test_a_sam2_that_is_not_there_is_refused(home, tmp_path, capsys, more, told):
    with pytest.raises(SystemExit, match="2"):  # of a flag that cannot be parsed, else as the job does
        sys.exit(tokenize_corpus(flags(home, tmp_path / "words", *more, "--workers", "0")))
    assert told in capsys.readouterr().err


def test_a_mask_without_pixels_is_filtered_whatever_its_score():
    mask = {
        "mask_id": "1",
        "rle": None,
        "box_xyxy": [0.0, 0.0, 1.0, 1.0],
        "label": None,
        "flags": ["box_only"],
    }
    row = {"dataset": "d", "image_id": "i", "masks": [mask, {**mask, "mask_id": "2", "flags": []}]}
    rejects: list[dict[str, Any]] = []
    found = boxes.with_masks(row, {"1": (None, 0.99)}, rejects, 0.7)
    assert [one["mask_id"] for one in found["masks"]] == ["2"]
    (entry,) = rejects
    assert entry["reason"] == "low_score" and "has no pixels" in entry["message"] and entry["num_masks"] == 1
    kept = boxes.with_masks(row, {"1": ("04", 0.7)}, [], 0.7)
    assert kept["masks"][0]["flags"] == [schema.FROM_PROMPT]
