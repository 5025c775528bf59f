"""The tokenization job as real processes on a local folder: results, resume, faults."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import shards
from samtok.model.tokenizer import MaskTokenizer
from samtok.words import parse_words
from tests.bad_folder import IMAGE_REASONS, MASK_REASONS, write_bad_folder
from tests.jobs import NUM_IMAGES, commits, data_digests, flags, job, read_manifest, run_job
from tests.ray_head import RayHead

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


HERE = ("--workers", "0")
"""In the job's own process, without Ray."""


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
    assert manifest["iou"]["count"] == sum(manifest["iou"]["histogram"]) == with_iou


def test_a_finished_corpus_is_left_as_it_is(home, whole):
    before = {path: path.stat().st_mtime_ns for path in (whole / "data").iterdir()}
    code, output = run_job("tokenize_corpus", *flags(home, str(whole)), log=home / "again.log")
    assert code == 0 and "15 shards, 15 committed" in output
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "data").iterdir()}


def test_without_workers_there_is_no_ray_and_the_bytes_are_the_same(home, whole):
    out, nowhere = home / "here", {"RAY_ADDRESS": "127.0.0.1:9"}
    more = flags(home, str(out), *HERE)
    code, output = run_job("tokenize_corpus", *more, log=home / "here.log", env=nowhere)
    assert code == 0, output[-3000:]
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))


@pytest.mark.long
def test_decoders_are_as_many_as_the_first_chunks_say_and_bytes_are_the_same(home, whole):
    out = home / "auto"
    more = flags(home, str(out), "--num-cpus", "4", "--chunk-rows", "1")
    code, output = run_job("tokenize_corpus", *more, log=home / "auto.log")
    assert code == 0, output[-3000:]
    found = re.search(r"decoders: (\d) of at most 3, since per image decoding takes", output)
    assert found and 1 <= int(found[1]) <= 3
    assert re.search(r"^decode +[1-3] +0\.\d+ +\d+%", output, re.M) and "tokenize  " in output
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))


def test_other_settings_are_refused_with_the_difference(home, whole):
    code, output = run_job(
        "tokenize_corpus", *flags(home, str(whole), "--min-area-px", "9"), log=home / "other.log"
    )
    assert code == 2
    assert "min_area_px: planned 1, now 9" in output


def test_a_dry_run_prints_the_plan_and_writes_nothing(home):
    out = home / "dry"
    code, output = run_job("tokenize_corpus", *flags(home, str(out), "--dry-run"), log=home / "dry.log")
    assert code == 0 and f"plan      {NUM_IMAGES} images" in output and "15 shards" in output
    assert not out.exists()


def test_a_driver_killed_twice_is_resumed_to_the_same_bytes(home, whole):
    """Early, and later on; the last run does what is left without Ray."""
    out, log = home / "killed", home / "killed.log"
    for stop_at in (random.randint(0, 3), random.randint(6, 11)):
        with job("tokenize_corpus", *flags(home, str(out)), log=log) as running:
            running.until(lambda at=stop_at: (out / "plan.json").exists() and commits(out) >= at)
            running.kill()
        assert not (out / "_MANIFEST.json").exists()
    done = commits(out)
    (out / "data" / "shard-00003-deadbeef.parquet").write_bytes(b"orphan")  # as a lost race leaves behind
    code, output = run_job("tokenize_corpus", *flags(home, str(out), *HERE), log=home / "resumed.log")
    assert code == 0, output[-3000:]
    assert f"15 shards, {done} committed" in output
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))
    assert len(list((out / "data").glob("shard-*"))) == 15  # the orphan is gone; `.tmp-` may stay


@pytest.mark.long
def test_a_killed_tokenizer_actor_costs_nothing(home, whole):
    out = home / "actor"
    with job("tokenize_corpus", *flags(home, str(out)), log=home / "actor.log") as running:
        for kill_at in (1, 6):
            running.until(lambda at=kill_at: commits(out) >= at)
            actors = running.processes("TokenizeCarefully")
            assert actors, [p.cmdline() for p in running.processes("ray::")]
            actors[0].kill()
        assert running.wait() == 0, running.output()[-3000:]
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))


