"""The reader of grounded captions: three layouts, phrases in their places, and that nothing is lost."""

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.ingestion import spans
from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.spans import Span
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import WorldConfig, make_scene
from tests import readers
from tests.readers import build_reader

HEIGHT, WIDTH = 6, 8
CAPTION = "A red ring and two stars."
POLYGON = [1, 1, 3, 1, 3, 4, 7, 4, 7, 5, 1, 5]


def rle(column):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[1:3, column] = True
    return {"size": [HEIGHT, WIDTH], "counts": masks.encode(mask)}


def granf(caption=CAPTION, groundings=None, image_id="sa_7", **fields):
    found = {"A red ring": [0, 10], "two stars": [15, 24]}
    default = {
        phrase: {"token_positives": place, "rle_masks": [rle(i), rle(i + 3)][: i + 1]}
        for i, (phrase, place) in enumerate(found.items())
    }
    size = {"height": HEIGHT, "width": WIDTH}
    body = {"file_name": f"{image_id}.jpg", **size, "image_id": image_id, "caption": caption}
    return {**body, "groundings": default if groundings is None else groundings, **fields}


def grounding(start, end, *found):
    return {"token_positives": [start, end], "rle_masks": list(found or [rle(0)])}


def reader_of(folder, corpus, **options):
    (folder / "gcg.json").write_text(json.dumps(corpus))
    return build_reader(
        "granf",
        source=f"{folder}/gcg.json",
        images=str(folder),
        split="train",
        dataset="g",
        **options,
    )


def read_all(reader):
    """As for every reader; and spans ascend, lie apart and name every mask."""
    rows, rejects = readers.read_all(reader)
    for made in (made for row in rows for made in row["annotations"]):
        places = json.loads(made["payload"])["spans"]
        assert sorted({i for one in places for i in one["masks"]}) == list(range(len(made["mask_ids"])))
        ends = [0, *(value for one in places for value in (one["start"], one["end"])), len(made["text"])]
        assert ends == sorted(ends) and all(one["start"] < one["end"] for one in places)
    return rows, rejects


def told(row):
    """Returns the caption, and for each phrase its text and the counts of its masks."""
    (made,) = row["annotations"]
    rles = {mask["mask_id"]: mask["rle"] for mask in row["masks"]}
    return made["text"], [
        (made["text"][one["start"] : one["end"]], [rles[made["mask_ids"][i]] for i in one["masks"]])
        for one in json.loads(made["payload"])["spans"]
    ]


def reasons(rejects):
    return sorted((one["reason"], one["row_id"], one["mask_id"], one["num_masks"]) for one in rejects)


# --- layout A ---------------------------------------------------------------------------------------------


def test_every_rle_of_a_phrase_is_a_mask_and_the_phrase_names_them_all(tmp_path):
    (row,), rejects = read_all(reader_of(tmp_path, [granf()]))
    assert not rejects and (row["image_id"], row["height"], row["width"]) == ("sa_7", HEIGHT, WIDTH)
    assert row["image_uri"] == f"{tmp_path}/sa_7.jpg"
    stars = [rle(1)["counts"], rle(4)["counts"]]
    assert told(row) == (CAPTION, [("A red ring", [rle(0)["counts"]]), ("two stars", stars)])
    assert row["annotations"][0]["task"] == "grounded_caption"


def test_offsets_count_from_the_caption_without_its_quotes(tmp_path):
    quoted = granf(f'"  {CAPTION} "', image_id=8)
    null = granf(groundings={"A red ring": grounding(0, 10), "stars": None}, image_id=9)
    rows, rejects = read_all(reader_of(tmp_path, [quoted, null]))
    assert not rejects and told(rows[0])[0] == CAPTION
    assert [phrase for phrase, _ in told(rows[0])[1]] == ["A red ring", "two stars"]
    assert [phrase for phrase, _ in told(rows[1])[1]] == ["A red ring"] and len(rows[1]["masks"]) == 1


@pytest.mark.parametrize("place", [[5, 5], [-1, 3], [0, 26], [3], None, [0.0, 4], ["0", 4], [True, 4]])
def test_a_phrase_without_a_place_is_rejected_and_its_masks_stay(tmp_path, place):
    bad = {"token_positives": place, "rle_masks": [rle(2)]}
    corpus = [granf(groundings={"ring": bad, "two stars": grounding(15, 24)})]
    (row,), rejects = read_all(reader_of(tmp_path, corpus))
    assert reasons(rejects) == [("span", "sa_7", "annotation 1 phrase 'ring'", 0)]
    assert len(row["masks"]) == 2 and [phrase for phrase, _ in told(row)[1]] == ["two stars"]


def test_a_phrase_keeps_pointing_at_a_mask_that_is_rejected(tmp_path):
    corpus = [granf(groundings={"A red ring": grounding(0, 10, rle(0), {"size": [3, 3], "counts": "0"})})]
    (row,), rejects = read_all(reader_of(tmp_path, corpus))
    assert reasons(rejects) == [("rle_size", "sa_7", "1-2", 1)]
    assert row["annotations"][0]["mask_ids"] == ["1-1", "1-2"]


