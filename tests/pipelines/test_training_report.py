"""The report of a training run: its numbers, pictures, missing parts, untrusted text."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from pipelines.reports import html as report_html
from pipelines.tokenizer_training import report
from pipelines.tokenizer_training.sources import Sample
from samtok.masks import RunMask
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots import pictures as viz
from tests.pages import Page

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

HOSTILE = "<script>alert('x')</script>"


def history(num_steps, quantized_from, skipped=()):
    rows = []
    for step in range(num_steps):
        row = {"step": step, "loss": 1.0, "loss_bce": 0.5, "iou": 0.5, "lr": 1e-3, "gradient_norm": 2.0}
        if step >= quantized_from:
            row |= {"loss_commitment": 0.1, "perplexity_0": 9.0, "codes_restarted": 1.0}
        if step in skipped:
            row |= {"loss": math.nan, "gradient_norm": math.inf}
        rows.append(row | {"skipped": float(step in skipped)})
    return rows


def validated(count, best=None):
    return [
        {
            "step": 10 * (place + 1),
            "iou": 0.5 + place / 1000,
            "iou_shuffled": 0.125,
            "below_half": 0.25,
            "masks": 33,
            "quantized": place > 0,
            "perplexity_0": 7.25,
            "perplexity_1": 6.5,
            "best": place == best,
        }
        for place in range(count)
    ]


RECORD = {
    "fingerprint": "f00d",
    "final": {
        "masks": 1641,
        "iou": 0.8125,
        "iou_shuffled": 0.1225,
        "iou_continuous": 0.8735,
        "below_half": 0.0412,
        "distinct": 1599,
        "perplexity_0": 198.2,
        "used_0": 251,
    },
    "best": {"step": 4000, "iou": 0.8375},
    "times": {"training_s": 1234.0, "masks_per_s": 207.3},
    "workers": 2,
    "skipped_steps": 2,
    "rejects": {"rle_sum": 3, HOSTILE: 12},
    "lineage": {"start": {"uri": "s3://m/start.pt", "sha256": None}, "corpora": ["reader=coco", "reader=x"]},
    "versions": {"torch": "9.9"},
}


def written(out, validations=(), **parts):
    given = {"config": {}, "record": {}, "history": [], "sheet": None} | parts
    given["record"] = {**given["record"], "validations": validations}
    pictures = report.write_report(str(out), **given)
    return Page((out / "report" / "index.html").read_text()), pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    sheet = viz.png_bytes(np.full((40, 60, 3), 9, np.uint8))
    out = tmp_path_factory.mktemp("run")
    page, pictures = written(
        out,
        config={"model": "tiny", "note": HOSTILE},
        record=RECORD,
        history=history(60, 30, skipped=(4, 41)),
        validations=validated(100, best=57),
        sheet=sheet,
    )
    return out, page, pictures


@pytest.mark.parametrize(
    "text",
    [
        "Training of the tokenizer tiny",
        "0.812 mean IoU at the end",
        "0.838 best mean IoU, after step 4,000",
        "0.122 with the codes of another image's masks",
        "0.874 without quantization",
        "1,599 different words of 1,641 masks",
        "207 masks trained per second, 20 min 34 s on 2 workers",
        "0 251 198.2",
        "4.1% of the masks have an IoU below 0.5",
        "2 skipped for a loss or gradient that is not finite. Counting from 0: 4, 41",
        "rle_sum 3",
        "fingerprint f00d",
        "start uri s3://m/start.pt corpora reader=coco, reader=x",
        "versions torch 9.9",
        '"model": "tiny"',
    ],
)
def test_the_page_shows_what_became_of_the_run(run, text):
    assert text in run[1].text


def test_validations_are_thinned_with_the_first_the_last_and_the_best_among_them(run):
    text = run[1].text
    assert "20 of 100 validations" in text
    assert "580 0.5570 0.1250 25.0% 7.2 / 6.5 33 best" in text
    assert "10 0.5000 0.1250 25.0% 7.2 / 6.5 33 not quantized yet" in text
    assert "1,000 0.5990" in text


@pytest.mark.parametrize(("count", "best"), [(20, 3), (21, None), (21, 10), (21, 20)])
def test_at_most_twenty_validations_are_shown(tmp_path, count, best):
    page, _ = written(tmp_path, validations=validated(count, best=best))
    assert sum(f" {10 * (place + 1)} 0.5" in page.text for place in range(count)) == 20
    assert ("20 of 21 validations" in page.text) == (count == 21)
    assert ("33 best" in page.text) == (best is not None)


def test_pictures_are_on_the_page_and_beside_it(run):
    out, page, pictures = run
    assert set(pictures) == {"curves.png", "masks.png"}
    for name, data in pictures.items():
        assert (out / "report" / name).read_bytes() == data
    assert [picture.size for picture in page.pictures()] == [
        Image.open(io.BytesIO(data)).size for data in pictures.values()
    ]


def test_texts_cannot_become_tags_and_the_page_needs_nothing_outside_of_it(run):
    page = run[1]
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources())


def test_a_run_of_which_nothing_is_known_has_a_page(tmp_path):
    page, pictures = written(tmp_path)
    assert set(pictures) == {"curves.png"}
    for said in (
        "There was no validation",
        "No codes were measured",
        "No step was skipped",
        "No image was rejected",
    ):
        assert said in page.text
    assert "None" not in page.text
    assert "nan" not in page.text


@pytest.mark.parametrize("missing", sorted(RECORD))
def test_any_part_of_the_record_may_be_unknown(tmp_path, missing):
    page, _ = written(tmp_path, record=RECORD | {missing: None})
    assert "None" not in page.text


def test_values_that_are_no_numbers_are_dashes(tmp_path):
    row = validated(1)[0] | {"iou_shuffled": math.nan}
    page, _ = written(tmp_path, validations=[row], record={"final": {"iou": math.nan, "distinct": None}})
    assert "10 0.5000 - 25.0%" in page.text
    assert "mean IoU at the end" not in page.text


def test_the_curves_mark_where_quantization_begins(tmp_path):
    def ink(start):
        _, pictures = written(tmp_path, history=history(60, start))
        picture = np.asarray(Image.open(io.BytesIO(pictures["curves.png"])).convert("RGB"))
        return int((picture == (32, 34, 38)).all(axis=-1).sum())

    assert ink(30) > ink(0) + 500


def test_a_contact_sheet_shows_every_sample():
    tokenizer = MaskTokenizer.from_preset("micro").eval()
    mask = np.zeros((48, 64), bool)
    mask[5:30, 5:30] = True
    image = np.full((48, 64, 3), 120, np.uint8)
    sample = Sample("d/1", image, [RunMask.of_dense(mask), RunMask.of_dense(~mask)])
    sheets = [Image.open(io.BytesIO(report.contact_sheet_of(tokenizer, [sample] * n))) for n in (1, 2)]
    assert sheets[0].width == sheets[1].width < 1200  # as wide as the page, so captions stay legible
    assert sheets[1].height > 1.5 * sheets[0].height


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (2.345, "2.35 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7510, "2 h 05 min"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert report_html.duration(seconds) == text
