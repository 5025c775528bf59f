"""Finished evaluations beside each other: what is printed, what stands in one table, what is refused."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.mllm_evaluation.rows import ANSWER_ROW
from pipelines.mllm_evaluation.scores import metrics_of
from pipelines.tools.board.numbers import Options, columns_of, measure
from pipelines.tools.board.runs import groups_of, read_runs
from pipelines.tools.compare import main
from samtok.errors import ConfigError, DataError
from samtok.metrics.intervals import interval
from samtok.metrics.referring import MODES
from samtok.metrics.text_masks import Reading
from tests.finished_evaluations import (
    KINDS,
    Asked,
    change_json,
    rows_of,
    write_answers,
    write_evaluation,
    write_json,
)

ASKED = Asked(num_images=8, lost=1)
MANY = Asked(num_images=16)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two models on the same questions, and one of them on others."""
    home = tmp_path_factory.mktemp("evaluations")
    write_evaluation(home / "weak", ASKED, skill=0.3, seed=1)
    write_evaluation(home / "strong", ASKED, skill=0.9, seed=2, precision="bfloat16")
    write_evaluation(home / "elsewhere", Asked(seed=7), skill=0.9, seed=2)
    write_evaluation(home / "boxes", Asked(benchmark="rec"), skill=0.9, seed=2)
    return home


def printed(capsys, *flags) -> tuple[int, str]:
    code = main([str(flag) for flag in flags])
    out, error = capsys.readouterr()
    return code, out + error


def row(text: str, title: str, name: str) -> str:
    """Returns a line of a table."""
    table = text.partition(f"\n{title}\n")[2].partition("\n\n")[0]
    (line,) = [line for line in table.splitlines() if line.startswith(f"{name} ")]
    return line


def measured(*runs, **options):
    return [measure(group, Options(**options)) for group in groups_of(read_runs([str(run) for run in runs]))]


# ---------------------------------------------------------------- numbers


def test_a_table_has_the_numbers_of_metrics_json_with_intervals(home, capsys):
    code, text = printed(capsys, home / "weak", home / "strong")
    assert code == 0
    for name in ("weak", "strong"):
        model = json.loads((home / name / "metrics.json").read_text())["modes"]["strict"]["model"]
        line = row(text, "Numbers", name)
        values = [float(value) for value in re.findall(r"([\d.]+) \[", line)]
        gres = [model["gres"][key] for key in ("giou", "ciou", "n_acc", "t_acc")]
        assert values == [round(100 * number, 2) for number in (model["targets"]["mean_iou"], *gres)]
        for value, low, high in re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", line):
            assert float(low) <= float(value) <= float(high)
    assert row(text, "Numbers", "always No target.").split()[-4:] == ["33.33", "0.00", "100.00", "0.00"]
    assert "24 questions about 8 images of toy val, scored strict" in text


def test_intervals_are_those_of_images_with_their_questions(home):
    (found,) = measured(home / "strong", resamples=300, seed=4)
    rows = rows_of(ASKED, skill=0.9, seed=2)
    images = sorted({row["image_id"] for row in rows})
    right = np.zeros((len(images), 2))
    for one in rows:
        if one["target_px"]:
            hit = one["strict"] is not None and one["strict"]["predicted_px"] > 0
            right[images.index(one["image_id"])] += (hit, 1)
    assert found.whole.numbers["strong"]["gres/t_acc"] == interval(right, resamples=300, seed=4)


@pytest.mark.parametrize("benchmark", ["gres", "res", "rec"])
@pytest.mark.parametrize("mode", MODES)
def test_terms_give_what_the_evaluation_itself_computes(tmp_path, benchmark, mode):
    asked = Asked(benchmark=benchmark, num_images=6, lost=1)
    rows = rows_of(asked, skill=0.6, seed=3)
    write_evaluation(tmp_path, asked, skill=0.6, seed=3)
    readings = {one: Reading.of(one, several=benchmark == "gres") for one in MODES}
    change_json(tmp_path, "metrics.json", **metrics_of(rows, benchmark=benchmark, readings=readings))
    (found,) = measured(tmp_path, mode=mode, slices=True)
    assert not found.differing and not found.unsure
    assert [part.name for part in found.slices] == sorted(KINDS)
    numbers = found.whole.numbers[tmp_path.name]
    assert all(number.low is not None for number in numbers.values()) and len(numbers) >= 6


