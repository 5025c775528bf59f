"""The report of a corpus of words and its browser: numbers, pictures, untrusted text, unfinished corpora."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import rejects, schema, shards
from pipelines.reports import pictures as report_pictures
from pipelines.reports import words as report
from pipelines.reports import words_page
from pipelines.tools import browse
from samtok.errors import ConfigError, DataError
from samtok.model.tokenizer import MaskTokenizer
from tests import corpora
from tests.code_rows import code_mask, code_row, write_words
from tests.pages import Page

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

HOSTILE = "<script>alert('x')</script> & \"<img src=//evil>\""
NUM_IMAGES = 10


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tokenizer and a dataset: crowds, one broken image, hostile category names."""
    home = tmp_path_factory.mktemp("report")
    corpora.save_micro_tokenizer(home / "tokenizer")
    corpora.write_shapes(home / "shapes", num_images=NUM_IMAGES, crowd_share=0.2)
    annotations = home / "shapes" / "annotations" / "instances_train.json"
    body = json.loads(annotations.read_text())
    for category in body["categories"]:
        category["name"] = HOSTILE
    annotations.write_text(json.dumps(body))
    (home / "shapes" / "train" / "000000000003.png").write_bytes(b"not a picture")
    return home


def reader(home):
    return corpora.CocoReader(
        name="shapes",
        split="train",
        source=str(home / "shapes" / "annotations" / "instances_train.json"),
        images=str(home / "shapes" / "train"),
    )


def make(home, name, **options):
    return corpora.make_corpus(str(home / name), reader(home), str(home / "tokenizer"), **options)


@pytest.fixture(scope="module")
def tokenizer(home):
    return MaskTokenizer.from_pretrained(str(home / "tokenizer"))


@pytest.fixture(scope="module")
def finished(home):
    entry = schema.reject("read", "shapes", "77", "bad_json", f"broken side-car {HOSTILE}")
    return make(home, "finished", plan_rejects=(entry,))


@pytest.fixture(scope="module")
def page(finished, tokenizer):
    words_page.write_report(finished, tokenizer=tokenizer)
    return Page((Path(finished) / "report" / "index.html").read_text())


def rows_of(out):
    files = [record["data"]["file"] for record in shards.load_manifest(out)["shards"]]
    return [row for name in files for row in pq.read_table(Path(out) / name).to_pylist()]


def test_the_page_needs_nothing_outside_of_it(page):
    linked = [value for name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert linked
    assert all(value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for value in linked)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(picture.width > 100 for picture in page.pictures())


def test_texts_of_the_dataset_are_shown_and_never_obeyed(page):
    assert "<script>alert('x')</script> & \"<img src=//evil>\"" in page.text
    assert f"broken side-car {HOSTILE}" in page.text
    assert all("evil" not in value for name, value in page.attributes)


def test_the_worst_masks_are_those_of_the_whole_corpus(finished, tokenizer):
    """One image is drawn; the lowest IoUs are those of all images, as they are recorded."""
    corpus = report.load_corpus(finished)
    rows = rows_of(finished)
    scored = sorted((mask["iou"], row["image_id"], mask["mask_id"]) for row in rows for mask in row["masks"])
    lowest = report_pictures.rows_of_worst(finished, corpus.records, 8)
    found = [(mask["iou"], row["image_id"], mask["mask_id"]) for row in lowest for mask in row["masks"]]
    assert sorted(found) == scored[:8] and len({image for _, image, _ in found}) > 1

    page = Page(words_page.make_report(corpus, tokenizer=tokenizer, max_images=1).page)
    assert "The lowest IoUs of all that were compared" in page.text
    shown = re.findall(r"IoU (\d\.\d\d) ", page.text)[:8]
    assert [float(iou) for iou in shown] == [pytest.approx(iou, abs=0.006) for iou, _, _ in scored[:8]]


def test_the_report_folder_holds_page_and_pictures(finished, page):
    folder = Path(finished) / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        "code_usage.png",
        "contact_sheet.png",
        "index.html",
        "iou_histogram.png",
    ]
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * report_pictures.SHEET_SIDE


def test_counts_on_the_page_add_up(finished, page):
    totals = shards.load_manifest(finished)["totals"]
    assert totals["rows_in"] == NUM_IMAGES + 1
    assert totals["masks_filtered"] > 0
    assert f"images {totals['rows_in']} = {totals['rows_out']} + 2" in page.text
    assert page.text.count("adds up") == 2
    assert "does not add up" not in page.text


