"""The COCO-layout reader: forms of masks, what is flagged, what is rejected, and that nothing is lost."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import schema
from pipelines.ingestion.coco import CocoReader
from pipelines.ingestion.reader import Input, ReadResult
from samtok import masks
from samtok.errors import ConfigError, DataError

HEIGHT, WIDTH = 6, 8

L_SHAPE = np.zeros((HEIGHT, WIDTH), bool)
L_SHAPE[1:5, 1:3] = True
L_SHAPE[4, 3:7] = True  # asymmetric, so that swapped axes are seen
RUNS = [7, 4, 2, 4, 5, 1, 5, 1, 5, 1, 5, 1, 7]
POLYGON = [1, 1, 3, 1, 3, 4, 7, 4, 7, 5, 1, 5]
COUNTS = masks.encode(L_SHAPE)
RLE = {"size": [HEIGHT, WIDTH], "counts": COUNTS}
IMAGE = {"id": 5, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}


def annotation(identity=1, image_id=5, **fields):
    return {"id": identity, "image_id": image_id, "category_id": 1, **fields}


def reader_of(tmp_path, annotations, *, images=(IMAGE,), categories=({"id": 1, "name": "ring"},), **options):
    corpus = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(corpus))
    (tmp_path / "images").mkdir(exist_ok=True)
    return CocoReader(
        name="shapes", split="val", source=str(path), images=str(tmp_path / "images"), **options
    )


def read_all(reader):
    """Returns rows, rejects and inputs, having checked that claims are kept and that all fits the schemas."""
    rows, rejects, inputs = [], [], []
    for item in reader.inputs():
        if not isinstance(item, Input):
            rejects.append(item)
            continue
        result = reader.read(item)
        assert item.num_masks == result.num_masks_in
        inputs.append(item)
        rejects.extend(result.rejects)
        rows.extend([result.row] if result.row else [])
    assert schema.table(rows, schema.IMAGE_ROW).num_rows == len(rows)
    assert schema.table(rejects, schema.REJECT_ROW).num_rows == len(rejects)
    return rows, rejects, inputs


def only_mask(tmp_path, **fields):
    rows, rejects, _ = read_all(reader_of(tmp_path, [annotation(**fields)]))
    assert rejects == []
    (mask,) = rows[0]["masks"]
    return mask


@pytest.mark.parametrize(
    "segmentation",
    [
        [POLYGON],
        {"size": [HEIGHT, WIDTH], "counts": RUNS},
        RLE,
        [RLE, RLE],
        [[1, 1, 3, 1, 3, 5, 1, 5], [2, 4, 7, 4, 7, 5, 2, 5]],
    ],
    ids=["polygon", "runs", "counts", "list_of_counts", "overlapping_polygons"],
)
def test_every_form_of_a_mask_gives_the_same_counts(tmp_path, segmentation):
    mask = only_mask(tmp_path, segmentation=segmentation, bbox=[1, 1, 6, 4])

    assert mask == {"mask_id": "1", "rle": COUNTS, "box_xyxy": None, "label": "ring", "flags": []}


def test_a_row_carries_names_sizes_and_the_place_of_the_image(tmp_path):
    rows, _, _ = read_all(reader_of(tmp_path, []))

    assert rows == [
        {
            "dataset": "shapes",
            "split": "val",
            "image_id": "5",
            "image_uri": str(tmp_path / "images" / "a.jpg"),
            "height": HEIGHT,
            "width": WIDTH,
            "masks": [],
            "annotations": [],
        }
    ]


@pytest.mark.parametrize(
    "segmentation",
    [[], None, {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}],
    ids=["list", "null", "zeros"],
)
def test_empty_masks_stay_in_the_row_with_a_flag(tmp_path, segmentation):
    mask = only_mask(tmp_path, segmentation=segmentation)

    assert (mask["rle"], mask["flags"]) == (None, ["empty"])


def test_crowds_are_flagged_and_kept(tmp_path):
    mask = only_mask(tmp_path, segmentation={"size": [HEIGHT, WIDTH], "counts": RUNS}, iscrowd=1)

    assert (mask["rle"], mask["flags"]) == (COUNTS, ["crowd"])


def test_a_box_without_a_mask_is_kept_as_corners(tmp_path):
    mask = only_mask(tmp_path, bbox=[1.5, 2, 3, 4])

    assert (mask["rle"], mask["box_xyxy"], mask["flags"]) == (None, [1.5, 2.0, 4.5, 6.0], ["box_only"])


def test_a_box_without_area_is_empty(tmp_path):
    mask = only_mask(tmp_path, bbox=[1, 2, 0, 4])

    assert (mask["box_xyxy"], mask["flags"]) == (None, ["empty", "box_only"])


def test_neither_mask_nor_box_is_empty(tmp_path):
    assert only_mask(tmp_path)["flags"] == ["empty"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": RUNS}}, "rle_size"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": RUNS[:-1]}}, "rle_sum"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": COUNTS + "\n"}}, "rle_counts"),
        ({"segmentation": [[0, 0, 7, 5]]}, "polygon_invalid"),
        ({"segmentation": "all of it"}, "segmentation_type"),
        ({"segmentation": [POLYGON], "iscrowd": "yes"}, "iscrowd"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": [1, 2, 3, float("nan")]}, "bbox"),
        ({"bbox": [1, 2, 3, 10**400]}, "bbox"),
    ],
)
def test_a_bad_mask_is_rejected_and_the_others_stay(tmp_path, fields, reason):
    good, bad = annotation(1, segmentation=RLE), annotation(2, **fields)
    rows, rejects, _ = read_all(reader_of(tmp_path, [bad, good]))

    assert [mask["mask_id"] for mask in rows[0]["masks"]] == ["1"]
    assert [(r["row_id"], r["mask_id"], r["reason"], r["num_masks"]) for r in rejects] == [
        ("5", "2", reason, 1)
    ]
    assert "annotation 2 of image 5" in rejects[0]["message"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({**IMAGE, "file_name": "/etc/hostname"}, "unsafe_path"),
        ({**IMAGE, "file_name": "../a.jpg"}, "unsafe_path"),
        ({**IMAGE, "file_name": "b/../../a.jpg"}, "unsafe_path"),
        ({**IMAGE, "file_name": "x.tar#0:10:a.jpg"}, "unsafe_path"),
        ({**IMAGE, "file_name": ""}, "image_path"),
        ({**IMAGE, "file_name": 7}, "image_path"),
        ({**IMAGE, "file_name": "\ud800.jpg"}, "image_path"),
        ({**IMAGE, "height": 0}, "image_size"),
        ({**IMAGE, "width": "8"}, "image_size"),
        ({**IMAGE, "width": 2**40}, "image_size"),
        ({"id": 5, "file_name": "a.jpg"}, "image_size"),
    ],
)
def test_an_unusable_image_record_loses_its_row_with_all_masks_counted(tmp_path, image, reason):
    marks = [annotation(number, segmentation=RLE) for number in (1, 2)]
    rows, rejects, _ = read_all(reader_of(tmp_path, marks, images=[image]))

    assert rows == []
    assert [(r["row_id"], r["mask_id"], r["reason"], r["num_masks"]) for r in rejects] == [
        ("5", None, reason, 2)
    ]


def test_a_link_out_of_the_image_folder_is_refused(tmp_path):
    reader = reader_of(tmp_path, [])
    (tmp_path / "images" / "a.jpg").symlink_to(tmp_path / "instances.json")

    assert [entry["reason"] for entry in read_all(reader)[1]] == ["unsafe_path"]


def test_string_ids_of_images_and_annotations_are_kept(tmp_path):
    images = [{**IMAGE, "id": "sa_7"}]
    rows, rejects, _ = read_all(
        reader_of(tmp_path, [annotation("m", "sa_7", segmentation=RLE)], images=images)
    )

    assert (rows[0]["image_id"], rows[0]["masks"][0]["mask_id"], rejects) == ("sa_7", "m", [])


def test_numbers_as_text_and_whole_floats_are_the_same_id(tmp_path):
    marks = [annotation(1, "5", segmentation=RLE), annotation(2, 5.0, segmentation=RLE)]

    assert len(read_all(reader_of(tmp_path, marks))[0][0]["masks"]) == 2


def test_the_flickr_variant_reads_masks_from_sam_mask(tmp_path):
    reader = reader_of(tmp_path, [annotation(sam_mask=RLE, bbox=[0, 0, 2, 2])], mask_key="sam_mask")
    mask = read_all(reader)[0][0]["masks"][0]

    assert (mask["rle"], mask["flags"]) == (COUNTS, [])


@pytest.mark.parametrize(
    ("fields", "mask_key"),
    [({"sam_mask": RLE}, "segmentation"), ({"segmentation": RLE}, "sam_mask"), ({}, "sam_mask")],
)
def test_a_mask_key_that_no_annotation_has_is_refused(tmp_path, fields, mask_key):
    reader = reader_of(tmp_path, [annotation(**fields)], mask_key=mask_key)

    with pytest.raises(ConfigError, match=f"has the mask key '{mask_key}'.*Set the reader option mask_key"):
        list(reader.inputs())


def test_coco_url_gives_the_folder_and_the_name(tmp_path):
    images = [{**IMAGE, "coco_url": "http://images.example/train2017/000000000005.jpg"}]
    rows, _, _ = read_all(reader_of(tmp_path, [], images=images, image_path="coco_url"))

    assert rows[0]["image_uri"] == str(tmp_path / "images" / "train2017" / "000000000005.jpg")


def test_image_folders_are_searched_for_the_one_that_has_the_picture(tmp_path):
    images = [{**IMAGE, "id": number, "file_name": f"{number}.jpg"} for number in (1, 2, 3)]
    reader = reader_of(tmp_path, [], images=images, image_folders=("part_1", "part_2"))
    for name in ("part_2/1.jpg", "part_1/2.jpg", "part_2/2.jpg"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    rows, rejects, _ = read_all(reader)

    assert [row["image_uri"] for row in rows] == [str(tmp_path / "images" / "part_2" / "1.jpg")]
    assert [(r["row_id"], r["reason"]) for r in rejects] == [("2", "ambiguous_image"), ("3", "missing_image")]


def test_missing_categories_leave_the_label_open(tmp_path):
    rows, rejects, _ = read_all(reader_of(tmp_path, [annotation(segmentation=RLE)], categories=[]))

    assert (rows[0]["masks"][0]["label"], rejects) == (None, [])


def test_one_category_id_with_two_names_is_refused(tmp_path):
    reader = reader_of(tmp_path, [], categories=[{"id": 1, "name": "ring"}, {"id": 1, "name": "bar"}])

    with pytest.raises(DataError, match="category 1 named both 'ring' and 'bar'"):
        list(reader.inputs())


def test_annotations_without_any_id_are_numbered_in_file_order(tmp_path):
    marks = [{"image_id": 5, "segmentation": RLE}, {"image_id": 5, "segmentation": []}]
    rows, rejects, _ = read_all(reader_of(tmp_path, marks))

    assert [(mask["mask_id"], mask["flags"]) for mask in rows[0]["masks"]] == [("1", []), ("2", ["empty"])]
    assert rejects == []


def test_an_annotation_without_id_among_others_is_rejected(tmp_path):
    marks = [annotation(1, segmentation=RLE), {"image_id": 5, "segmentation": RLE}, annotation(True), "text"]
    rows, rejects, _ = read_all(reader_of(tmp_path, marks))

    assert len(rows[0]["masks"]) == 1
    assert [(r["row_id"], r["mask_id"], r["reason"]) for r in rejects] == [
        ("5", "#1", "annotation_id"),
        ("5", "#2", "annotation_id"),
        ("?", "#3", "annotation_type"),
    ]


def test_annotations_of_unknown_images_are_counted(tmp_path):
    marks = [annotation(1, 6, segmentation=RLE), annotation(2, None, segmentation=RLE)]
    rows, rejects, _ = read_all(reader_of(tmp_path, marks))

    assert rows[0]["masks"] == []
    assert [(r["row_id"], r["mask_id"], r["reason"], r["num_masks"]) for r in rejects] == [
        ("6", "1", "unknown_image", 1),
        ("?", "2", "unknown_image", 1),
    ]


def test_of_equal_records_one_is_kept_and_of_differing_ones_none(tmp_path):
    images = [IMAGE, dict(IMAGE), {**IMAGE, "id": 6}, {**IMAGE, "id": 6, "file_name": "b.jpg"}]
    marks = [annotation(1, segmentation=RLE)] * 2 + [
        annotation(2, segmentation=RLE),
        annotation(2, segmentation=[]),
    ]
    marks.append(annotation(3, 6, segmentation=RLE))
    rows, rejects, _ = read_all(reader_of(tmp_path, marks, images=images))

    assert [(row["image_id"], [mask["mask_id"] for mask in row["masks"]]) for row in rows] == [("5", ["1"])]
    assert sorted((r["reason"], r["row_id"], r["mask_id"] or "", r["num_masks"]) for r in rejects) == [
        ("duplicate_annotation_id", "5", "1", 1),
        ("duplicate_annotation_id", "5", "2", 1),
        ("duplicate_annotation_id", "5", "2", 1),
        ("duplicate_image_id", "5", "", 0),
        ("duplicate_image_id", "6", "", 0),
        ("duplicate_image_id", "6", "", 0),
        ("unknown_image", "6", "3", 1),
    ]


def test_output_does_not_depend_on_the_order_in_the_file(tmp_path):
    images = [{**IMAGE, "id": number, "file_name": f"{number}.jpg"} for number in (2, 10, 1)]
    marks = [annotation(number, 10, segmentation=RLE) for number in (9, 10, 1)]
    marks += [annotation(4, 77), annotation(5, 76)]
    outcomes = [list(reader_of(tmp_path, marks[::step], images=images[::step]).inputs()) for step in (1, -1)]

    assert outcomes[0] == outcomes[1]
    assert [item.key for item in outcomes[0] if isinstance(item, Input)] == ["1", "10", "2"]


def test_payloads_are_compact_and_do_not_name_the_image_folder(tmp_path):
    reader = reader_of(tmp_path, [annotation(segmentation=[POLYGON], caption="long", bbox=[1, 1, 6, 4])])
    (item,) = reader.inputs()

    assert isinstance(item, Input)
    assert item.payload == (
        '{"annotations":[{"label":"ring","mask_id":"1","segmentation":[[1,1,3,1,3,4,7,4,7,5,1,5]]}],'
        '"image":{"file_name":"a.jpg","height":6,"width":8}}'
    )


def test_a_reader_gives_the_same_after_pickling(tmp_path):
    reader = reader_of(tmp_path, [annotation(segmentation=RLE)])
    copied = pickle.loads(pickle.dumps(reader))

    assert read_all(copied) == read_all(reader)


def test_sources_name_content_and_not_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = (reader_of(tmp_path / folder, [annotation()]).witness() for folder in ("a", "b"))
    content = (tmp_path / "a" / "instances.json").read_bytes()

    assert first == second == {"instances.json": f"{len(content)}:{hashlib.sha256(content).hexdigest()}"}
    assert reader_of(tmp_path / "b", []).witness() != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [], x}', r"instances\.json is not JSON .* at byte 15"),
        (b'\xef\xbb\xbf{"images": ["\xc3\xa4", x', r"is not JSON .* at byte 21"),
        (b'\xef\xbb\xbf{"images": ["\xff"]}', r"is not UTF-8 .* at byte 16"),
        (b"[" * 100_000, "nests lists or objects too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b"[]", r'holds a list, expected an object with the lists "images" and "annotations"'),
        (b'{"annotations": []}', r"holds a dict with \['annotations'\], expected"),
        (b'{"images": []}', r"holds a dict with \['images'\], expected"),
        (b'{"images": null, "annotations": []}', r'holds "images" as a NoneType, expected a list'),
        (b'{"images": [], "annotations": {}}', r'holds "annotations" as a dict, expected a list'),
    ],
    ids=["comma", "mark", "bytes", "deep", "digits", "list", "images", "alone", "null", "annotations"],
)
def test_a_file_of_another_layout_is_refused_with_its_fault(tmp_path, content, message):
    reader = reader_of(tmp_path, [])
    (tmp_path / "instances.json").write_bytes(content)

    with pytest.raises(DataError, match=message):
        list(reader.inputs())


def test_a_byte_order_mark_is_no_fault(tmp_path):
    reader = reader_of(tmp_path, [])
    path = tmp_path / "instances.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert len(read_all(reader)[0]) == 1


def test_a_result_that_does_not_add_up_cannot_be_made():
    with pytest.raises(AssertionError, match="0 masks kept"):
        ReadResult(row=None, rejects=[], num_masks_in=1)


SEGMENTATIONS = st.sampled_from(
    [
        RLE,
        [POLYGON],
        [],
        None,
        {"size": [WIDTH, HEIGHT], "counts": RUNS},
        [[0, 0, 7, 5]],
        "text",
        [[None]],
        {"counts": 3},
    ]
)
ANNOTATIONS = st.one_of(
    st.none() | st.integers() | st.text(max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.integers(1, 4) | st.none() | st.sampled_from(["1", "b", 1.5, True, [], "\ud800"]),
            "image_id": st.sampled_from([1, 2, "2", 3, None, {}]),
            "iscrowd": st.sampled_from([0, 1, None, 2]),
            "bbox": st.sampled_from([[0, 0, 2, 2], [0, 0, 0, 0], [1, 2], None, "box"]),
            "segmentation": SEGMENTATIONS,
            "category_id": st.sampled_from([1, 2, None, []]),
        },
    ),
)
IMAGES = st.one_of(
    st.none() | st.integers(),
    st.fixed_dictionaries(
        {"file_name": st.sampled_from(["a.jpg", "b/c.jpg", "../x", None])},
        optional={
            "id": st.sampled_from([1, 2, "2", 3, None]),
            "height": st.sampled_from([HEIGHT, 0, None]),
            "width": st.just(WIDTH),
        },
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=st.lists(IMAGES, max_size=5), marks=st.lists(ANNOTATIONS, max_size=10))
def test_masks_and_images_in_are_masks_and_images_kept_or_rejected(tmp_path, images, marks):
    rows, rejects, _ = read_all(reader_of(tmp_path, marks, images=images))
    whole_rows = [entry for entry in rejects if entry["mask_id"] is None]

    assert sum(len(row["masks"]) for row in rows) + sum(entry["num_masks"] for entry in rejects) == len(marks)
    assert len(rows) + len(whole_rows) == len(images)
    for row in rows:
        identities = [mask["mask_id"] for mask in row["masks"]]
        assert len(set(identities)) == len(identities)
