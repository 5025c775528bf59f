"""The report of a codebook sweep: table, plot, trials that did not finish."""

import math

import pytest

from pipelines.sweeps import report
from tests.pages import Page


def trial(kind, codes, levels, iou=None, status="finished", **more):
    row = {
        "name": f"{kind}-{codes}x{levels}",
        "kind": kind,
        "num_codes": codes,
        "num_levels": levels,
        "shared": kind == "rq-shared",
        "grid": [],
        "words": codes * levels,
        "bits_per_mask": levels * math.log2(codes),
        "status": status,
    }
    if iou is not None:
        row |= {"iou": iou, "iou_shuffled": 0.125, "distinct": 1400, "steps": 1200, "seconds": 90.0}
        row |= {f"used_{level}": codes // 2 for level in range(levels)}
        row |= {f"perplexity_{level}": codes / 4 for level in range(levels)}
    return row | more


ROWS = [
    trial("rq", 1024, 2, 0.9, "stopped"),
    trial("rq", 256, 2, 0.8),
    trial("vq", 64, 1, 0.7),
    trial("rq-shared", 256, 2, 0.82),
    trial("fsq", 256, 2, status="failed", grid=[16, 16], error="CheckpointError: <b> damaged"),
]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_ordered_by_bits_and_then_the_best_first():
    lines = report.markdown_table(ROWS).splitlines()
    assert [cells(line)[0].strip("*") for line in lines[2:]] == [
        "vq 64 x 1",
        "rq shared 256 x 2",
        "rq 256 x 2",
        "fsq 256 (16x16) x 2",
        "rq 1024 x 2",
    ]
    assert len({line.count("|") for line in lines}) == 1


def test_a_line_of_the_table_has_all_numbers():
    line = report.markdown_table([trial("rq", 256, 2, 0.8), trial("vq", 4096, 1, 0.9)]).splitlines()[3]
    assert cells(line) == [
        "rq 256 x 2",
        "512",
        "16",
        "0.8000",
        "0.1250",
        "50 / 50",
        "64 / 64",
        "1,400",
        "1,200",
        "1 min 30 s",
        "finished",
    ]


def test_the_best_finished_trial_is_bold():
    bold = [line for line in report.markdown_table(ROWS).splitlines() if "**" in line]
    assert len(bold) == 1
    assert cells(bold[0])[0] == "**rq shared 256 x 2**"


def test_trials_without_numbers_have_dashes():
    line = report.markdown_table(ROWS).splitlines()[5]
    assert cells(line)[3:] == ["-"] * 7 + ["failed"]
    nan = trial("rq", 16, 2, math.nan)
    assert cells(report.markdown_table([nan]).splitlines()[2])[3] == "-"


def test_a_bar_in_a_text_does_not_end_its_cell():
    line = report.markdown_table([trial("rq", 16, 2, 0.5, status="a|b")]).splitlines()[2]
    assert "a\\|b" in line


def test_the_page_has_the_table_the_plot_and_what_went_wrong(tmp_path):
    pictures = report.write_report(str(tmp_path), ROWS, ceiling=0.9375)
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert (tmp_path / "report" / "tradeoff.png").read_bytes() == pictures["tradeoff.png"]
    for said in (
        "3 of 5 trials finished",
        "0.820 best r-Acc: rq shared 256 x 2",
        "0.938 without quantization",
        "6 min 00 s training in all",
        "rq 1024 x 2 2,048 20 0.9000",
        "fsq-256x2 CheckpointError: <b> damaged",
    ):
        assert said in page.text
    assert [picture.format for picture in page.pictures()] == ["PNG"]


@pytest.mark.parametrize("rows", [[], [{}], [{"name": "x", "status": "failed"}], ROWS[4:]])
def test_a_sweep_without_results_has_a_page(tmp_path, rows):
    assert set(report.write_report(str(tmp_path), rows)) == {"tradeoff.png"}
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert f"0 of {len(rows)} trials finished" in page.text
    assert "None" not in page.text


def test_a_sweep_goes_to_its_folder_whatever_is_given(tmp_path):
    first = report.write_report(str(tmp_path / "a"), ROWS)
    again = report.write_report(str(tmp_path / "b"), list(reversed(ROWS)))
    assert (tmp_path / "b" / "report" / "index.html").exists()
    assert set(first) == set(again)
