"""The page of an evaluation shows numbers beside baselines, and answers as pictures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import shards
from pipelines.config import WorkerConfig
from pipelines.mllm_evaluation import report
from pipelines.mllm_evaluation.answers import read_answers
from pipelines.mllm_evaluation.config import AnswerConfig, EvaluateMllmConfig
from pipelines.mllm_evaluation.prepare import prepare
from pipelines.mllm_evaluation.scores import metrics_of
from pipelines.mllm_evaluation.stage import AnswerQuestions
from tests.mllm_evaluations import World
from tests.pages import Page

pytestmark = [pytest.mark.slow, pytest.mark.numerics]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An evaluation that was done in this process: job, manifest, rows, metrics."""
    world = World(tmp_path_factory.mktemp("world"), 3)
    config = EvaluateMllmConfig(
        benchmark="gres",
        model=world.train(world.home / "taught", steps=40),
        chats=world.chat,
        out=str(world.home / "out"),
        tokenizer=world.tokenizer_uri,
        tracking="off",
        shard_rows=2,
        report_pictures=3,
        generation=AnswerConfig(max_new_tokens=12),
        worker=WorkerConfig(gpus=0.0),
    )
    job = prepare(config)
    plan = job.plan()
    stage = AnswerQuestions(job.config, job.asked, job.readings)
    for shard in range(len(plan.shard_rows)):
        shards.commit(plan, **stage(plan, shard))
    manifest = shards.finish(plan)
    rows = read_answers(job.config.out, manifest)
    return job, manifest, rows, metrics_of(rows, benchmark="gres", readings=job.readings)


def test_the_manifest_counts_images_and_questions(finished):
    _, manifest, rows, _ = finished
    totals = manifest["totals"]
    assert (totals["rows_in"], totals["rows_out"], totals["samples_in"], totals["samples_out"]) == (
        3,
        3,
        12,
        12,
    )
    assert len(rows) == 12 and "truth_rle" not in rows[0] and "rle" not in rows[0]["strict"]


def test_the_page_has_all_numbers_and_pictures_of_its_own(finished):
    job, manifest, rows, metrics = finished
    job = dataclasses.replace(job, beside={"untrained": metrics})
    report.write_report(job, manifest, rows, metrics)
    page_uri = f"{job.config.out}/report/index.html"
    page = Page(Path(page_uri).read_text())
    for words in ("GRES", "Metrics, strict", "Metrics, official", "always No target.", "untrained", "By tag"):
        assert words in page.text, words
    assert "100.00" in page.text and "Please segment both in this image." in page.text
    assert len(page.pictures()) == 9 * 3  # best, worst and random, three pictures each
    assert "script" not in page.tags
    for kind in ("best", "worst", "random"):
        with Image.open(Path(page_uri).parent / f"{kind}.png") as sheet:
            assert sheet.size[0] > 100


def test_texts_of_datasets_and_models_are_escaped(finished):
    job, manifest, _, metrics = finished
    row = next(iter(report.rows_at(job.config.out, manifest, [0]).values()))
    evil = {**row, "question": "<script>x</script>", "generated": "<img src=x>", "tags": ["<i>t</i>"]}
    job = dataclasses.replace(job, beside={"<u>": metrics})
    text = report.render(job, metrics, {"best": [report.draw(evil)]}, [])
    assert not {"script", "i", "u"} & set(Page(text).tags)
    assert "<script>x</script>" in Page(text).text


def test_an_image_that_is_gone_by_now_says_so(finished):
    job, manifest, _, metrics = finished
    row = next(iter(report.rows_at(job.config.out, manifest, [0]).values()))
    drawn = report.draw({**row, "image_uri": "/nowhere/a.png"})
    assert drawn.panel is None and drawn.pictures == ()
    text = report.render(job, metrics, {"worst": [drawn]}, [])
    assert "The image cannot be shown" in Page(text).text


def test_best_and_worst_are_answers_to_targets_and_share_none(finished):
    *_, rows, _ = finished
    chosen = report.choose(rows, 3, np.random.default_rng(0))
    best, worst = ([report.likeness(rows[place]) for place in chosen[kind]] for kind in ("best", "worst"))
    assert min(best) >= max(worst) and best == sorted(best, reverse=True) and worst == sorted(worst)
    assert not set(chosen["best"]) & set(chosen["worst"])
    assert all(rows[place]["target_px"] for kind in ("best", "worst") for place in chosen[kind])
    assert len(chosen["random"]) == 3
    lost = [{**row, "problem": "image_missing"} for row in rows]
    assert report.choose(lost, 3, np.random.default_rng(0)) == {"best": [], "worst": [], "random": []}


def test_whole_rows_are_read_by_their_place(finished):
    job, manifest, rows, _ = finished
    found = report.rows_at(job.config.out, manifest, [11, 0, 8])
    assert {place: row["sample_id"] for place, row in found.items()} == {
        place: rows[place]["sample_id"] for place in (0, 8, 11)
    }
    assert found[0]["strict"]["rle"]