def test_counts_that_do_not_add_up_are_told(finished):
    corpus = report.load_corpus(finished)
    totals = {**corpus.manifest["totals"]}
    totals["masks_in"] += 3
    wrong = report.Corpus(finished, {**corpus.manifest, "totals": totals}, (), None)
    text = Page(words_page.make_report(wrong, tokenizer=None, max_images=0).page).text
    assert "does not add up: +3 unaccounted for" in text


def test_summary_agrees_with_the_rows(finished):
    found = [mask for row in rows_of(finished) for mask in row["masks"]]
    metrics = report.summary(shards.load_manifest(finished))
    ious = np.array([mask["iou"] for mask in found])
    assert metrics["counts/masks_out"] == metrics["iou/count"] == len(found) > 10
    assert metrics["iou/mean"] == pytest.approx(ious.mean(), abs=1e-6)
    assert metrics["iou/share_below_half"] == pytest.approx((ious < 0.5).mean())
    assert metrics["iou/median"] == pytest.approx(np.median(ious), abs=0.05)
    for level in range(2):
        counts = np.bincount([mask["codes"][level] for mask in found], minlength=64)
        share = counts[counts > 0] / counts.sum()
        assert metrics[f"codes/level{level}_used"] == len(share)
        assert metrics[f"codes/level{level}_dead"] == 64 - len(share)
        assert metrics[f"codes/level{level}_perplexity"] == pytest.approx(
            np.exp(-(share * np.log(share)).sum())
        )
    assert metrics["rejects/decode/image_format"] == 1
    assert metrics["rejects/plan"] == 1
    assert all(isinstance(value, int | float) for value in metrics.values())


def record(iou_histogram=(0,) * 20, iou_sum=0.0, codes=((), ())):
    counts = dict.fromkeys(
        ("rows_in", "rows_out", "rows_rejected", "masks_in", "masks_out", "masks_rejected", "masks_filtered"),
        0,
    )
    return {
        "counts": counts,
        "data": {"bytes": 10},
        "code_histogram": [list(level) for level in codes],
        "iou_histogram": list(iou_histogram),
        "iou_sum": iou_sum,
        "iou_count": sum(iou_histogram),
        "reject_reasons": {},
    }


def manifest(*records):
    codes, iou = np.zeros((2, 4), np.int64), {"histogram": [], "sum": 0.0, "count": 0}
    for one in records:
        shards.add_sums(codes, iou, one)
    return {
        "fingerprint": {"num_codes": 4, "num_levels": 2},
        "totals": {"rows_in": 0},
        "code_histogram": codes.tolist(),
        "iou": iou,
        "shards": [shards.slim(one) for one in records],
        "plan_rejects": None,
    }


def bins(**counts):
    return [counts.get(f"b{index}", 0) for index in range(20)]


@pytest.mark.parametrize(
    ("histograms", "median", "below"),
    [
        ([bins(b19=4)], 0.975, 0.0),
        ([bins(b0=1), bins(b19=3)], 0.95 + 0.05 / 3, 0.25),
        ([bins(b9=2, b10=2)], 0.5, 0.5),
        ([bins(b0=1, b10=2, b19=1)], 0.525, 0.25),
    ],
)
def test_median_and_share_come_from_the_added_histograms(histograms, median, below):
    metrics = report.summary(manifest(*[record(histogram) for histogram in histograms]))
    assert metrics["iou/median"] == pytest.approx(median)
    assert metrics["iou/share_below_half"] == pytest.approx(below)


def test_codes_of_all_shards_are_added():
    metrics = report.summary(
        manifest(record(codes=([[1, 3]], [[0, 1]])), record(codes=([[1, 1]], [[0, 1], [3, 2]])))
    )
    assert metrics["codes/level0_used"] == 1
    assert metrics["codes/level0_perplexity"] == pytest.approx(1.0)
    assert metrics["codes/level1_perplexity"] == pytest.approx(2.0)


def test_a_corpus_without_comparisons_has_no_iou_metrics():
    assert not [name for name in report.summary(manifest(record())) if name.startswith("iou")]


def test_rejects_are_counted_by_reason_with_an_example(finished):
    found = rejects.of_corpus(finished, shards.load_manifest(finished))
    lines = {f"{line.stage}/{line.reason}": line for line in found}
    assert lines["decode/image_format"].count == 1
    assert "000000000003.png" in lines["decode/image_format"].example
    assert lines["read/bad_json"].example.startswith("broken side-car")
    assert lines["filter/crowd"].count == shards.load_manifest(finished)["totals"]["masks_filtered"]