@pytest.mark.parametrize("mode", MODES)
def test_rounds_and_kinds_of_targets_have_intervals(tmp_path, mode):
    asked = Asked(benchmark="res", num_images=6, lost=1)
    names = dict(zip(KINDS, ("stuff", "part", "multi-object"), strict=True))
    rows = [
        {**one, "round": 1 + KINDS.index(one["tags"][0]), "tags": [names[one["tags"][0]]]}
        for one in rows_of(asked, skill=0.6, seed=3)
    ]
    rows[0]["tags"] = []  # of no kind
    for benchmark, several in (("rounds", False), ("groundingsuite", True)):
        folder = write_evaluation(tmp_path / benchmark, asked, skill=0.6, seed=3)
        write_answers(folder, rows, per_shard=9)
        readings = {one: Reading.of(one, several=several) for one in MODES}
        change_json(folder, "metrics.json", **metrics_of(rows, benchmark=benchmark, readings=readings))
        (found,) = measured(folder, mode=mode)
        assert not found.differing
        numbers = found.whole.numbers[benchmark]
        keys = [key for key in numbers if key.startswith(f"{benchmark}/")]
        assert len(keys) >= 3 and all(numbers[key].low is not None for key in keys if numbers[key].value)


def test_a_difference_is_paired_and_tells_how_often_it_is_above_zero(tmp_path, capsys):
    for name, skill in (("a", 0.5), ("b", 0.5), ("c", 0.95)):
        write_evaluation(tmp_path / name, MANY, skill=skill, seed=1 if name != "c" else 2)
    code, text = printed(capsys, *(tmp_path / name for name in "abc"))
    assert code == 0
    assert re.split(r"  +", row(text, "Minus a", "b"))[1:] == ["+0.00 [+0.00, +0.00] 0.0%"] * 5
    changes = re.findall(r"([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\] ([\d.]+)%", row(text, "Minus a", "c"))
    assert len(changes) == 5 and all(float(low) > 0 and above == "100.0" for _, low, _, above in changes)
    apart = [measured(tmp_path / name)[0].whole.numbers[name]["gres/giou"].value for name in "ca"]
    assert float(changes[1][0]) == pytest.approx(100 * (apart[0] - apart[1]), abs=0.006)


def test_the_baseline_is_the_first_run_or_one_of_them_by_name_or_folder(home, capsys):
    for wanted in ("strong", f"{home}/strong/"):
        _, text = printed(capsys, home / "weak", home / "strong", "--baseline", wanted)
        assert "\nMinus strong\n" in text and row(text, "Minus strong", "weak")
    assert "\nMinus weak\n" in printed(capsys, home / "weak", home / "strong")[1]
    assert "Minus" not in printed(capsys, home / "weak")[1]
    code, text = printed(capsys, home / "weak", home / "strong", "--baseline", "best")
    assert code == 2 and "--baseline best is none of the runs: weak, strong." in text


def test_seeds_and_resamples_decide_the_intervals(home, capsys):
    runs = [
        printed(capsys, home / "weak", "--seed", seed, "--resamples", number)[1]
        for seed, number in ((0, 50), (0, 50), (1, 50), (0, 60))
    ]
    lines = [row(text, "Numbers", "weak") for text in runs]
    assert lines[0] == lines[1] and len(set(lines)) == 3


def test_slices_are_a_table_of_their_own(home, capsys):
    assert "By tag" not in printed(capsys, home / "weak", home / "strong")[1]
    _, text = printed(capsys, home / "weak", home / "strong", "--slices")
    table = text.partition("\nBy tag\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        [tag, run, "8"] for tag in ("none", "one", "several") for run in ("weak", "strong")
    ]
    of_tag = json.loads((home / "weak" / "metrics.json").read_text())["modes"]["strict"]["model"]["by_tag"]
    assert f"{100 * of_tag['one']['gres']['giou']:.2f} [" in table[3]


