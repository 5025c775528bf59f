"""The tokenization job as real processes on a local folder: results, resume, faults."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipelines import shards
from pipelines.ingestion.config import ShapesConfig
from pipelines.ingestion.shapes_corpus import make_shapes
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import WorldConfig
from samtok.words import parse_words
from tests.jobs import data_digests, job, read_manifest, run_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_IMAGES = 120


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A corpus of 64 px shapes in COCO layout and a tokenizer with random weights."""
    home = tmp_path_factory.mktemp("job")
    config = ShapesConfig(
        out=str(home / "shapes"), num_images=NUM_IMAGES, world=WorldConfig.square(64), crowd_share=0.1
    )
    assert make_shapes(config) == 0
    torch.manual_seed(0)
    MaskTokenizer.from_preset("micro").save_pretrained(str(home / "micro"))
    return home


def flags(home: Path, out: str, *more: str) -> list[str]:
    shapes = home / "shapes"
    return [
        *("--corpus.reader", "coco", "--corpus.source", str(shapes / "annotations/instances_train.json")),
        *("--corpus.images", str(shapes / "train"), "--corpus.dataset", "shapes", "--out", out),
        *("--tokenizer.uri", str(home / "micro"), "--shard-rows", "8", "--chunk-rows", "4"),
        *("--reconstruct", "0.5", "--tracking", "off", "--no-report", *more),
    ]


@pytest.fixture(scope="module")
def whole(home) -> Path:
    """The corpus of words of an uninterrupted run."""
    out = home / "whole"
    code, output = run_job("tokenize_corpus", *flags(home, str(out)), log=home / "whole.log")
    assert code == 0, output[-3000:]
    return out


def commits(out: Path) -> int:
    return len(list((out / "commits").glob("*.json"))) if (out / "commits").exists() else 0


def rows(out: Path) -> Iterator[dict]:
    for shard in read_manifest(out)["shards"]:
        yield from pq.read_table(out / shard["data"]["file"]).to_pylist()


def test_every_mask_has_its_words_once(home, whole):
    source = json.loads((home / "shapes/annotations/instances_train.json").read_text())
    normal = {str(a["id"]) for a in source["annotations"] if not a["iscrowd"]}
    found = [mask for row in rows(whole) for mask in row["masks"]]
    assert sorted(mask["mask_id"] for mask in found) == sorted(normal)
    for mask in found:
        assert parse_words(mask["words"], num_codes=64) == [tuple(mask["codes"])]
    totals = read_manifest(whole)["totals"]
    assert totals["rows_in"] == totals["rows_out"] == NUM_IMAGES
    assert totals["masks_in"] == len(source["annotations"])
    assert totals["masks_filtered"] == len(source["annotations"]) - len(normal) > 0
    assert totals["masks_in"] == totals["masks_out"] + totals["masks_rejected"] + totals["masks_filtered"]


def test_words_are_those_of_the_bare_tokenizer(home, whole):
    from samtok import images, masks

    tokenizer = MaskTokenizer.from_pretrained(str(home / "micro"))
    some = list(rows(whole))[:: NUM_IMAGES // 6]
    for row in some:
        image = images.decode_image(Path(row["image_uri"]).read_bytes(), where="test")
        dense = [masks.decode(m["rle"], height=row["height"], width=row["width"]) for m in row["masks"]]
        expected = tokenizer.encode(image, dense).tolist()
        assert [mask["codes"] for mask in row["masks"]] == expected


def test_a_share_of_images_is_reconstructed(whole):
    drawn = [all(mask["iou"] is not None for mask in row["masks"]) for row in rows(whole) if row["masks"]]
    assert 0.3 < sum(drawn) / len(drawn) < 0.7
    manifest = read_manifest(whole)
    with_iou = sum(mask["iou"] is not None for row in rows(whole) for mask in row["masks"])
    assert sum(shard["iou_count"] for shard in manifest["shards"]) == with_iou


def test_a_finished_corpus_is_left_as_it_is(home, whole):
    before = {path: path.stat().st_mtime_ns for path in (whole / "data").iterdir()}
    code, output = run_job("tokenize_corpus", *flags(home, str(whole)), log=home / "again.log")
    assert code == 0 and "15 shards, 15 committed" in output
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "data").iterdir()}


def test_other_settings_are_refused_with_the_difference(home, whole):
    code, output = run_job(
        "tokenize_corpus", *flags(home, str(whole), "--min-area-px", "9"), log=home / "other.log"
    )
    assert code == 2
    assert "min_area_px: planned 1, now 9" in output


def test_a_dry_run_prints_the_plan_and_writes_nothing(home):
    out = home / "dry"
    code, output = run_job("tokenize_corpus", *flags(home, str(out), "--dry-run"), log=home / "dry.log")
    assert code == 0 and f"plan: {NUM_IMAGES} images" in output and "15 shards" in output
    assert not out.exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_driver_is_resumed_to_the_same_bytes(home, whole, seed):
    out = home / f"killed{seed}"
    stop_at = random.Random(seed).randint(0, 12)
    with job("tokenize_corpus", *flags(home, str(out)), log=home / f"killed{seed}.log") as first:
        first.until(lambda: (out / "plan.json").exists() and commits(out) >= stop_at)
        first.kill()
    done = commits(out)
    assert not (out / "_MANIFEST.json").exists()
    (out / "data").mkdir(exist_ok=True)
    (out / "data" / "shard-00003-deadbeef.parquet").write_bytes(b"orphan")  # as a lost race leaves behind
    code, output = run_job("tokenize_corpus", *flags(home, str(out)), log=home / f"resumed{seed}.log")
    assert code == 0, output[-3000:]
    assert f"15 shards, {done} committed" in output
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))
    assert len(list((out / "data").iterdir())) == 15  # the orphan is gone


def test_a_killed_tokenizer_actor_costs_nothing(home, whole):
    out = home / "actor"
    with job("tokenize_corpus", *flags(home, str(out)), log=home / "actor.log") as running:
        for kill_at in (1, 6):
            running.until(lambda at=kill_at: commits(out) >= at)
            actors = running.processes("TokenizeMasks")
            assert actors, [p.cmdline() for p in running.processes("ray::")]
            actors[0].kill()
        assert running.wait() == 0, running.output()[-3000:]
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))


def test_a_manifest_is_needed_to_read_a_corpus(home):
    from samtok.errors import DataError

    with pytest.raises(DataError, match="is not finished"):
        shards.load_manifest(str(home / "nothing"))