def test_flags_of_masks_are_counted_over_all_shards_and_have_a_table(tmp_path):
    given = [["occluded"], ["occluded", "crowd"], [], ["from_prompt"], ["occluded"]]
    rows = [
        code_row([code_mask("m", (0, 1), flags=flags), code_mask("n", (1, 1))], [], image_id=str(number))
        for number, flags in enumerate(given)
    ]
    corpus = report.load_corpus(write_words(str(tmp_path / "a"), rows, shard_rows=2))
    assert corpus.manifest["flags"] == {"crowd": 1, "from_prompt": 1, "occluded": 3}
    assert all("flags" not in record for record in corpus.records)
    assert report.summary(corpus.manifest)["flags/occluded"] == 3
    page = words_page.make_report(corpus, tokenizer=None, max_images=0).page
    assert re.search(r"Flags of masks.*occluded.*>3<.*>30\.", page, re.DOTALL)
    for row in rows:
        row["masks"] = row["masks"][1:]
    plain = report.load_corpus(write_words(str(tmp_path / "b"), rows))
    assert "flags" not in plain.manifest and not any(
        "flags/" in name for name in report.summary(plain.manifest)
    )
    assert "Flags of masks" not in words_page.make_report(plain, tokenizer=None, max_images=0).page


def test_the_same_seed_gives_the_same_page_and_another_one_other_images(finished, tokenizer):
    corpus = report.load_corpus(finished)
    first, again, other = (
        words_page.make_report(corpus, tokenizer=tokenizer, max_images=3, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.page != other.page


def test_all_rows_are_drawn_once_if_there_are_few(finished):
    corpus = report.load_corpus(finished)
    drawn = report_pictures.draw_rows(finished, corpus.records, 99, np.random.default_rng(0))
    expected = [row["image_id"] for row in rows_of(finished)]
    assert [row["image_id"] for row in drawn] == expected
    assert len(expected) == NUM_IMAGES - 1


def test_every_row_is_drawn_equally_often(finished):
    records = report.load_corpus(finished).records
    rng = np.random.default_rng(0)
    drawn = [
        row["image_id"] for _ in range(300) for row in report_pictures.draw_rows(finished, records, 1, rng)
    ]
    _, counts = np.unique(drawn, return_counts=True)
    assert len(counts) == NUM_IMAGES - 1
    assert counts.min() > 15
    assert counts.max() < 60


def test_an_unfinished_corpus_says_what_is_missing(home, tokenizer):
    out = make(home, "unfinished", only_shards=(1,))
    corpus = report.load_corpus(out)
    assert corpus.missing == (0, 2)
    assert corpus.num_planned == NUM_IMAGES
    assert corpus.manifest["totals"]["rows_in"] == 4
    text = Page(words_page.make_report(corpus, tokenizer=tokenizer).page).text
    assert "1 of 3 shards are committed; without a commit record: 0, 2." in text
    assert "The plan has 10 images." in text


def test_a_corpus_that_is_only_planned_has_a_report_too(home, tokenizer):
    out = make(home, "planned", only_shards=())
    text = Page(words_page.write_report(out, tokenizer=tokenizer).page).text
    assert "0 of 3 shards are committed" in text
    assert "0 images drawn at random" in text


def test_a_finished_corpus_is_not_called_unfinished(page):
    assert "Unfinished" not in page.text


def test_a_folder_without_a_corpus_is_refused(tmp_path):
    with pytest.raises(DataError, match="no corpus of words: it has neither _MANIFEST.json nor plan.json"):
        report.load_corpus(str(tmp_path))


def test_a_tokenizer_with_other_codebooks_is_refused(home, tokenizer):
    out = make(home, "other_codes", only_shards=(), num_codes=65)
    with pytest.raises(ConfigError, match="2 codes of 65 each, the given tokenizer makes 2 of 64"):
        words_page.write_report(out, tokenizer=tokenizer)


def test_another_tokenizer_of_the_same_kind_is_noticed(home, finished, page):
    other = MaskTokenizer.from_pretrained(corpora.save_micro_tokenizer(home / "other", seed=9))
    made = words_page.make_report(report.load_corpus(finished), tokenizer=other)
    assert "recorded IoUs are not those of the pictures" in Page(made.page).text
    assert "recorded IoUs" not in page.text
    assert made.agreement is not None and made.agreement.equal < 0.5


def test_words_are_compared_with_those_that_float32_gives(home, finished, tokenizer, page):
    found = words_page.make_report(report.load_corpus(finished), tokenizer=tokenizer).agreement
    assert found is not None and found.masks > 20
    assert found.equal == 1 and found.by_level == (1, 1)
    assert "of drawn masks with the words of float32" in page.text
    assert words_page.make_report(report.load_corpus(finished), tokenizer=None).agreement is None


def test_images_that_are_gone_keep_their_words_and_say_why(home, tokenizer, tmp_path):
    out = make(home, "gone", only_shards=(0,))
    corpus = report.load_corpus(out)
    (row,) = report_pictures.draw_rows(out, corpus.records, 1, np.random.default_rng(0))
    row["image_uri"] = str(tmp_path / "gone.png")
    gallery = report_pictures.make_gallery([row], tokenizer, threshold=0.0, rng=np.random.default_rng(0))
    (card,) = gallery.cards
    assert "gone.png" in (card.problem or "")
    assert [line.words for line in card.lines] == [mask["words"] for mask in row["masks"]]
    assert not card.pictures
    assert not gallery.panels


@pytest.fixture(autouse=True)
def logging_as_before():
    """``browse`` sets up logging for its process; other tests of this one must not notice."""
    loggers = [logging.getLogger(name) for name in ("pipelines", "samtok")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers


def run_browse(capsys, *flags):
    code = browse.main(list(flags))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_browse_prints_a_table_and_writes_the_page(finished, capsys):
    code, out, _ = run_browse(capsys, finished, "--images", "2")
    assert code == 0
    assert "shards    3, all committed" in out
    assert re.search(r"images    11 in = 9 out \+ 2 rejected\n", out)
    assert re.search(r"masks     \d+ in = \d+ out \+ \d+ rejected \+ \d+ filtered\n", out)
    assert "1  decode/image_format" in out
    assert "    codes: list of int32" in out
    assert f"page      {finished}/report/index.html" in out


def test_browse_shows_missing_commits_and_writes_where_it_is_told(home, tmp_path, capsys):
    out = make(home, "browsed", only_shards=(2,))
    target = tmp_path / "page.html"
    code, printed, _ = run_browse(
        capsys, out, "--images", "1", "--tokenizer", "none", "--output", str(target)
    )
    assert code == 0
    assert "1 of 3 committed; UNFINISHED, 2 missing: 0, 1" in printed
    assert "only original masks are shown" in target.read_text()
    assert not (Path(out) / "report").exists()


def test_browse_does_not_obey_control_characters_of_messages(home, capsys):
    entry = schema.reject("read", "shapes", "1", "bad_json", "\x1b[2Jgone")
    out = make(home, "controls", only_shards=(), plan_rejects=(entry,))
    _, printed, _ = run_browse(capsys, out, "--images", "0")
    assert "\x1b" not in printed
    assert "?[2Jgone" in printed


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["{home}/nowhere"], 3, "DataError: .*nowhere is no corpus of words"),
        (["{home}/finished", "--tokenizer", "{home}/nowhere"], 6, "CheckpointError: there is no .*nowhere"),
        (["{home}/finished", "--images", "-1"], 2, "ConfigError: --images and --seed must be >= 0"),
        (["ftp://host/x"], 2, "ConfigError: .*ftp:// is unknown"),
    ],
)
def test_browse_ends_with_one_clear_line_and_the_code_of_the_error(
    home, finished, capsys, flags, code, message
):
    got, _, err = run_browse(capsys, *[flag.format(home=home) for flag in flags])
    assert got == code
    assert re.search(message, err)
    assert "Traceback" not in err
    assert "The corpus names" not in err


def test_browse_says_how_to_name_a_tokenizer_that_moved(home, capsys):
    out = make(home, "moved", only_shards=(), tokenizer=str(home / "gone"))
    code, _, err = run_browse(capsys, out)
    assert code == 6
    assert "--tokenizer URI" in err


def test_a_corpus_in_s3_is_browsed_where_it_is(home, bucket, capsys):
    out = corpora.make_corpus(f"{bucket}/words", reader(home), str(home / "tokenizer"))
    code, printed, _ = run_browse(capsys, out, "--images", "2")
    assert code == 0
    assert f"page      {bucket}/words/report/index.html" in printed


def test_browse_looks_at_a_corpus_whose_iou_was_not_taken(home, tokenizer, capsys):
    out = make(home, "no_iou", policy={"reconstruct": 0.0}, shard_rows=10)
    code, printed, _ = run_browse(capsys, out, "--images", "1")
    assert code == 0
    assert "IoU" not in printed
    assert not (Path(out) / "report" / "iou_histogram.png").exists()
