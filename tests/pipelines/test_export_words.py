"""Corpora of words for other programs: COCO results and a dataset for Hugging Face, read back equal."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jobs.make_shapes import main as make_shapes
from jobs.tokenize_corpus import main as tokenize_corpus
from pipelines import storage
from pipelines.reports.pictures import rows_at
from pipelines.tools.export_words import main
from samtok.model.tokenizer import MaskTokenizer
from tests.jobs import read_manifest
from tests.readers import build_reader, read_all

HERE = ("--workers", "0", "--tracking", "off", "--report-images", "0")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Scenes with expressions in layout of gRefCOCO, and their words with an IoU for each."""
    home = tmp_path_factory.mktemp("words")
    shapes = ["--format", "refer", "--out", str(home / "shapes"), "--num-images", "6", "--crowd-share", "0.3"]
    assert make_shapes([*shapes, "--image-format", "png"]) == 0
    corpus = ["--corpus.reader", "refer", "--corpus.source", str(home / "shapes/grefs.json")]
    corpus += ["--corpus.images", str(home / "shapes/train"), "--tokenizer", "tour", "--skip", "void"]
    more = ["--reconstruct", "1", "--shard-rows", "4"]
    assert tokenize_corpus([*corpus, *more, *HERE, "--out", str(home / "words")]) == 0
    return home


def rows_of(home: Path) -> list[dict[str, Any]]:
    records = read_manifest(home / "words")["shards"]
    return rows_at(str(home / "words"), records, np.arange(6), columns=None)


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_reads_the_results_and_the_truth(home, tmp_path):
    assert main([str(home / "words"), "--format", "coco", "--out", str(tmp_path)]) == 0
    tokenizer = MaskTokenizer.from_pretrained("tour")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "instances.json"))
        results = truth.loadRes(str(tmp_path / "results.json"))
    rows = rows_of(home)
    assert len(results.anns) == len(truth.anns) == sum(len(row["masks"]) for row in rows)
    for row in rows:
        image = np.asarray(Image.open(row["image_uri"]))
        expected = tokenizer.decode(image, [mask["codes"] for mask in row["masks"]])
        (place,) = [one for one in truth.imgs.values() if one["file_name"] == row["image_uri"]]
        ours = [results.anns[one] for one in results.getAnnIds(imgIds=[place["id"]])]
        theirs = [truth.anns[one] for one in truth.getAnnIds(imgIds=[place["id"]])]
        for found, kept, one, mask in zip(ours, theirs, expected, row["masks"], strict=True):
            assert (coco_mask.decode(found["segmentation"]).astype(bool) == one).all()
            assert found["score"] == pytest.approx(mask["iou"])
            assert kept["segmentation"]["counts"] == mask["rle"] and kept["area"] == mask["area_px"]
            assert truth.cats[kept["category_id"]]["name"] == mask["label"]
            assert kept["iscrowd"] == int("crowd" in mask["flags"])
    assert any(one["iscrowd"] for one in truth.anns.values())
    with contextlib.redirect_stdout(io.StringIO()):
        scored = COCOeval(truth, results, "segm")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    assert 0 <= scored.stats[0] <= 1


def test_a_dataset_is_read_back_equal(home, tmp_path):
    assert main([str(home / "words"), "--format", "huggingface", "--out", str(tmp_path)]) == 0
    files = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert files == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    rows = rows_of(home)
    written = [row for name in files for row in pq.read_table(tmp_path / "data" / name).to_pylist()]
    for row, one in zip(rows, written, strict=True):
        assert one.pop("image") == {"bytes": Path(row["image_uri"]).read_bytes(), "path": row["image_uri"]}
        assert one == {name: value for name, value in row.items() if name != "image_uri"}
    metadata = pq.read_schema(tmp_path / "data" / files[0]).metadata
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    back, rejects = read_all(build_reader("parquet", source=str(tmp_path / "data")))
    assert not rejects
    for row, again in zip(rows, back, strict=True):
        keys = ("mask_id", "rle", "label", "flags")
        assert [{key: mask[key] for key in keys} for mask in again["masks"]] == [
            {key: mask[key] for key in keys} for mask in row["masks"]
        ]
        assert again["annotations"] == row["annotations"] and again["height"] == row["height"]


def test_what_cannot_be_exported_says_why(home, tmp_path, capsys):
    assert main([str(home / "shapes"), "--format", "coco", "--out", str(tmp_path)]) == 2
    assert "is no finished corpus" in capsys.readouterr().err
    wrong = ["--tokenizer", "tiny"]
    assert main([str(home / "words"), "--format", "coco", "--out", str(tmp_path), *wrong]) == 2
    assert "--tokenizer tiny has not made these words" in capsys.readouterr().err


def test_an_image_that_is_gone_is_left_out_and_counted(home, tmp_path, capsys):
    gone = Path(rows_of(home)[0]["image_uri"])
    kept = gone.rename(tmp_path / "kept")
    try:
        for kind in ("coco", "huggingface"):
            assert main([str(home / "words"), "--format", kind, "--out", str(tmp_path / kind)]) == 0
            assert "5 written" in (said := capsys.readouterr().out) and "1 left out as image_missing" in said
    finally:
        kept.rename(gone)


@pytest.mark.slow
@pytest.mark.numerics
def test_an_export_to_s3_is_that_to_a_disk(home, tmp_path, bucket):
    for out in (str(tmp_path), f"{bucket}/set"):
        assert main([str(home / "words"), "--format", "coco", "--out", out]) == 0
    for name in ("results.json", "instances.json"):
        assert storage.read_bytes(f"{bucket}/set/{name}") == (tmp_path / name).read_bytes()
