"""ReasonSeg and the polygons of Cityscapes: painted masks, texts and flags, and that nothing is lost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.reader import Input, Reader
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from pipelines.ingestion.synthetic.scenes import crowds
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import Scene, WorldConfig, make_scene
from tests.folders import HEIGHT, PICTURE, WIDTH, put
from tests.label_maps import found_in, inputs_of, reasons
from tests.readers import build_reader, read_all

BOX = [[4, 3], [11, 3], [11, 8], [4, 8]]
INNER = [[6.9, 4.2], [8, 4], [8, 6], [6, 6]]
KINDS: tuple[Any, ...] = ("reasonseg", "cityscapes_polygons")


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """A mask of these columns and rows, the last ones included."""
    made = np.zeros((HEIGHT, WIDTH), bool)
    made[y0 : y1 + 1, x0 : x1 + 1] = True
    return made


WHOLE, HOLE = block(4, 3, 11, 8), block(6, 4, 8, 6)

# ---------------------------------------------------------------- files of both


def shape(points: Any = BOX, label: Any = "target", **fields: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": "polygon", **fields}


def reasoned(*shapes: Any, **fields: Any) -> dict[str, Any]:
    return {"text": ["what holds water?"], "is_sentence": True, "shapes": list(shapes), **fields}


def thing(label: Any = "car", polygon: Any = BOX, **fields: Any) -> dict[str, Any]:
    return {"label": label, "polygon": polygon, "date": "27-Jun-2014", **fields}


def city(*objects: Any, **fields: Any) -> dict[str, Any]:
    return {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": list(objects), **fields}


CITY = "aachen/aachen_000000_000019"


def files_of(kind: str, record: Any) -> dict[str, bytes]:
    raw = record if isinstance(record, bytes) else json.dumps(record).encode()
    if kind == "reasonseg":
        return {"all/a.jpg": PICTURE, "all/a.json": raw}
    return {f"images/{CITY}_leftImg8bit.png": PICTURE, f"gtFine/{CITY}_gtFine_polygons.json": raw}


def reader_of(kind: Any, folder: Path | str, **options: Any) -> Reader:
    source, images = ("all", "all") if kind == "reasonseg" else ("gtFine", "images")
    place = {"source": f"{folder}/{source}", "images": f"{folder}/{images}"}
    return build_reader(kind, **{**place, "dataset": "d", **options})


def read(
    kind: str, folder: Path, record: Any, **options: Any
) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    put(folder, files_of(kind, record))
    rows, rejects = read_all(reader_of(kind, folder, **options))
    return rows, reasons(rejects)


# ---------------------------------------------------------------- ReasonSeg


def test_the_smaller_polygon_lies_on_top_wherever_it_is_listed(tmp_path):
    for order in ((shape(), shape(INNER, "ignore")), (shape(INNER, "Ignore me"), shape())):
        (row,), told = read("reasonseg", tmp_path, reasoned(*order))
        assert told == [] and found_in(row) == {
            "target": (masks.encode(WHOLE & ~HOLE), None, []),
            "ignore": (masks.encode(HOLE), None, ["void"]),
        }
    (row,), _ = read("reasonseg", tmp_path, reasoned(shape(label="ignore"), shape(INNER)))
    assert found_in(row)["target"][0] == masks.encode(HOLE)


def test_texts_are_questions_or_phrases_about_the_one_target(tmp_path):
    other = shape([[20, 12], [24, 12], [24, 16]])
    for is_sentence, tag in ((True, "sentence"), (False, "phrase")):
        record = reasoned(shape(), other, text=["a", " b "], is_sentence=is_sentence)
        (row,), told = read("reasonseg", tmp_path, record)
        assert told == [] and [mask["mask_id"] for mask in row["masks"]] == ["target"]
        assert [
            (made["task"], made["text"], made["mask_ids"], made["tags"]) for made in row["annotations"]
        ] == [("referring", text, ["target"], [tag]) for text in ("a", "b")]
        assert (row["image_id"], row["image_uri"]) == ("a", f"{tmp_path}/all/a.jpg")


def test_files_of_windows_are_read_and_such_bytes_in_no_encoding_are_not(tmp_path):
    raw = json.dumps(reasoned(shape(), text=["the man\u2019s caf\xe9"]), ensure_ascii=False)
    for encoding in ("cp1252", "utf-8", "utf-8-sig"):
        (row,), told = read("reasonseg", tmp_path, raw.encode(encoding))
        assert told == [] and row["annotations"][0]["text"] == "the man\u2019s caf\xe9"
    rows, told = read("reasonseg", tmp_path, raw.encode("cp1252").replace(b"caf", b"\x81"))
    assert rows == [] and told == [("json", "a", "", 0)]


def test_a_flag_is_skipped_and_counted_and_a_label_with_it_in_is_a_target(tmp_path):
    record = reasoned(shape(INNER), shape(label="Flag"), shape([[1, 1], [2, 2]]), shape(INNER, "flagpole"))
    (row,), told = read("reasonseg", tmp_path, record)
    assert found_in(row) == {"target": (masks.encode(HOLE), None, [])}
    assert told == [("polygon_part", "a", "shape 3", 0), ("shape_flag", "a", "shape 2", 0)]


def test_a_target_without_pixels_is_empty(tmp_path):
    outside = shape([[90, 90], [95, 90], [95, 95]])
    for shapes in ((), (shape(INNER, "ignore"), shape(INNER)), (outside,)):  # of equal ones the first wins
        (row,), told = read("reasonseg", tmp_path, reasoned(*shapes))
        assert found_in(row)["target"] == (None, None, ["empty"]) and told == []


TEXT_FAULTS = {
    "no text": ({"text": None}, [("annotation_text", "a", "annotation text-1", 0)]),
    "an empty one": ({"text": [" ", "b"]}, [("annotation_text", "a", "annotation text-1", 0)]),
    "a number": ({"text": ["b", 5]}, [("annotation_text", "a", "annotation text-2", 0)]),
    "no kind": ({"is_sentence": "yes"}, [("annotation_tags", "a", "annotation tags", 0)]),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_a_text_at_fault_costs_no_mask(tmp_path, fault):
    fields, expected = TEXT_FAULTS[fault]
    (row,), told = read("reasonseg", tmp_path, reasoned(shape(), **fields))
    assert told == expected and len(row["masks"]) == 1
    assert len(row["annotations"]) == (0 if fault == "no text" else 1)


@pytest.mark.parametrize(
    ("record", "reason", "num_masks"),
    [
        (reasoned(shape([[float("nan"), 1], [2, 2], [3, 1]])), "points", 1),
        (reasoned(shape(), shape([[1, 1], [1e300, 2], [3, 1]], "ignore")), "points", 2),
        (reasoned(shape([[1, 1, 1], [2, 2], [3, 1]])), "points", 1),
        (reasoned(shape([])), "points", 1),
        (reasoned(shape("box")), "points", 1),
        (reasoned(shape(), 5), "label", 0),
        (reasoned(shape(label=None)), "label", 0),
        (reasoned(shape(), imageHeight=0, imageWidth=5), "image_size", 1),
        ({"shapes": {}}, "sidecar_layout", 0),
        ([], "sidecar_layout", 0),
        (b"", "json", 0),
        (b'{"text": ["a"], "shapes": [{"la', "json", 0),
        (b"[" * 100_000, "json", 0),
    ],
)
def test_a_file_at_fault_costs_its_image(tmp_path, record, reason, num_masks):
    rows, told = read("reasonseg", tmp_path, record)
    assert rows == [] and told == [(reason, "a", "", num_masks)]


def test_images_and_files_without_each_other_or_twice_are_rejected(tmp_path):
    good = json.dumps(reasoned(shape())).encode()
    put(tmp_path, {"all/a.jpg": PICTURE, "all/a.json": good, "all/b.jpg": PICTURE, "all/c.json": good})
    put(tmp_path, {"all/d.jpg": PICTURE, "all/d.png": PICTURE, "all/d.json": good})
    put(tmp_path, {"all/e.jpg": PICTURE, "all/e.json": good, "all/e.JSON": good})
    put(tmp_path, {"all/f.jpg": b"no image", "all/f.json": good})
    rows, rejects = read_all(reader_of("reasonseg", tmp_path))
    assert [row["image_id"] for row in rows] == ["a"] and reasons(rejects) == [
        ("ambiguous_annotation", "e", "", 0),
        ("ambiguous_image", "d", "", 0),
        ("image_format", "f", "", 1),
        ("missing_annotation", "b", "", 0),
        ("missing_image", "c", "", 0),
    ]


# ---------------------------------------------------------------- Cityscapes


def test_later_objects_cover_earlier_ones_as_in_the_official_maps(tmp_path):
    objects = (
        thing("out of roi", [[0, 0], [WIDTH - 1, 0], [WIDTH - 1, 1], [0, 1]]),
        thing("building"),
        thing("cargroup", [[6, 4], [8, 4], [8, 6], [6, 6]]),
        thing("polegroup", [[20, 10], [22, 10], [22, 30], [20, 30]]),
        thing("sky", BOX, deleted=1),
        thing("license plate"),
        thing("person", [[20, 10], [20, 10], [20, 11]], deleted=0),
    )
    (row,), told = read("cityscapes_polygons", tmp_path, city(*objects))
    pole = block(20, 10, 22, 19)
    assert found_in(row) == {
        "1": (masks.encode(block(0, 0, WIDTH - 1, 1)), "out of roi", ["void"]),
        "2": (masks.encode(WHOLE & ~HOLE), "building", []),
        "3": (masks.encode(HOLE), "car", ["crowd"]),
        "4": (masks.encode(pole & ~block(20, 10, 20, 11)), "polegroup", []),
        "7": (masks.encode(block(20, 10, 20, 11)), "person", []),
    }
    assert told == [
        ("object_deleted", CITY, "object 5", 0),
        ("object_unpainted", CITY, "object 6", 0),
    ]
    assert (row["image_id"], row["image_uri"]) == (CITY, f"{tmp_path}/images/{CITY}_leftImg8bit.png")
    (row,), _ = read("cityscapes_polygons", tmp_path, city(*objects), overlap="whole")
    assert found_in(row)["2"] == (masks.encode(WHOLE), "building", [])
    assert found_in(row)["4"] == (masks.encode(pole), "polegroup", [])


def test_an_object_that_is_covered_or_outside_is_an_empty_mask(tmp_path):
    record = city(thing(), thing("bus"), thing("sky", [[90, 90], [95, 90], [95, 95]]))
    for overlap, empty in (("covered", ["1", "3"]), ("whole", ["3"])):
        (row,), told = read("cityscapes_polygons", tmp_path, record, overlap=overlap)
        assert told == [] and [m["mask_id"] for m in row["masks"] if m["flags"] == ["empty"]] == empty


def test_coarse_files_and_other_files_beside_are_told_apart(tmp_path):
    body = json.dumps(city(thing())).encode()
    put(tmp_path, files_of("cityscapes_polygons", city(thing())))
    put(tmp_path, {f"gtFine/{CITY}_gtCoarse_polygons.json": body, "gtFine/aachen/info.json": b"{}"})
    put(tmp_path, {f"gtFine/{CITY[:-1]}8_gtCoarse_polygons.json": body})
    put(tmp_path, {f"images/{CITY[:-1]}8_leftImg8bit.png": PICTURE, f"gtFine/{CITY}_gtFine_color.png": b"x"})
    rows, rejects = read_all(reader_of("cityscapes_polygons", tmp_path))
    assert [row["image_id"] for row in rows] == [f"{CITY[:-1]}8", CITY]
    assert reasons(rejects) == [("duplicate_image_id", CITY, "", 0)]


def test_a_folder_without_polygons_is_refused(tmp_path):
    put(tmp_path, {"gtFine/a.json": b"{}", "images/a_leftImg8bit.png": PICTURE})
    with pytest.raises(DataError, match=r"not a \*_gtFine_polygons.json or .* below .*gtFine"):
        list(reader_of("cityscapes_polygons", tmp_path).inputs())


OBJECT_FAULTS = {
    "no object": (5, "annotation_type"),
    "no label": (thing(None), "label"),
    "an empty label": (thing(""), "label"),
    "half a character": (thing("\ud800"), "label"),
    "two corners": (thing(polygon=[[1, 1], [2, 2]]), "polygon_invalid"),
    "no corners": (thing(polygon=[]), "points"),
    "no pairs": (thing(polygon=[1, 1, 2, 2, 3, 3]), "points"),
    "not finite": (thing(polygon=[[1, 1], [float("inf"), 2], [3, 3]]), "points"),
    "no numbers": (thing(polygon=[["1", 1], [2, 2], [3, 3]]), "points"),
}


@pytest.mark.parametrize("fault", OBJECT_FAULTS)
def test_an_object_at_fault_is_one_reject_and_the_others_stay(tmp_path, fault):
    bad, reason = OBJECT_FAULTS[fault]
    (row,), told = read("cityscapes_polygons", tmp_path, city(thing(), bad))
    assert found_in(row) == {"1": (masks.encode(WHOLE), "car", [])} and told == [(reason, CITY, "2", 1)]


@pytest.mark.parametrize(
    ("record", "reason", "num_masks"),
    [
        (city(thing(), thing(deleted=1), imgHeight=None), "image_size", 1),
        (city(thing(), imgWidth=-4), "image_size", 1),
        (city(thing(), imgHeight=2**20, imgWidth=2**20), "image_size", 1),
        ({"objects": None}, "sidecar_layout", 0),
        (b"", "json", 0),
        (b'{"imgHeight": 20, "obj', "json", 0),
        (b"\xff", "json", 0),
    ],
)
def test_a_file_of_polygons_at_fault_costs_its_image(tmp_path, record, reason, num_masks):
    rows, told = read("cityscapes_polygons", tmp_path, record)
    assert rows == [] and told == [(reason, CITY, "", num_masks)]


def test_an_image_that_is_not_there_costs_its_masks(tmp_path):
    put(tmp_path, files_of("cityscapes_polygons", city(thing(), thing())))
    (tmp_path / "images" / f"{CITY}_leftImg8bit.png").rename(tmp_path / "images" / "x.png")
    rows, rejects = read_all(reader_of("cityscapes_polygons", tmp_path))
    assert rows == [] and reasons(rejects) == [("missing_image", CITY, "", 2)]


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("kind", KINDS)
def test_links_that_leave_the_folder_are_rejected_unless_they_may(tmp_path, kind):
    record = {"reasonseg": reasoned(shape()), "cityscapes_polygons": city(thing())}[kind]
    for name, data in files_of(kind, record).items():
        put(tmp_path / "blobs", {name: data})
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "blobs" / name)
    _, rejects = read_all(reader_of(kind, tmp_path))
    assert [one["reason"] for one in rejects] == ["unsafe_path"]
    rows, rejects = read_all(reader_of(kind, tmp_path, link_root=(str(tmp_path / "blobs"),)))
    assert len(rows) == 1 and rejects == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_has_the_first_images_and_a_witness_their_files(tmp_path, kind):
    config, reader = synthetic(kind, str(tmp_path))
    head = reader.head(4)
    keys = [item.key for item in head.items if isinstance(item, Input)]
    inputs = inputs_of(reader)
    assert (
        keys == [item.key for item in inputs][: len(keys)]
        and len(keys) in (2, 4)
        and head.more
        and len(inputs) == config.num_images
    )
    assert len(reader.witness(inputs[:1])) == (2 if kind == "reasonseg" else 1)


# ---------------------------------------------------------------- the synthetic corpus


WORLD = WorldConfig.square(48)


def synthetic(kind: Any, root: str) -> tuple[ShapesConfig, Reader]:
    config = ShapesConfig(out=root, format=kind, num_images=6, seed=4, world=WORLD, crowd_share=0.4)
    write_shapes(config)
    source, images = {
        "reasonseg": ("train", "train"),
        "cityscapes_polygons": ("gtFine/train", "leftImg8bit/train"),
    }[kind]
    return config, build_reader(kind, source=f"{root}/{source}", images=f"{root}/{images}", dataset="s")


def union(found: list[np.ndarray], scene: Scene) -> str:
    return masks.encode(np.any([np.zeros(scene.size_hw, bool), *found], axis=0))


def check_reasoned(config: ShapesConfig, row: dict[str, Any]) -> None:
    """The target is a union of shapes, and no other shape is ignored but crowds."""
    scene = make_scene(config.seed, int(row["image_id"]) - 1, config.world)
    record = json.loads((Path(config.out) / "train" / f"{row['image_id']}.json").read_bytes())
    found = found_in(row)
    size = {"height": row["height"], "width": row["width"]}
    target = masks.decode(found["target"][0], **size)
    meant = [one.mask for one in scene.objects if (one.mask & target).any()]
    assert found["target"][0] == union(meant, scene)
    drawn = zip(scene.objects, crowds(scene, config.crowd_share), strict=True)
    ignored = [one.mask for one, crowd in drawn if crowd and not (one.mask & target).any()]
    assert ("ignore" in found) == bool(ignored)
    if ignored:
        assert found["ignore"] == (union(ignored, scene), None, ["void"])
    assert [made["text"] for made in row["annotations"]] == record["text"] and record["text"]
    assert all(made["mask_ids"] == ["target"] for made in row["annotations"])


def check_city(config: ShapesConfig, row: dict[str, Any]) -> None:
    """Each pixel is in one mask: of the ground, or of a shape with its kind."""
    scene = make_scene(config.seed, int(row["image_id"].rpartition("_")[2]) - 1, config.world)
    size = {"height": row["height"], "width": row["width"]}
    found: dict[tuple[str, bool], list[np.ndarray]] = {}
    for mask in row["masks"]:
        key = (mask["label"], mask["flags"] == ["crowd"])
        found.setdefault(key, []).append(masks.decode(mask["rle"], **size))
    shapes = list(zip(scene.objects, crowds(scene, config.crowd_share), strict=True))
    expected = {("ground", False): ~np.any([one.mask for one in scene.objects], axis=0)}
    for one, crowd in shapes:
        key = (one.kind, crowd)
        expected[key] = expected.get(key, np.zeros(scene.size_hw, bool)) | one.mask
    assert {key: union(parts, scene) for key, parts in found.items()} == {
        key: masks.encode(mask) for key, mask in expected.items()
    }
    assert np.sum([part for parts in found.values() for part in parts], axis=0).max() == 1


CHECKS = {"reasonseg": check_reasoned, "cityscapes_polygons": check_city}


@pytest.mark.parametrize("kind", KINDS)
def test_the_synthetic_corpus_is_read_back_bit_for_bit(tmp_path, kind):
    config, reader = synthetic(kind, str(tmp_path))
    rows, rejects = read_all(reader)
    assert rejects == [] and len(rows) == config.num_images
    for row in rows:
        assert read_size_hw(row["image_uri"]) == (row["height"], row["width"])
        CHECKS[kind](config, row)


def test_polygons_and_label_maps_of_cityscapes_give_the_same_masks(tmp_path):
    _, reader = synthetic("cityscapes_polygons", f"{tmp_path}/drawn")
    config = ShapesConfig(out=f"{tmp_path}/maps", format="cityscapes", num_images=6, seed=4, world=WORLD)
    write_shapes(config)
    place = {"source": f"{tmp_path}/maps/gtFine/train", "images": f"{tmp_path}/maps/leftImg8bit/train"}
    maps = build_reader("labelmap", encoding="cityscapes_labels", **place)
    there = {row["image_id"]: row for row in read_all(maps)[0]}
    for row in read_all(reader)[0]:
        size = {"height": row["height"], "width": row["width"]}
        (void,) = [mask["rle"] for mask in there[row["image_id"]]["masks"] if mask["flags"] == ["void"]]
        assert [mask["rle"] for mask in row["masks"] if mask["label"] == "ground"] == [void]
        parts = [mask["rle"] for mask in row["masks"]]
        assert masks.union(parts, **size) == masks.encode(np.ones((row["height"], row["width"]), bool))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_on_s3_is_read_as_on_a_disk(tmp_path, bucket, kind):
    _, there = synthetic(kind, f"{bucket}/{kind}")
    _, here = synthetic(kind, str(tmp_path))
    inputs = inputs_of(there)
    assert inputs == inputs_of(here)
    assert there.witness() == here.witness() and there.witness(inputs) == here.witness(inputs)
    found, expected = read_all(there), read_all(here)
    moved = [
        {**row, "image_uri": row["image_uri"].replace(f"{bucket}/{kind}", str(tmp_path))} for row in found[0]
    ]
    assert (moved, found[1]) == expected


# ---------------------------------------------------------------- anything at all


VALUES = st.sampled_from(
    [None, True, 0, -1, 2.5, 1e300, float("nan"), 2**80, "", "x", "\ud800", [], {}, "flag"]
)
POINTS = st.one_of(
    VALUES,
    st.lists(st.one_of(VALUES, st.lists(st.one_of(VALUES, st.integers(-5, 40)), max_size=3)), max_size=4),
    st.just(BOX),
)
ENTRY = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {},
        optional={
            "label": st.one_of(VALUES, st.sampled_from(["target", "ignore", "car", "cargroup", "group"])),
            "points": POINTS,
            "polygon": POINTS,
            "deleted": VALUES,
        },
    ),
    st.sampled_from([shape(), thing()]),
)
RECORD = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {},
        optional={
            **{name: st.one_of(VALUES, st.lists(ENTRY, max_size=4)) for name in ("shapes", "objects")},
            "text": st.one_of(VALUES, st.lists(VALUES, max_size=3)),
            "is_sentence": VALUES,
            **{name: st.one_of(VALUES, st.just(HEIGHT)) for name in ("imgHeight", "imageHeight")},
            **{name: st.one_of(VALUES, st.just(WIDTH)) for name in ("imgWidth", "imageWidth")},
        },
    ),
    st.lists(ENTRY, max_size=4).map(lambda found: {**reasoned(*found), **city(*found)}),
)


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=RECORD)
def test_any_record_is_read_or_rejected(tmp_path, kind, record):
    rows, _ = read(kind, tmp_path, record)
    found = rows[0]["masks"] if rows else []
    if kind == "cityscapes_polygons":  # each pixel is in one mask at most
        drawn = [masks.decode(m["rle"], height=HEIGHT, width=WIDTH) for m in found if m["rle"]]
        same_size = rows and (rows[0]["height"], rows[0]["width"]) == (HEIGHT, WIDTH)
        assert not same_size or not drawn or np.sum(drawn, axis=0).max() == 1


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_read_or_rejected(tmp_path, kind, data):
    record = {"reasonseg": reasoned(shape(), shape(INNER, "ignore")), "cityscapes_polygons": city(thing())}
    raw = bytearray(json.dumps(record[kind]).encode())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    read(kind, tmp_path, bytes(raw[: data.draw(st.integers(0, len(raw)))]))