def test_counts_and_settings_that_differ_are_told(home, tmp_path, capsys):
    _, text = printed(capsys, home / "weak", home / "strong")
    assert row(text, "Counts", "weak").split() == ["weak", "24", "21", "3"]
    assert row(text, "Settings that differ", "precision").split() == ["precision", "float32", "bfloat16"]
    assert "seed" not in text.partition("Settings that differ")[2]
    write_evaluation(tmp_path / "a", ASKED)
    change_json(tmp_path / "a", "metrics.json", lost={"no_rle": 2, "broken": 3})
    _, text = printed(capsys, tmp_path / "a")
    assert row(text, "Counts", "a").split() == ["a", "24", "21", "3", "5"] and "lost" in text
    change_json(tmp_path / "a", "metrics.json", counts={"expected": 29, "scored": 21, "skipped": 8})
    assert row(printed(capsys, tmp_path / "a")[1], "Counts", "a").split() == ["a", "29", "21", "8", "5"]
    change_json(tmp_path / "a", "metrics.json", counts={"expected": 24, "scored": 20, "skipped": 3})
    assert "The counts of a do not add up." in printed(capsys, tmp_path / "a")[1]


def test_a_number_that_answers_do_not_give_has_no_interval(home, tmp_path, capsys):
    write_evaluation(tmp_path / "a", ASKED)
    body = json.loads((tmp_path / "a" / "metrics.json").read_text())
    body["modes"]["strict"]["model"]["gres"]["giou"] = 0.99
    write_json(tmp_path / "a", "metrics.json", body)
    _, text = printed(capsys, tmp_path / "a")
    assert "99.00  " in row(text, "Numbers", "a") and row(text, "Numbers", "a").count("[") == 4
    assert "No interval where answers do not give the number of metrics.json: a, gres/giou: 0.99" in text


def test_other_benchmarks_have_numbers_without_intervals(tmp_path, capsys):
    write_evaluation(tmp_path / "a", ASKED)
    section = {"gcg": {"miou": 0.5, "cider": 2.25, "num": 3, "deep": {"new_one": 0.25}}, "counts": {}}
    modes = {"strict": {"model": {**section, "by_tag": {}}, "no_target": None}}
    change_json(tmp_path / "a", "metrics.json", benchmark="gcg", modes=modes)
    code, text = printed(capsys, tmp_path / "a", "--slices")
    assert code == 0 and "gcg: Grounded conversation generation" in text
    assert row(text, "Numbers", "a").split() == ["a", "225.00", "50.00", "25.00"]
    assert "CIDEr   mIoU  deep new one" in text
    assert (
        "Without intervals, since rows of answers do not say what each adds: CIDEr, mIoU, deep new one."
        in text
    )
    assert "SAMTok Qwen2.5-VL-3B, RL" in text and "52.50" in text


def test_columns_are_those_of_the_benchmark_and_then_all_others():
    section = {
        "words": {"exact_match": 0.1},
        "res": {"new": 0.2, "miou": None, "num": 7},
        "by_tag": {"t": {"x": 0.5}},
    }
    found = [(column.key, column.metric.name, column.headline) for column in columns_of("res", [section])]
    assert found == [
        ("res/miou", "mIoU", True),
        ("res/new", "new", True),
        ("words/exact_match", "exact words", False),
    ]
    assert [column.headline for column in columns_of("other", [{"words": {"exact_match": 0.1}}])] == [True]


def test_intervals_of_few_images_come_with_a_warning(tmp_path, home, capsys):
    assert "Intervals of only 8 images are too narrow" in printed(capsys, home / "weak")[1]
    write_evaluation(tmp_path / "a", Asked(num_images=30))
    assert "too narrow" not in printed(capsys, tmp_path / "a")[1]


# ---------------------------------------------------------------- what stands in one table


def test_runs_over_other_questions_stand_in_tables_of_their_own(home, capsys):
    code, text = printed(capsys, home / "weak", f"strong={home}/elsewhere", "--baseline", "weak")
    assert code == 0 and text.count("\nNumbers\n") == 2 and "Minus" not in text
    assert "strong answered other questions of gres (other chats): see that table." in text
    assert "weak did not answer these questions, so nothing is held against it here." in text


