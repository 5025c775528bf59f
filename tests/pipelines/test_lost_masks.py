"""Nothing vanishes without a word: jobs that lose masks say why, and end with exit code 3 if none is left."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import job, shard_job
from pipelines.ingestion.corpora import CorpusConfig
from pipelines.rejects import Reason
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tokenization.job import tokenize_corpus
from samtok.errors import DataError
from tests import corpora
from tests.readers import build_reader, read_all

HEIGHT, WIDTH = 40, 56
TOKENIZER = ""
SQUARE = [5, 5, 17, 5, 17, 17, 5, 17]
CROWD = {"size": [HEIGHT, WIDTH], "counts": [205, 12, 28, 12, HEIGHT * WIDTH - 257]}


def mark(identity: int, image: int = 1, segmentation: Any = (SQUARE,), **fields: Any) -> dict[str, Any]:
    shape = segmentation if isinstance(segmentation, dict) else list(segmentation)
    return {"id": identity, "image_id": image, "category_id": 1, "segmentation": shape, **fields}


def write(folder: Path, marks: list, *, images: int = 1, **changed: Any) -> Path:
    """Writes a COCO file and its images."""
    (folder / "img").mkdir(parents=True)
    listed = []
    for number in range(1, images + 1):
        Image.new("RGB", (WIDTH, HEIGHT), (5 * number, 90, 0)).save(folder / "img" / f"{number}.png")
        listed.append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
    body = {"images": listed, "annotations": marks, "categories": [{"id": 1, "name": "cat"}], **changed}
    body["images"] = body.pop("images_", listed)
    body = {key: value for key, value in body.items() if value is not None}
    (folder / "ann.json").write_text(json.dumps(body))
    return folder / "ann.json"


def read(folder: Path, marks: list, **changed: Any) -> tuple[list, list]:
    source = write(folder, marks, **changed)
    return read_all(build_reader("coco", source=str(source), images=str(folder / "img")))


@pytest.fixture(scope="module", autouse=True)
def _tokenizer(tmp_path_factory) -> None:
    global TOKENIZER
    TOKENIZER = corpora.save_micro_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def tokenize(folder: Path, marks: list, options: Mapping[str, Any] | None = None, **changed: Any) -> int:
    """Runs the whole job in this process; returns its exit code."""
    source = write(folder, marks, **changed)
    config = TokenizeCorpusConfig(
        corpus=CorpusConfig(reader="coco", source=str(source), images=str(folder / "img")),
        out=str(folder / "words"),
        tokenizer=TOKENIZER,
        workers=0,
        report_images=0,
        tracking="off",
        **(options or {}),
    )
    return tokenize_corpus(config)


OUTSIDE = [number + 100 for number in SQUARE]
SHARES = [0.1, 0.1, 0.4, 0.1, 0.4, 0.4, 0.1, 0.4]


@pytest.mark.parametrize(
    ("marks", "told"),
    [
        ([mark(1, segmentation=CROWD, iscrowd=1), mark(2, iscrowd=1)], "2 filtered; .*2 crowd.*--skip and"),
        ([mark(1, segmentation=[SHARES])], "1 were rejected, .*1 polygon_normalised; .*lie in 0..1"),
        ([], "there are no masks"),
    ],
    ids=["crowds", "shares", "none"],
)
def test_items_that_all_get_lost_end_the_job_with_code_3_and_the_reason(tmp_path, capsys, marks, told):
    assert tokenize(tmp_path, marks) == 3
    assert re.search(told, capsys.readouterr().err)


def test_any_job_ends_with_code_3_if_nothing_came_out():
    for counts in ((0, 0, 0), (4, 0, 0, 4), (4, 0, 4)):
        with pytest.raises(DataError, match="there are no masks|none of the 4 masks could be used"):
            job.Items("masks", *counts).check(1.0, "out", [Reason("filter", "crowd", 4, "it is one")])


def test_the_closing_table_has_the_commonest_reasons_with_counts_and_an_example(tmp_path, capsys):
    marks = [mark(1), mark(2), mark(3, segmentation=[OUTSIDE]), mark(4, segmentation=[OUTSIDE])]
    marks += [mark(5, iscrowd=1), mark(6, segmentation=[[1, 2, 3, 4]]), mark(7, 9), mark(8, iscrowd=5)]
    assert tokenize(tmp_path, marks, {"max_reject_rate": 1.0}) == 0
    printed = capsys.readouterr().out
    assert "masks     in 8  out 2  rejected 5  filtered 1\n" in printed
    assert "rejected  2 polygon_outside: annotation 3 of image 1: the polygons lie outside" in printed
    assert re.search(r"\n          1 iscrowd: annotation 8 of image 1: iscrowd is 5", printed)
    assert re.search(
        r"\n          1 for 1 other reasons\nfiltered  1 crowd: mask 5 of image 1 is marked", printed
    )


def test_more_than_half_filtered_is_a_warning_that_names_the_flags(tmp_path, capsys):
    assert tokenize(tmp_path, [mark(1), mark(2, iscrowd=1), mark(3, iscrowd=1)]) == 0
    told = capsys.readouterr().err
    assert re.search(
        r"WARNING 2 of 3 masks were filtered, more than half; .* 2 crowd.*--skip and --min-area", told
    )


def test_a_share_of_rejects_above_the_limit_ends_a_run_long_before_its_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shard_job, "ENOUGH", 4)
    marks = [mark(number, number, [OUTSIDE]) for number in range(1, 21)]
    assert tokenize(tmp_path, marks, {"shard_rows": 2}, images=20) == 3
    told = capsys.readouterr().err
    assert re.search(
        r"(\d+) of the first \1 masks cannot be used already; .*\1 polygon_outside; for example", told
    )
    assert len(list((tmp_path / "words" / "commits").iterdir())) < 10


def test_a_listing_with_too_many_rejects_ends_before_the_first_shard(tmp_path, capsys):
    listed = [{"id": n, "file_name": "1.png", "height": HEIGHT, "width": WIDTH} for n in (1, 1, 1)]
    listed[1]["height"] = 7
    listed.append({**listed[0], "id": 2})
    assert tokenize(tmp_path, [mark(1, 2)], images_=listed) == 3
    assert "of 4 images cannot be used already" in capsys.readouterr().err
    assert not (tmp_path / "words" / "commits").exists()


# ---------------------------------------------------------------- what the annotations of COCO files lose


@pytest.mark.parametrize(
    ("entry", "changed", "told"),
    [
        ({"id": 1, "image_id": 1, "caption": "a"}, {}, "annotations of captions, which have no masks"),
        ({"image_id": 1, "segments_info": [{"id": 1}]}, {}, "annotations of panoptic maps"),
        (mark(1), {"annotations": None}, r'with \[.*\], expected an object with the lists "images" and'),
    ],
    ids=["captions", "panoptic", "no_annotations"],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(tmp_path, entry, changed, told):
    with pytest.raises(DataError, match=told):
        read(tmp_path, [entry], **changed)


def test_ids_of_annotations_need_to_be_unique_in_their_image_only(tmp_path):
    rows, rejects = read(tmp_path, [mark(1, 1), mark(2, 1), mark(1, 2), mark(2, 2), mark(3, 2)], images=2)
    assert [[mask["mask_id"] for mask in row["masks"]] for row in rows] == [["1", "2"], ["1", "2", "3"]]
    assert rejects == []


def test_of_annotations_that_differ_in_what_nobody_reads_one_is_kept(tmp_path):
    marks = [mark(1, area=144), mark(1, area=144.0001, score=0.5), mark(2), mark(2, iscrowd=1)]
    rows, rejects = read(tmp_path, marks)
    assert [mask["mask_id"] for mask in rows[0]["masks"]] == ["1"]
    assert [(one["mask_id"], one["num_masks"]) for one in rejects] == [("1", 1), ("2", 1), ("2", 1)]


def test_an_unknown_category_is_told_and_the_mask_stays_without_a_label(tmp_path):
    rows, rejects = read(tmp_path, [mark(1), {**mark(2), "category_id": 5}, {**mark(3), "category_id": None}])
    assert [mask["label"] for mask in rows[0]["masks"]] == ["cat", None, None]
    (entry,) = rejects
    assert (entry["reason"], entry["mask_id"], entry["num_masks"]) == ("unknown_category", "2", 0)
    assert "category_id is 5" in entry["message"]
    (tmp_path / "none").mkdir()
    assert read(tmp_path / "none", [mark(1)], categories=[])[1] == []  # no list to be missing from


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ([0, 0, 7, 5], "polygon 2 of 3 adds nothing: it has 4 numbers"),
        ([0, 0, 7, 0, 7, 5, 0], "it has 7 numbers, expected an even number of at least 6"),
        ([], "it has 0 numbers"),
        ([1, 1, 9, 9, 5, 5], "its 3 corners lie on one line"),
    ],
)
def test_parts_of_a_mask_that_add_nothing_are_told_and_the_others_stay(tmp_path, part, told):
    rows, rejects = read(tmp_path, [mark(1, segmentation=[SQUARE, part, [20, 20, 30, 20, 30, 30]])])
    assert len(rows[0]["masks"]) == 1
    (entry,) = rejects
    assert (entry["reason"], entry["mask_id"], entry["num_masks"]) == ("polygon_part", "1", 0)
    assert told in entry["message"]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[0, 0, 1, 0, 1, 1, 0, 1]], None),  # one pixel in the corner
        ([[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]], None),  # less than a pixel: empty, not wrong
        ([[-20, -20, 15, -20, 15, 15, -20, 15]], None),  # partly outside
        ([SHARES, [0.5, 0.5, 1, 0.5, 1, 1]], "polygon_normalised"),
        ([[-20, 5, -9, 5, -9, 15]], "polygon_outside"),
        ([OUTSIDE, SQUARE], None),
    ],
)
def test_only_polygons_that_cannot_be_meant_so_are_refused(tmp_path, segmentation, reason):
    rows, rejects = read(tmp_path, [mark(1, segmentation=segmentation)])
    assert [entry["reason"] for entry in rejects] == ([] if reason is None else [reason])
    assert len(rows[0]["masks"]) == (reason is None)


POINTS = st.one_of(st.floats(-80, 80), st.floats(0, 1), st.integers(-3, 60))
PARTS = st.lists(st.lists(POINTS, max_size=10), min_size=1, max_size=3)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segmentation=PARTS, second=PARTS)
def test_any_polygons_are_kept_or_rejected_once(tmp_path_factory, segmentation, second):
    marks = [mark(1, segmentation=segmentation), mark(1, 2, segmentation=second)]
    rows, rejects = read(tmp_path_factory.mktemp("any"), marks, images=2)
    assert sum(len(row["masks"]) for row in rows) + sum(one["num_masks"] for one in rejects) == 2