def test_captions_of_one_image_are_one_row(tmp_path):
    other = granf("Two stars.", {"Two stars": grounding(0, 9)})
    (row,), rejects = read_all(reader_of(tmp_path, [granf(), other]))
    assert [made["text"] for made in row["annotations"]] == [CAPTION, "Two stars."] and not rejects
    assert [mask["mask_id"] for mask in row["masks"]] == ["1-1", "1-2", "1-3", "2-1"]


def test_records_that_cannot_be_used_lose_all_their_masks(tmp_path):
    corpus = [
        granf(image_id=1, caption=" "),
        granf(image_id=2, groundings=None, height=None),
        granf(image_id=3, file_name="../x.jpg"),
        granf(image_id=4),
        granf(image_id=4, width=9),
        granf(image_id=5, groundings=[]) | {"groundings": []},
        {"caption": "x", "groundings": {}},
        7,
        granf(image_id=6, groundings={"ring": 3}),
    ]
    rows, rejects = read_all(reader_of(tmp_path, corpus))
    assert [row["image_id"] for row in rows] == ["1", "6"]
    assert reasons(rejects[:0] + [one for one in rejects if one["mask_id"]]) == [
        ("annotation_text", "1", "annotation 1", 0),
        ("grounding", "6", "annotation 1 phrase 'ring'", 0),
    ]
    whole = [
        (r, row_id, count) for r, row_id, mask_id, count in reasons([e for e in rejects if not e["mask_id"]])
    ]
    assert whole == [
        ("groundings", "5", 0),
        ("image_id", "#6", 0),
        ("image_record", "4", 6),
        ("image_size", "2", 3),
        ("record_type", "#7", 0),
        ("unsafe_path", "3", 3),
    ]


def test_an_exact_name_wins_over_folders(tmp_path):
    for folder in ("", "train2017", "val2017"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "sa_7.jpg").write_bytes(b"x")
    rows, rejects = read_all(reader_of(tmp_path, [granf()], image_folders=("train2017", "val2017")))
    assert [row["image_uri"] for row in rows] == [f"{tmp_path}/sa_7.jpg"] and not rejects


def test_images_may_be_in_one_of_several_folders(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "sa_7.jpg").write_bytes(b"x")
    rows, rejects = read_all(
        reader_of(tmp_path, [granf(), granf(image_id="8")], image_folders=("train2017", "val2017"))
    )
    assert [row["image_uri"] for row in rows] == [f"{tmp_path}/val2017/sa_7.jpg"]
    assert reasons(rejects) == [("missing_image", "8", None, 3)]


# --- layouts B and C --------------------------------------------------------------------------------------


def test_layout_b_finds_phrases_in_the_caption_and_the_size_in_the_picture(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg")
    refs = [
        {"sentence": "RED RING", "bbox": [0, 0, 2, 2], "segmentation": [POLYGON]},
        {"sentence": "a red", "bbox": [0, 0, 2, 2], "segmentation": [POLYGON]},
        {"sentence": "blue cross", "bbox": [0, 0, 2, 2], "segmentation": [POLYGON]},
        {"sentence": "two stars.", "bbox": [0, 0, 2, 2], "segmentation": [[1, 2]]},
    ]
    body = {"img_file_name": "a.jpg", "caption": CAPTION, "refs": refs}
    rows, rejects = read_all(reader_of(tmp_path, [{"99": body}, {"100": {**body, "img_file_name": "b.jpg"}}]))
    (row,) = rows
    assert (row["image_id"], row["height"], row["width"], len(row["masks"])) == ("99", HEIGHT, WIDTH, 3)
    (made,) = row["annotations"]
    phrases = [made["text"][one["start"] : one["end"]] for one in json.loads(made["payload"])["spans"]]
    assert phrases == ["A", "red ring", "two stars."]  # "A red" ends where "red ring" begins
    assert [(reason, row_id, count) for reason, row_id, _, count in reasons(rejects)] == [
        ("image_missing", "100", 4),
        ("polygon_invalid", "99", 1),
        ("span_not_found", "99", 0),
    ]


def test_layout_c_joins_the_masks_of_a_place_and_flags_what_is_ignored(tmp_path):
    (tmp_path / "77.jpg").write_bytes(b"x")
    image = {"id": 3, "file_name": "flickr_30k_77.jpg", "caption": CAPTION, "height": HEIGHT, "width": WIDTH}
    marks = [
        {"id": 1, "image_id": 3, "tokens_positive": [[0, 10]], "sam_mask": rle(0), "bbox": [0, 0, 1, 1]},
        {"id": 2, "image_id": 3, "tokens_positive": [[15, 24]], "sam_mask": rle(1), "ignore": 0},
        {"id": 3, "image_id": 3, "tokens_positive": [[15, 24]], "sam_mask": rle(2), "ignore": 1},
        {"id": 4, "image_id": 9, "tokens_positive": [[0, 1]], "sam_mask": rle(2)},
    ]
    corpus = {"images": [image, {**image, "id": 4}, {**image, "id": 4}, 5], "annotations": marks}
    rows, rejects = read_all(reader_of(tmp_path, corpus))
    stars = [rle(1)["counts"], rle(2)["counts"]]
    assert told(rows[0])[1] == [("A red ring", [rle(0)["counts"]]), ("two stars", stars)]
    assert [mask["flags"] for mask in rows[0]["masks"]] == [[], [], ["void"]]
    assert rows[0]["image_uri"] == f"{tmp_path}/77.jpg" and len(rows) == 2
    assert reasons(rejects) == [
        ("duplicate_image_id", "4", None, 0),
        ("image_id", "#3", None, 0),
        ("unknown_image", "9", "4", 1),
    ]


def test_a_file_of_another_layout_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds a dict, expected a list of captioned images"):
        list(reader_of(tmp_path, {"data": []}).inputs())


# --- spans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_spans", "kept", "lost"),
    [
        ([Span(5, 8, (1,)), Span(0, 4, (0,))], [Span(0, 4, (0,)), Span(5, 8, (1,))], []),
        ([Span(0, 6, (0,)), Span(3, 8, (1,))], [Span(0, 2, (0,)), Span(3, 8, (1,))], []),
        ([Span(3, 8, (1,)), Span(3, 8, (0, 1))], [Span(3, 8, (1, 0))], []),
        ([Span(3, 5, (0,)), Span(3, 8, (1,))], [Span(3, 8, (1,))], [Span(3, 5, (0,))]),
        ([Span(2, 7, (0,))], [Span(3, 6, (0,))], []),
        ([Span(2, 3, (0,))], [], [Span(2, 3, (0,))]),
        ([], [], []),
    ],
)
def test_overlapping_phrases_end_where_the_next_begins(given_spans, kept, lost):
    assert spans.apart(given_spans, "ab def gh k") == (kept, lost)