def test_several_benchmarks_of_one_model_are_listed_and_of_others_refused(home, capsys):
    code, text = printed(capsys, f"ours={home}/strong", f"ours={home}/boxes")
    assert code == 0 and "gres: Generalised" in text and "rec: Referring comprehension" in text
    code, text = printed(capsys, home / "strong", home / "boxes")
    assert code == 2
    assert (
        "no benchmark in common, so nothing can be compared: strong is gres, boxes is rec. Evaluate" in text
    )


def test_runs_of_one_digest_must_have_the_same_questions(home, tmp_path):
    write_evaluation(tmp_path / "a", ASKED)
    changed = rows_of(ASKED, skill=0.5, seed=1)
    changed[0]["sample_id"] = "new"
    write_answers(tmp_path / "a", changed, per_shard=9)
    message = "weak and a state the same digest .* 2 are of one .*toy/val/0/"
    with pytest.raises(DataError, match=message) as error:
        measured(home / "weak", tmp_path / "a")
    assert error.value.reason == "questions"


def test_the_order_of_answers_is_free(home, tmp_path):
    write_evaluation(tmp_path / "weak", ASKED, skill=0.3, seed=1)
    write_answers(tmp_path / "weak", rows_of(ASKED, skill=0.3, seed=1)[::-1], per_shard=5)
    assert measured(tmp_path / "weak")[0].whole == measured(home / "weak")[0].whole


def test_answers_that_are_missing_are_a_fault_of_data(tmp_path, capsys):
    write_evaluation(tmp_path / "a", ASKED)
    write_answers(tmp_path / "a", rows_of(ASKED, skill=0.5, seed=1)[:-3], per_shard=9)
    code, text = printed(capsys, tmp_path / "a")
    assert code == 3 and "has 21 answers, its metrics.json counts 24 questions." in text


def test_answers_without_columns_of_pixels_give_numbers_alone(tmp_path):
    write_evaluation(tmp_path / "a", ASKED)
    kept = [field for field in ANSWER_ROW if field.name not in ("strict", "official", "key")]
    rows = [{field.name: one[field.name] for field in kept} for one in rows_of(ASKED, skill=0.5, seed=1)]
    write_answers(tmp_path / "a", rows, per_shard=9, schema=pa.schema(kept))
    (found,) = measured(tmp_path / "a")
    assert "gIoU" in found.unsure and not found.answers["a"].drawable
    assert found.whole.numbers["a"]["gres/giou"].low is None


# ---------------------------------------------------------------- published numbers


def test_published_numbers_of_other_data_say_so(home, capsys):
    _, text = printed(capsys, home / "strong")
    assert "70.50" in row(text, "Published", "SAMTok Qwen2.5-VL-3B") and "arXiv 2601.16093, table 3" in text
    assert "Published numbers are on other data than toy val, so they do not compare with those above" in text
    assert "[1] the two look swapped in print" in text


@pytest.mark.parametrize(("limit", "mode"), [(None, "strict"), (5, "official")])
def test_published_numbers_of_the_same_data_stand_first(tmp_path, capsys, limit, mode):
    write_evaluation(tmp_path / "a", Asked(dataset="RefCOCO", split="testA", benchmark="res", limit=limit))
    _, text = printed(capsys, tmp_path / "a", "--mode", mode)
    first = text.partition("\nPublished\n")[2].splitlines()[1]
    assert "refcoco testA" in first and "83.90" in first
    assert "Those on RefCOCO testA are on the data that was asked here; the others are not." in text
    assert ("Only the first 5 images were asked" in text) == (limit is not None)
    assert ("which --mode official reproduces" in text) == (mode == "strict")


# ---------------------------------------------------------------- what is refused


def test_a_folder_that_is_no_finished_evaluation_is_named_with_the_remedy(home, tmp_path, capsys):
    code, text = printed(capsys, home / "weak", tmp_path / "nothing")
    assert code == 2 and "nothing is no finished evaluation: it has no metrics.json. Finish jobs/eval" in text
    write_json(tmp_path / "tokenizer", "metrics.json", {"measured_with": {}, "overall": {}, "datasets": {}})
    code, text = printed(capsys, tmp_path / "tokenizer")
    assert code == 2 and "no finished evaluation of an MLLM: its metrics.json has no benchmark." in text
    (tmp_path / "tokenizer" / "metrics.json").write_text("{")
    code, text = printed(capsys, tmp_path / "tokenizer")
    assert code == 2 and "must be a JSON document" in text
    write_evaluation(tmp_path / "a", ASKED)
    (tmp_path / "a" / "_MANIFEST.json").unlink()
    assert printed(capsys, tmp_path / "a")[0] == 3


