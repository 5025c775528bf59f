"""The evaluation job as real processes: results, kills, bad input, MLflow."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from samtok import images, masks
from samtok.model.tokenizer import MaskTokenizer
from tests import corpora
from tests.bad_folder import write_bad_folder
from tests.jobs import NUM_IMAGES, commits, job, read_manifest, run_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RESULTS = ("metrics.json", "masks.parquet")
NUM_LARGER = 80


def spec(root: Path, name: str, *more: str) -> str:
    source = f"source={root / 'annotations/instances_train.json'}"
    return ",".join(["reader=coco", source, f"images={root / 'train'}", f"dataset={name}", *more])


def flags(home: Path, out: Path, *specs: str) -> list[str]:
    return [
        *("--out", str(out), "--tokenizer", str(home / "micro"), "--shard-rows", "8"),
        *("--chunk-rows", "4", "--report-images", "0", "--tracking", "off", "--corpora", *specs),
    ]


@pytest.fixture(scope="module")
def specs(home) -> tuple[str, str]:
    """The corpus of the other job tests, and a small one of larger images."""
    corpora.write_shapes(home / "larger", num_images=NUM_LARGER, side=150)
    return spec(home / "shapes", "shapes"), spec(home / "larger", "larger", "split=val")


@pytest.fixture(scope="module")
def measured(home, specs) -> Path:
    """The result of an uninterrupted run."""
    out = home / "measured"
    more = ["--report-images", "6", "--tracking", f"sqlite:///{home}/mlflow.db"]
    code, output = run_job("evaluate_tokenizer", *flags(home, out, *specs), *more, log=home / "measured.log")
    assert code == 0, output[-3000:]
    (out / "output.txt").write_text(output)
    return out


@pytest.mark.long
def test_every_mask_is_measured_as_the_bare_tokenizer_does(home, measured):
    tokenizer = MaskTokenizer.from_pretrained(str(home / "micro"))
    body = json.loads((home / "larger/annotations/instances_train.json").read_text())
    wanted = {}
    for entry in body["images"]:
        own = [a for a in body["annotations"] if a["image_id"] == entry["id"] and not a["iscrowd"]]
        image = images.decode_image((home / "larger/train" / entry["file_name"]).read_bytes(), where="test")
        size = {"height": entry["height"], "width": entry["width"]}
        dense = [masks.decode(masks.to_counts(a["segmentation"], **size), **size) for a in own]
        found = tokenizer.reconstruct(image, dense)
        wanted |= {str(a["id"]): iou for a, iou in zip(own, found.iou, strict=True)}
    table = [
        row for row in pq.read_table(measured / "masks.parquet").to_pylist() if row["dataset"] == "larger"
    ]
    # The job decodes images in batches, so on some processors a pixel at the threshold goes the other way.
    assert {row["mask_id"]: row["iou"] for row in table} == pytest.approx(wanted, abs=1e-4)
    metrics = json.loads((measured / "metrics.json").read_text())
    assert metrics["datasets"]["larger"]["r_acc"] == pytest.approx(np.mean(list(wanted.values())), abs=1e-5)
    assert {row["split"] for row in table} == {"val"}


@pytest.mark.long
def test_the_closing_table_has_all_datasets_and_counts_that_add_up(measured):
    output = (measured / "output.txt").read_text()
    counts = json.loads((measured / "metrics.json").read_text())["overall"]["counts"]
    assert counts["images_in"] == NUM_IMAGES + NUM_LARGER
    assert f"masks     in {counts['masks_in']}  out {counts['masks_measured']}" in output
    for name in ("shapes", "larger", "all"):
        assert f"\n{name} " in output
    assert (measured / "report/worst_masks.png").exists()


@pytest.mark.long
def test_mlflow_has_numbers_pictures_and_lineage(home, measured):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'evaluate_tokenizer'")
    (run,) = client.search_runs([experiment.experiment_id])
    metrics = json.loads((measured / "metrics.json").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.metrics["evaluation/r_acc"] == pytest.approx(metrics["overall"]["r_acc"])
    assert run.data.metrics["throughput/larger/masks_per_s"] > 0
    assert run.data.tags["weights_sha256"] == metrics["measured_with"]["weights_sha256"]
    pictures = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "report")}
    assert pictures >= {"index.html", "worst_masks.png", "iou_area.png"}


@pytest.mark.long
def test_a_run_that_is_killed_in_each_corpus_and_repeated_gives_the_same_numbers(home, measured, specs):
    out, log = home / "killed", home / "killed.log"
    for name, stop_at in (("shapes", 4), ("larger", 1)):
        with job("evaluate_tokenizer", *flags(home, out, *specs), log=log) as running:
            running.until(lambda at=stop_at, name=name: commits(out / name) >= at)
            running.kill()
        assert not (out / "metrics.json").exists()
    done = commits(out / "shapes"), commits(out / "larger")
    assert done[0] == 15 and 1 <= done[1] <= 10
    code, output = run_job("evaluate_tokenizer", *flags(home, out, *specs), log=home / "resumed.log")
    assert code == 0, output[-3000:]
    assert "15 shards, 15 committed" in output and f" 10 shards, {done[1]} committed" in output
    for name in RESULTS:
        assert (out / name).read_bytes() == (measured / name).read_bytes(), name
    code, output = run_job("evaluate_tokenizer", *flags(home, out, *specs), log=home / "again.log")
    assert code == 0 and " 10 shards, 10 committed" in output  # nothing to do, and Ray is not needed
    assert (out / "metrics.json").read_bytes() == (measured / "metrics.json").read_bytes()


@pytest.mark.long
def test_other_settings_are_refused_with_the_difference(home, measured, specs):
    more = flags(home, measured, *specs)
    code, output = run_job(
        "evaluate_tokenizer", *more, "--tokenizer-options.no-box-prompt", log=home / "other_prompt.log"
    )
    assert code == 2 and "box_prompt: planned True, now False" in output


def test_a_dry_run_says_what_each_corpus_holds_and_writes_nothing(home, specs):
    out = home / "dry"
    code, output = run_job("evaluate_tokenizer", *flags(home, out, *specs), "--dry-run", log=home / "dry.log")
    assert code == 0 and f"shapes: {NUM_IMAGES} images" in output and f"larger: {NUM_LARGER} images" in output
    assert not out.exists()


@pytest.mark.long
def test_bad_corpora_end_with_their_exit_code_and_what_to_do(home, tmp_path, specs):
    code, output = run_job(
        "evaluate_tokenizer", *flags(home, tmp_path / "twice", specs[0], specs[0]), log=tmp_path / "twice.log"
    )
    assert code == 2 and "has 'shapes' more than once" in output
    source = home / "shapes/annotations/instances_train.json"
    lost = f"reader=coco,source={source},images={tmp_path / 'no'},limit=6"
    code, output = run_job(
        "evaluate_tokenizer", *flags(home, tmp_path / "lost", lost), log=tmp_path / "lost.log"
    )
    assert code == 3 and "none of the 6 images of coco that were tried is there" in output, output[-2000:]
    assert "Is the folder of images right" in output
    assert not (tmp_path / "lost/metrics.json").exists()


@pytest.mark.long
def test_rejects_are_counted_and_too_many_of_them_fail_the_job_with_its_numbers(home, tmp_path):
    source, out = write_bad_folder(tmp_path / "data"), tmp_path / "out"
    bad = f"reader=coco,source={source},images={source.parent / 'images'},dataset=bad"
    more = ["--max-reject-rate", "0.55"]  # half of the images are bad, and seven of twelve masks
    code, output = run_job("evaluate_tokenizer", *flags(home, out, bad), *more, log=tmp_path / "bad.log")
    assert code == 3 and "58.3% of the masks cannot be used; --max-reject-rate allows 55.0%" in output
    assert "masks     in 12  out 5  rejected 7" in output
    assert json.loads((out / "metrics.json").read_text())["overall"]["masks"] == 5
    assert read_manifest(out / "bad")["totals"]["masks_in"] == 12