@given(
    st.lists(st.tuples(st.integers(0, 19), st.integers(1, 8), st.integers(0, 3)), max_size=8),
    st.text("ab \n", min_size=28, max_size=28),
)
def test_any_spans_become_ascending_and_apart_and_no_mask_is_lost_unseen(places, text):
    asked = [Span(start, start + length, (mask,)) for start, length, mask in places]
    kept, lost = spans.apart(asked, text)
    ends = [value for span in kept for value in (span.start, span.end)]
    assert ends == sorted(ends)
    assert all(text[span.start : span.end].strip() == text[span.start : span.end] != "" for span in kept)
    assert {mask for span in asked for mask in span.masks} == {
        m for span in (*kept, *lost) for m in span.masks
    }


@pytest.mark.parametrize("caption", ["İ saw the Ring", "ẞ ring"])
def test_letters_that_grow_in_lower_case_do_not_shift_a_phrase(caption):
    start, end = spans.found("ring", caption)
    assert caption[start:end].lower() == "ring"


ENTRIES = st.builds(
    granf,
    st.sampled_from([CAPTION, "Stars.", "", None]),
    st.dictionaries(
        st.sampled_from(["A red ring", "ring", "two", "stars"]),
        st.none()
        | st.builds(
            lambda start, size, found: {"token_positives": [start, start + size], "rle_masks": found},
            st.integers(-1, 20),
            st.integers(0, 9),
            st.lists(st.sampled_from([rle(0), rle(3), {"size": [1, 1], "counts": "0"}, None]), max_size=2),
        ),
    ),
    st.sampled_from(["sa_1", "sa_2", None]),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(ENTRIES, max_size=5), order=st.randoms(use_true_random=False))
def test_masks_in_are_masks_kept_or_rejected_whatever_the_order(tmp_path, entries, order: random.Random):
    rows, rejects = read_all(reader_of(tmp_path, entries))
    kept = sum(len(row["masks"]) for row in rows) + sum(entry["num_masks"] for entry in rejects)
    bodies = [body for entry in entries for body in entry["groundings"].values() if body is not None]
    assert kept == sum(len(body["rle_masks"]) for body in bodies)
    mixed = order.sample(entries, len(entries))
    mixed = [
        {**e, "groundings": dict(order.sample(list(e["groundings"].items()), len(e["groundings"])))}
        for e in mixed
    ]
    again = read_all(reader_of(tmp_path, mixed))
    assert again[0] == rows and len(again[1]) == len(rejects)


def test_the_synthetic_corpus_is_served_with_every_shape_in_a_phrase(tmp_path):
    world = WorldConfig.square(48)
    num_masks = write_shapes(
        ShapesConfig(out=str(tmp_path), format="granf", num_images=15, seed=4, world=world)
    )
    reader = build_reader(
        "granf", source=f"{tmp_path}/granf.json", images=f"{tmp_path}/train", split="train", dataset="s"
    )
    rows, rejects = read_all(reader)
    assert not rejects and num_masks == sum(len(row["masks"]) for row in rows)
    for row in rows:
        scene = make_scene(4, int(row["image_id"]) - 1, world)
        rles = sorted(masks.encode(shape.mask) for shape in scene.objects)
        assert sorted(found for _, own in told(row)[1] for found in own) == rles
        assert read_size_hw(row["image_uri"]) == (48, 48)
