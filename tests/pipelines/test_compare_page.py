"""The page of a board: one file with tables, plots and answers side by side; the board in MLflow."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipelines.reports.answers import draw_beside, iou_of
from pipelines.tools.board import page, pictures
from pipelines.tools.board.numbers import Options, measure
from pipelines.tools.board.runs import groups_of, read_runs
from pipelines.tools.compare import main
from samtok.plots.pictures import AGREED, EXTRA, MISSED
from tests.finished_evaluations import Asked, rows_of, write_evaluation
from tests.pages import Page

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

ASKED = Asked(num_images=6, lost=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two models on the same questions about images that are there, but for the last one."""
    home = tmp_path_factory.mktemp("evaluations")
    write_evaluation(home / "weak", ASKED, skill=0.3, seed=1, images=home / "images")
    write_evaluation(home / "strong", ASKED, skill=0.9, seed=2, images=home / "images")
    return home


def measured(*runs, **options):
    return [measure(group, Options(**options)) for group in groups_of(read_runs([str(run) for run in runs]))]


def test_the_page_has_the_tables_and_pictures_of_both_runs_in_one_file(home, tmp_path, capsys):
    flags = [f"{home}/weak", f"{home}/strong", "--slices", "--pictures", "2", "--out", f"{tmp_path}/board"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert f"page      {tmp_path}/board/index.html" in printed
    text = (tmp_path / "board" / "index.html").read_text()
    found = Page(text)
    for title in ("Numbers", "Minus weak", "Published", "Further numbers", "By tag", "Counts", "Lineage"):
        assert title in found.text, title
    for title in pictures.HEADS.values():
        assert title in found.text, title
    assert all(source.startswith("data:") for source in found.sources()) and "script" not in found.tags
    sizes = [picture.size for picture in found.pictures()]
    assert sizes.count((240, 240)) == 4 * 2 * 3  # best, worst, apart and random: truth and two answers each
    assert len(sizes) == 4 * 2 * 3 + 1  # and the plot
    cells = next(line.split()[1:] for line in printed.splitlines() if line.startswith("strong "))
    assert " ".join(cells) in found.text  # the same texts as on the terminal


def test_names_questions_and_answers_of_others_are_escaped(home):
    (found,) = measured(f"<i>={home}/weak", f"<u>={home}/strong")
    rows = {run: next(iter(rows_of(ASKED, skill=0.5, seed=1))) for run in ("<i>", "<u>")}
    evil = {"question": "<script>x</script>", "generated": "<img src=x>", "truth": "<s>"}
    block = page._answers(draw_beside({run: {**row, **evil} for run, row in rows.items()}), "strict")
    text = page.render([found], num_pictures=0) + block
    assert not {"script", "i", "u", "s"} & set(Page(text).tags)
    assert "<script>x</script>" in Page(text).text and "<i>" in Page(text).text


def test_no_pictures_are_drawn_where_none_are_wanted(home):
    found = measured(home / "weak")
    assert len(Page(page.render(found, num_pictures=0)).pictures()) == 1  # the plot


def test_a_single_run_is_nowhere_apart(home):
    (found,) = measured(home / "weak")
    assert {kind: len(some) for kind, some in pictures.drawn(found, 2).items()} == {
        "best": 2,
        "worst": 2,
        "apart": 0,
        "random": 2,
    }


def test_an_image_that_is_gone_by_now_says_so(tmp_path):
    write_evaluation(tmp_path / "a", Asked(num_images=2))
    text = Page(page.render(measured(tmp_path / "a"), num_pictures=1)).text
    assert "The image cannot be shown" in text


def test_answers_beside_each_other_are_differences_to_one_truth(home):
    row = rows_of(ASKED, skill=0.0, seed=1, images=home / "images")[0]
    assert row["tags"] == ["one"]
    right = {**row, "strict": {**row["strict"], "rle": row["truth_rle"]}}
    lost = {**row, "strict": None}
    found = draw_beside({"right": right, "lost": lost})
    assert [name for name, _ in found.pictures] == ["truth", "right", "lost"] and found.problem is None
    means = [_mean(data) for _, data in found.pictures[1:]]
    near = [[np.abs(mean - colour).max() for colour in (AGREED, MISSED, EXTRA)] for mean in means]
    assert np.argmin(near, axis=1).tolist() == [0, 1]
    assert iou_of(lost) is None and page._scored(lost, "strict") == "not asked"


def _mean(data: bytes) -> np.ndarray:
    """Returns the mean colour of what is not grey."""
    pixels = np.asarray(Image.open(io.BytesIO(data))).reshape(-1, 3).astype(float)
    return pixels[np.ptp(pixels, axis=1) > 60].mean(axis=0)


IOUS = st.integers(1, 3).flatmap(
    lambda runs: arrays.arrays(
        np.float64, (runs, 9), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan")])
    )
)


@given(IOUS, st.lists(st.booleans(), min_size=9, max_size=9), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_best_and_worst_share_none_and_only_what_was_asked_is_drawn(ious, targets, count):
    found = pictures.choose(ious, np.array(targets), count, np.random.default_rng(0))
    asked = set(np.flatnonzero(~np.isnan(ious).all(axis=0)).tolist())
    mean = np.nan_to_num(ious).mean(axis=0)
    best, worst, apart = (found[kind] for kind in ("best", "worst", "apart"))
    assert not set(best) & set(worst) and all(targets[place] for place in (*best, *worst, *apart))
    assert all(set(some) <= asked and len(some) == len(set(some)) <= count for some in found.values())
    assert [mean[place] for place in best] == sorted((mean[place] for place in best), reverse=True)
    assert all(mean[one] >= mean[other] for one in best for other in worst)
    spread = np.ptp(np.nan_to_num(ious), axis=0)
    assert all(spread[place] > 0 for place in apart)
    assert len(found["random"]) == min(count, len(asked))


def test_a_board_is_a_run_with_a_run_below_it_for_each_evaluation(home, database, tmp_path, capsys):
    from mlflow import MlflowClient

    flags = [f"{home}/weak", f"{home}/strong", "--pictures", "0", "--out", f"{tmp_path}/board"]
    flags += ["--resamples", "50", "--mlflow", f"sqlite:///{database}"]
    for _ in range(2):  # the second time continues the same runs
        assert main(flags) == 0
    assert "mlflow    sqlite" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("compare")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"compare board", "weak gres", "strong gres"}
    board, strong = runs["compare board"], runs["strong gres"]
    assert [file.path for file in client.list_artifacts(board.info.run_id)] == ["index.html"]
    assert strong.data.tags["mlflow.parentRunId"] == board.info.run_id and strong.info.status == "FINISHED"
    metrics = json.loads((home / "strong" / "metrics.json").read_text())
    giou = metrics["modes"]["strict"]["model"]["gres"]["giou"]
    assert strong.data.metrics["strict/gres/giou"] == giou
    assert strong.data.metrics["strict/gres/giou/low"] <= giou <= strong.data.metrics["strict/gres/giou/high"]
    assert strong.data.metrics["strict/gres/giou/difference"] > 0
    assert strong.data.params["precision"] == "float32" and strong.data.metrics["counts/expected"] == 18
    (data,) = [one.dataset for one in strong.inputs.dataset_inputs]
    assert (data.name, data.digest) == ("toy val", metrics["measured_with"]["questions"][:36])
    assert json.loads(data.source) == {"uri": "runs/toy"}


def test_a_board_is_tracked_beside_its_folder_where_no_server_is_named(home, monkeypatch):
    from pipelines.tools import compare

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert compare._tracking_of("", "/runs/board") == "sqlite:////runs/mlflow.db"
    assert compare._tracking_of("http://mlflow", "/runs/board") == "http://mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert compare._tracking_of("", "s3://bucket/board") == "http://other"