@pytest.mark.parametrize("entry", ["benchmark", "modes", "measured_with"])
def test_entries_that_metrics_must_have_are_named(tmp_path, entry):
    write_evaluation(tmp_path / "a", ASKED)
    change_json(tmp_path / "a", "metrics.json", **{entry: None})
    with pytest.raises(ConfigError, match=f"its metrics.json has no {entry}"):
        read_runs([str(tmp_path / "a")])


def test_two_runs_of_one_name_and_modes_that_are_missing_are_refused(home, tmp_path, capsys):
    code, text = printed(capsys, home / "weak", f"weak={home}/strong")
    assert code == 2 and "would both be called weak; give each a name, as NAME=RUN." in text
    write_evaluation(tmp_path / "a", ASKED)
    modes = json.loads((tmp_path / "a" / "metrics.json").read_text())["modes"]
    change_json(tmp_path / "a", "metrics.json", modes={"strict": modes["strict"]})
    code, text = printed(capsys, tmp_path / "a", "--mode", "official")
    assert code == 2 and f"--mode official: a ({tmp_path}/a) was not scored so; it has strict." in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--resamples", "0"), "--resamples must be >= 1"),
        (("--seed", "-1"), "--seed and --pictures >= 0, got 1000, -1 and 4."),
        (("--mlflow",), "--mlflow needs --out"),
        (("--mlflow", "--out", "s3://bucket/board"), "Give --mlflow a server's URI"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_read(flags, message, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, text = printed(capsys, "nowhere", *flags)
    assert code == 2 and message in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("runs/a", ("a", "runs/a")),
        ("runs/a/", ("a", "runs/a")),
        ("x=runs/a/", ("x", "runs/a")),
        ("s3://b/runs/a=1", ("a=1", "s3://b/runs/a=1")),
        ("x=s3://b/a=1", ("x", "s3://b/a=1")),
    ],
)
def test_a_run_is_named_or_has_the_name_of_its_folder(text, named, tmp_path, monkeypatch):
    read = {"benchmark": "gres", "modes": {}, "measured_with": {"questions": "0"}}
    monkeypatch.setattr(storage, "exists", lambda uri: True)
    monkeypatch.setattr(storage, "read_json", lambda uri: read)
    (run,) = read_runs([text])
    assert (run.name, run.uri) == named


def test_a_run_without_a_folder_is_refused():
    with pytest.raises(ConfigError, match="'x=' names no folder; give RUN or NAME=RUN"):
        read_runs(["x="])


@pytest.mark.slow
@pytest.mark.numerics
def test_runs_are_read_from_object_storage_too(home, store, capsys):
    for path in (home / "weak").rglob("*"):
        if path.is_file():
            key = path.relative_to(home / "weak")
            storage.write_bytes(f"s3://bucket/runs/weak/{key}", path.read_bytes())
    code, text = printed(capsys, "s3://bucket/runs/weak", home / "strong")
    assert code == 0 and text == printed(capsys, home / "weak", home / "strong")[1]


def test_a_thought_without_an_end_is_no_answer_in_strict_mode(tmp_path):
    asked = Asked(num_images=4)
    rows = [{**row, "unfinished": row["image_id"] == "0"} for row in rows_of(asked, skill=1.0, seed=3)]
    write_evaluation(tmp_path, asked, skill=1.0, seed=3)
    write_answers(tmp_path, rows, per_shard=6)
    readings = {one: Reading.of(one, several=True) for one in MODES}
    change_json(tmp_path, "metrics.json", **metrics_of(rows, benchmark="gres", readings=readings))
    for mode, right in (("strict", 0.75), ("official", 1.0)):
        (found,) = measured(tmp_path, mode=mode)
        assert not found.unsure and found.whole.numbers[tmp_path.name]["gres/giou"].value == pytest.approx(
            right
        )