def test_a_manifest_is_needed_to_read_a_corpus(home):
    from samtok.errors import DataError

    with pytest.raises(DataError, match="is not finished"):
        shards.load_manifest(str(home / "nothing"))


def bad_flags(source: Path, out: Path, home: Path, *more: str) -> list[str]:
    return [
        *("--corpus.reader", "coco", "--corpus.source", str(source)),
        *("--corpus.images", str(source.parent / "images"), "--out", str(out)),
        *("--tokenizer", str(home / "micro"), "--tracking", "off", "--report-images", "0", *more),
    ]


def test_a_folder_of_bad_files_ends_well_unless_the_reject_rate_is_limited(home, tmp_path):
    source, out = write_bad_folder(tmp_path / "data"), tmp_path / "words"
    code, output = run_job(
        "tokenize_corpus",
        *bad_flags(source, out, home, "--max-reject-rate", "1", *HERE),
        log=tmp_path / "bad.log",
    )
    assert code == 0, output[-3000:]
    assert "images    in 10  out 5  rejected 5" in output
    assert "masks     in 12  out 5  rejected 7\nrejected  " in output
    (shard,) = read_manifest(out)["shards"]
    rejects = pq.read_table(out / shard["rejects"]["file"]).to_pylist()
    assert sorted(r["reason"] for r in rejects) == sorted([*IMAGE_REASONS.values(), *MASK_REASONS.values()])

    code, output = run_job(
        "tokenize_corpus",
        *bad_flags(source, out, home, "--max-reject-rate", "0.1", *HERE),
        log=tmp_path / "rate.log",
    )
    assert code == 3
    assert "cannot be used" in output and "--max-reject-rate allows 10.0%" in output


def test_a_wrong_image_folder_fails_and_can_be_set_right(home, tmp_path):
    source, out = write_bad_folder(tmp_path / "data"), tmp_path / "words"
    images = str(source.parent / "images")
    wrong = [
        flag if flag != images else str(tmp_path / "nothing") for flag in bad_flags(source, out, home, *HERE)
    ]
    code, output = run_job("tokenize_corpus", *wrong, log=tmp_path / "wrong.log")
    assert code == 3 and "images of coco that were tried is there" in output
    assert "Is the folder of images right" in output and not list(out.iterdir())


def test_a_store_of_images_that_does_not_answer_is_no_fault_of_the_records(home, tmp_path):
    source = write_bad_folder(tmp_path / "data")
    images = str(source.parent / "images")
    flags = [
        "s3://b/images" if flag == images else flag
        for flag in bad_flags(source, tmp_path / "words", home, *HERE)
    ]
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "SAMTOK_STORAGE_RETRY_S": "1"}
    nowhere |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    code, output = run_job("tokenize_corpus", *flags, log=tmp_path / "worker.log", env=nowhere)
    assert code == 4, output[-3000:]
    assert "StorageError: " in output and "still failing after" in output
    assert "Traceback" not in output[-1000:]


@pytest.mark.long
def test_under_ray_job_submit_the_bytes_are_the_same_and_mlflow_has_config_pictures_and_lineage(
    home, whole, tmp_path
):
    import mlflow

    out, uri = tmp_path / "words", f"sqlite:///{tmp_path}/mlflow.db"
    command = flags(home, str(out), "--tracking", uri, "--report-images", "4")
    with RayHead(tmp_path) as head:
        code, output = head.submit(["python", "jobs/tokenize_corpus.py", *command])
    assert code == 0, output[-3000:]
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'tokenize_corpus'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["tokenizer"] == str(home / "micro")
    assert run.data.metrics["counts/rows_in"] == NUM_IMAGES
    assert run.data.metrics["codes/level0_used"] >= 1
    assert 0 < run.data.metrics["iou/mean"] < 1
    assert run.data.metrics["throughput/masks_per_s"] > 0
    assert run.data.tags["fingerprint"] == shards.digest(read_manifest(out)["fingerprint"])
    pictures = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "report")}
    assert pictures >= {"index.html", "contact_sheet.png", "iou_histogram.png", "code_usage.png"}

    code, output = run_job("tokenize_corpus", *command, log=tmp_path / "log")  # resumes the same run
    assert code == 0 and len(client.search_runs([experiment.experiment_id])) == 1
