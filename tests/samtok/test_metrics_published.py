"""Published numbers name what is known, can be, and say where they stand."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import samtok
from samtok.errors import DataError
from samtok.metrics.published import ROWS, catalogue, parse

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS = {
    *("gres", "res", "rec", "gcg", "psg", "rounds", "groundingsuite", "dlc", "mdvp", "videorefer"),
    *("instances", "tokenizer"),
}

SCORE = {"name": "S", "range": [0, 5], "times": 1}


def _file(**changes) -> str:
    row = {"benchmark": "b", "dataset": "d", "model": "m", "source": "s", "values": {"iou": 50}, **changes}
    body = {
        "benchmarks": {"b": {"title": "B", "metrics": {"iou": "IoU", "score": SCORE}}},
        "sources": {"s": {"title": "S", "arxiv": "1"}},
        "rows": [{key: value for key, value in row.items() if value is not None}],
    }
    return yaml.safe_dump(body)


def test_every_row_names_a_known_benchmark_and_metric_and_can_be():
    found = catalogue()
    assert set(found.benchmarks) == BENCHMARKS == {row.benchmark for row in found.rows}
    for row in found.rows:
        metric = found.benchmarks[row.benchmark].metrics[row.metric]
        assert metric.low <= row.value <= metric.high
        assert row.value * metric.times == pytest.approx(row.printed)
        assert row.model and row.dataset and row.source.title and row.cited


def test_shares_are_printed_times_a_hundred_and_scores_as_they_are():
    found = {(row.benchmark, row.split, row.model, row.metric): row for row in catalogue().rows}
    gres = found["gres", "val", "SAMTok Qwen2.5-VL-3B", "giou"]
    assert (gres.value, gres.printed, gres.cited) == (0.705, 70.5, "arXiv 2601.16093, table 3")
    assert found["videorefer", "test", "SAMTok Qwen3-VL-4B", "subject"].value == 4.48
    assert found["tokenizer", "val", "RQ, 256 codes x 2", "r_acc"].value == 0.70
    assert found["mdvp", "test", "SAMTok Qwen3-VL-4B", "natural"].value == pytest.approx(1.45)
    swapped = found["gres", "testA", "SAMTok Qwen2.5-VL-7B", "n_acc"]
    assert swapped.printed == 77.4 and "swapped" in swapped.note
    assert found["instances", None, "SAMTok-co", "miou"].cited == "InstanceBench"


def test_aggregates_agree_with_their_parts_where_both_are_printed():
    """All of GroundingSuite is the mean over its 3,715 rows, of which 1,011 are stuff and so on."""
    sizes = {"giou_stuff": 1011, "giou_part": 455, "giou_multi": 769, "giou_single": 1480}
    for model in ("SAMTok Qwen2.5-VL-3B", "LISA"):
        values = {row.metric: row.printed for row in catalogue().of("groundingsuite") if row.model == model}
        mean = sum(values[name] * size for name, size in sizes.items()) / sum(sizes.values())
        assert mean == pytest.approx(values["giou"], abs=0.06)
    dlc = {row.metric: row.printed for row in catalogue().of("dlc") if row.model == "SAMTok Qwen3-VL-4B"}
    assert (dlc["positive"] + dlc["negative"]) / 2 == pytest.approx(dlc["average"], abs=0.06)


def test_data_are_the_same_by_their_names_whatever_the_case():
    row = catalogue().of("gres")[0]
    assert row.is_of("grefcoco", "val") and row.is_of("gRefCOCO", "VAL")
    assert not row.is_of("grefcoco", "testA") and not row.is_of("refcoco", "val")
    res = catalogue().of("res")[0]
    assert res.is_of("refcoco", "val") and not res.is_of("refcoco+", "val")
    assert not any(row.is_of("psg", "test") for row in catalogue().of("psg"))  # no split is stated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "c"}, "row 1 .* the benchmark c and the source s; one is not listed"),
        ({"source": "t"}, "row 1 .* the source t; one is not listed"),
        ({"values": {"ap": 1}}, "row 1 .*: b has no metric ap; it has iou, score"),
        ({"values": {"iou": 100.5}}, "row 1 .*: iou of 100.5 cannot be"),
        ({"values": {"score": -0.1}}, "row 1 .*: score of -0.1 cannot be; it is between 0.0 and 5.0 times 1"),
        ({"dataset": None}, "row 1 .* misses or cannot have dataset"),
        ({"value": 3}, "row 1 .* misses or cannot have value"),
    ],
)
def test_a_row_that_cannot_be_is_refused(changes, message):
    assert len(parse(_file()).rows) == 1
    with pytest.raises(DataError, match=message) as error:
        parse(_file(**changes))
    assert error.value.reason == "published"


def test_a_number_that_is_stated_twice_is_refused():
    body = yaml.safe_load(_file())
    body["rows"] *= 2
    with pytest.raises(DataError, match="row 2 .* states iou of m twice"):
        parse(yaml.safe_dump(body))
    body["rows"][1] = {**body["rows"][1], "table": "2"}  # printed again, elsewhere
    assert [row.cited for row in parse(yaml.safe_dump(body)).rows] == ["arXiv 1", "arXiv 1, table 2"]


def test_the_file_is_part_of_the_package_and_loads_without_torch():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = Path(samtok.__file__).parent
    assert ROWS in [path for pattern in data["samtok"] for path in folder.glob(pattern)]
    code = "import sys, samtok.metrics.published as p; p.catalogue(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
