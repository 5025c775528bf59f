"""Videos at fault: what cannot be used is rejected with a reason, the rest is read, counts add up."""

import copy
import json
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import storage
from pipelines.ingestion.reader import Input, read_record
from samtok.errors import DataError
from tests.folders import png
from tests.label_maps import inputs_of, reasons
from tests.readers import read_all
from tests.videos import (
    EXPRESSIONS,
    FRAMES,
    MASK_DICT,
    PUBLISHED,
    SAV,
    A,
    B,
    expression,
    masklets,
    mevis,
    picture,
    reader_of,
    refer_item,
    revos,
    rle,
    sav,
    sav_masks,
    videorefer,
    write,
    ytvos,
)

VALUES = (A * 3).astype(np.uint8)
OTHER = "sav_train/sav_001/sav_000002_auto.json"
TRUNCATED = json.dumps(masklets("sav_000002")).encode()[:200]
SHORT = {"size": [6, 8], "counts": [3, 4]}
NO_RLE = {"size": [6, 8], "counts": "\x7f!"}


def one_video(**fields: Any) -> dict[str, Any]:
    """A second video, beside one that is as it should be."""
    body = {"vid_id": 2, "frames": FRAMES[:1], "expressions": {"0": expression("a thing", 9)}, **fields}
    good = {"vid_id": 1, "frames": FRAMES, "expressions": {"0": EXPRESSIONS["0"]}}
    return mevis({"v": good, "w": body}, names=("v", "w"))


def named(name: str) -> dict[str, Any]:
    good = {"frames": FRAMES, "expressions": {"0": EXPRESSIONS["0"]}}
    return mevis({"v": good, name: {"frames": FRAMES[:1], "expressions": {"0": expression("a thing", 9)}}})


def with_masks(**own: Any) -> dict[str, Any]:
    said = {"0": EXPRESSIONS["0"], "1": EXPRESSIONS["1"]}
    return mevis({"v": {"frames": FRAMES, "expressions": said}}, {**MASK_DICT, **own})


def said(*values: Any) -> dict[str, Any]:
    """MeViS with one good expression and others."""
    listed = {"0": EXPRESSIONS["0"], **{str(number): one for number, one in enumerate(values, start=1)}}
    return mevis({"v": {"frames": FRAMES, "expressions": listed}})


def without(files: dict[str, Any], name: str) -> dict[str, Any]:
    return {place: body for place, body in files.items() if place != name}


def second(body: Any) -> dict[str, Any]:
    return {**sav(), **sav(body, OTHER)}


SAV_PNG = "Annotations_6fps/sav_000002/001/00000.png"
YTVOS_PNG = "train/Annotations/v/00005.png"
EXPRESSION_FILE = "meta_expressions/train/meta_expressions.json"

FAULTS: dict[str, tuple[str, dict[str, Any], int, list[tuple[str, str, str, int]]]] = {
    # layout, files, masks that are read, rejects
    "sav: cut": ("sav", second(TRUNCATED), 6, [("json", "sav_000002", "", 0)]),
    "sav: empty": ("sav", second(b""), 6, [("json", "sav_000002", "", 0)]),
    "sav: a list": ("sav", second([]), 6, [("video_record", "sav_000002", "", 0)]),
    "sav: no masklets": (
        "sav",
        second(masklets("sav_000002", masklet=None)),
        6,
        [("video_record", "sav_000002", "", 0)],
    ),
    "sav: no ids": (
        "sav",
        second(masklets("sav_000002", masklet_id=None)),
        6,
        [("video_record", "sav_000002", "", 0)],
    ),
    "sav: of another video": ("sav", second(masklets("x")), 6, [("file_name", "sav_000002", "", 0)]),
    "sav: no size": (
        "sav",
        sav(masklets(video_height=6.5)),
        0,
        [("image_size", f"sav_000001/{frame}", "", 2) for frame in ("00000", "00004", "00008")],
    ),
    "sav: a frame that is no list": (
        "sav",
        sav(masklets(masklet=[[rle(A), rle(B)], None])),
        2,
        [("video_frame", "sav_000001/00004", "", 0)],
    ),
    "sav: no frame": (
        "sav",
        sav(count=8),
        4,
        [("missing_image", "sav_000001/00008", "", 2)],
    ),
    "sav: the same id twice": (
        "sav",
        sav(masklets(masklet=[[rle(A), rle(B)]], masklet_id=[3, 3])),
        0,
        [("annotation_id", "sav_000001/00000", f"#{index}", 1) for index in (0, 1)],
    ),
    "sav: more masks than ids": (
        "sav",
        sav(masklets(masklet=[[rle(A), rle(B)]], masklet_id=[3])),
        1,
        [("annotation_id", "sav_000001/00000", "#1", 1)],
    ),
    "sav: fewer masks than ids, null, empty": (
        "sav",
        sav(masklets(masklet=[[rle(A), None, {}]], masklet_id=[0, 1, 2, 3])),
        4,
        [],
    ),
    "sav: masks at fault": (
        "sav",
        sav(masklets(masklet=[[rle(A.T), SHORT, NO_RLE, "x", rle(A)]], masklet_id=[0, 1, 2, 3, 4])),
        1,
        [
            ("rle_counts", "sav_000001/00000", "2", 1),
            ("rle_size", "sav_000001/00000", "0", 1),
            ("rle_sum", "sav_000001/00000", "1", 1),
            ("segmentation_type", "sav_000001/00000", "3", 1),
        ],
    ),
    "sav: a video twice": (
        "sav",
        {**sav(), "sav_train/sav_009/sav_000001_auto.json": masklets()},
        6,
        [("duplicate_image_id", f"sav_000001/{frame}", "", 2) for frame in ("00000", "00004", "00008")],
    ),
    "sav_masks: a PNG that is none": (
        "sav_masks",
        {**sav_masks(), SAV_PNG: b"x"},
        4,
        [("image_format", "sav_000002/00000", "001", 1)],
    ),
    "sav_masks: an empty file": (
        "sav_masks",
        {**sav_masks(), SAV_PNG: b""},
        4,
        [("label_map_empty", "sav_000002/00000", "001", 1)],
    ),
    "sav_masks: another size": (
        "sav_masks",
        {**sav_masks(), "Annotations_6fps/sav_000002/002/00000.png": png(VALUES.T)},
        5,
        [("rle_size", "sav_000002/00000", "002", 1)],
    ),
    "sav_masks: no frame": (
        "sav_masks",
        without(sav_masks(), "JPEGImages_24fps/sav_000002/00000.jpg"),
        3,
        [("missing_image", "sav_000002/00000", "", 2)],
    ),
    "mevis: no object": (
        "mevis",
        one_video() | {"meta_expressions.json": {"videos": {"v": 5, "w": {"expressions": {}}}}},
        0,
        [("video_record", "v", "", 0), ("video_record", "w", "", 0)],
    ),
    "mevis: frames of numbers": ("mevis", one_video(frames=[0]), 3, [("video_record", "w", "", 0)]),
    "mevis: a frame twice": (
        "mevis",
        one_video(frames=["0", "0"]),
        3,
        [("duplicate_frame", "w", "", 0)],
    ),
    "mevis: a video above": ("mevis", named("../w"), 3, [("unsafe_path", "../w/00000", "", 1)]),
    "mevis: an absolute video": ("mevis", named("/w"), 3, [("unsafe_path", "/w/00000", "", 1)]),
    "mevis: half a character": ("mevis", named("\ud800"), 3, [("video_record", repr("\ud800"), "", 0)]),
    "mevis: a video without a name": ("mevis", named(""), 3, [("video_record", "", "", 0)]),
    "mevis: a frame above": (
        "mevis",
        one_video(frames=["../v/00000"]),
        3,
        [("unsafe_path", "w/../v/00000", "", 1)],
    ),
    "mevis: no frame": (
        "mevis",
        without(one_video(), "JPEGImages/w/00000.jpg"),
        3,
        [("missing_image", "w/00000", "", 1)],
    ),
    "mevis: fewer masks than frames": (
        "mevis",
        with_masks(**{"1": [rle(B)]}),
        3,
        [("mask_list", f"v/{frame}", "1", 1) for frame in FRAMES],
    ),
    "mevis: no list of masks": (
        "mevis",
        with_masks(**{"1": {"a": 1}}),
        3,
        [("mask_list", f"v/{frame}", "1", 1) for frame in FRAMES],
    ),
    "mevis: an object twice": (
        "mevis",
        with_masks() | {"mask_dict.json": json.dumps(MASK_DICT).replace('"2"', '"1"').encode()},
        3,
        [("duplicate_annotation_id", f"v/{frame}", "1", 1) for frame in FRAMES],
    ),
    "mevis: an object that is not there": (
        "mevis",
        said(expression("a ghost", 77)),
        3,
        [("unknown_mask", f"v/{frame}", "77", 0) for frame in FRAMES],
    ),
    "mevis: masks at fault": (
        "mevis",
        with_masks(**{"1": [rle(A.T), SHORT, "x"]}),
        3,
        [
            ("rle_size", "v/00000", "1", 1),
            ("rle_sum", "v/00005", "1", 1),
            ("segmentation_type", "v/00010", "1", 1),
        ],
    ),
    "mevis: expressions at fault": (
        "mevis",
        said(expression(" ", 0), expression(None, 0), 5, {"exp": "x"}, expression("x", None)),
        3,
        [
            ("annotation_id", "v", "annotation 3", 0),
            ("annotation_targets", "v", "annotation 4", 0),
            ("annotation_targets", "v", "annotation 5", 0),
            ("annotation_text", "v", "annotation 1", 0),
            ("annotation_text", "v", "annotation 2", 0),
        ],
    ),
    "revos: another type": (
        "revos",
        revos(expressions={"0": expression("a dog", 0, type_id=3)}),
        0,
        [("annotation_tags", "UVO/all/x", "annotation 0", 0)],
    ),
    "revos: no size": (
        "revos",
        revos(height=None),
        0,
        [("image_size", f"UVO/all/x/{frame}", "", 2) for frame in FRAMES],
    ),
    "revos: another size than the masks": (
        "revos",
        revos(height=8, width=6),
        1,  # of an object that is absent
        [
            *(("rle_size", f"UVO/all/x/{frame}", "0", 1) for frame in FRAMES),
            *(("rle_size", f"UVO/all/x/{frame}", "1", 1) for frame in (FRAMES[0], FRAMES[2])),
            ("target_absent", f"UVO/all/x/{FRAMES[1]}", "texts", 0),
        ],
    ),
    "ytvos: no map": ("ytvos", without(ytvos(), YTVOS_PNG), 3, [("label_map_missing", "v/00005", "", 0)]),
    "ytvos: a map in colours": (
        "ytvos",
        {**ytvos(), YTVOS_PNG: png(np.stack([VALUES] * 3, axis=-1))},
        3,
        [("label_mode", "v/00005", "", 0)],
    ),
    "ytvos: an empty map": ("ytvos", {**ytvos(), YTVOS_PNG: b""}, 3, [("label_map_empty", "v/00005", "", 0)]),
    "ytvos: no frame": (
        "ytvos",
        without(ytvos(), "train/JPEGImages/v/00005.jpg"),
        3,
        [("missing_image", "v/00005", "", 0)],
    ),
    "videorefer: items at fault": (
        "videorefer",
        videorefer(refer_item(), refer_item(7, caption="x"), refer_item(None), 5),
        0,
        [
            ("annotation_id", "#2", "", 0),
            ("annotation_id", "#3", "", 0),
            ("duplicate_annotation_id", "7", "", 0),
            ("duplicate_annotation_id", "7", "", 0),
        ],
    ),
    "videorefer: records at fault": (
        "videorefer",
        videorefer(refer_item(), refer_item(8, video=None), refer_item(9, annotation=[None])),
        5,
        [("image_path", "8", "", 0), ("video_record", "9", "", 0)],
    ),
    "videorefer: a video above": (
        "videorefer",
        videorefer(refer_item(), refer_item(8, video="../clip.mp4", annotation=[{"4": rle(A)}])),
        5,
        [("unsafe_path", "../clip/00004", "", 1)],
    ),
    "videorefer: a caption of a frame without a mask": (
        "videorefer",
        videorefer(refer_item(frame_idx="5")),
        5,
        [("caption_frame", "7", "annotation 7", 0)],
    ),
    "videorefer: a frame in two spellings, and one that is none": (
        "videorefer",
        videorefer(refer_item(annotation=[{"4": {"segmentation": rle(A)}, "04": None, "x": None}])),
        0,
        [
            ("duplicate_annotation_id", "clip/00004", "7-1", 1),
            ("duplicate_annotation_id", "clip/00004", "7-1", 1),
            ("frame_number", "7", "7-1", 1),
        ],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_at_fault_is_rejected_with_a_reason_and_the_rest_is_read(tmp_path, fault):
    layout, files, num_masks, expected = FAULTS[fault]
    write(tmp_path, files)
    rows, rejects = read_all(reader_of(layout, tmp_path))
    assert reasons(rejects) == sorted(expected)
    assert sum(len(row["masks"]) for row in rows) == num_masks


WHOLE: dict[str, tuple[str, dict[str, Any], str]] = {
    # layout, files in place of others, message
    "no masklets": ("sav", {"sav_train": None}, "no file .*_auto.json below"),
    "no PNGs": ("sav_masks", {"Annotations_6fps": None}, "no VIDEO/OBJECT/FRAME.png below"),
    "no videos": ("mevis", {"meta_expressions.json": []}, "no object with the object videos"),
    "cut expressions": ("mevis", {"meta_expressions.json": b'{"videos": {"v"'}, "is not JSON"),
    "empty expressions": ("mevis", {"meta_expressions.json": b""}, "is not JSON"),
    "cut masks": ("mevis", {"mask_dict.json": json.dumps(MASK_DICT).encode()[:80]}, "is not JSON"),
    "empty masks": ("mevis", {"mask_dict.json": b""}, "is not JSON"),
    "a list of masks": ("mevis", {"mask_dict.json": []}, "holds a list, expected an object"),
    "no targets": (
        "mevis",
        {"meta_expressions.json": {"videos": {"v": {"frames": [], "expressions": {"0": {"exp": "x"}}}}}},
        "no expression of .* has anno_id: .* not published; take train, or of MeViS valid_u",
    ),
    "no objects": (
        "ytvos",
        {EXPRESSION_FILE: {"videos": {"v": {"frames": [], "expressions": {"0": {"exp": "x"}}}}}},
        "no expression of .* has obj_id",
    ),
    "no classes": ("ytvos", {"train/meta.json": []}, "meta.json is no object"),
    "no items": ("videorefer", {"VideoRefer-Bench-D.json": {}}, "holds a dict, expected a list"),
    "no frames": ("videorefer", {"frames": None}, "no frame below .*ffmpeg"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_dataset_of_another_layout_is_refused(tmp_path, kind):
    layout, changed, message = WHOLE[kind]
    write(tmp_path, PUBLISHED[layout]())
    for name, body in changed.items():
        if body is None:
            shutil.rmtree(tmp_path / name)
            (tmp_path / name).mkdir()
        else:
            write(tmp_path, {name: body})
    with pytest.raises(DataError, match=message):
        inputs_of(reader_of(layout, tmp_path))


def test_a_file_of_masks_that_is_not_there_is_named(tmp_path):
    write(tmp_path, without(mevis(), "mask_dict.json"))
    with pytest.raises(storage.NotFoundError, match=r"mask_dict\.json"):
        inputs_of(reader_of("mevis", tmp_path))


def test_what_is_changed_or_gone_after_it_was_listed_is_rejected(tmp_path):
    write(tmp_path, {**sav(), **with_masks()})
    for layout, name in (("sav", SAV), ("mevis", "mask_dict.json")):
        reader = reader_of(layout, tmp_path)
        inputs = inputs_of(reader)
        claimed = sum(item.num_masks or 0 for item in inputs)
        for body in (b"[]", b" " * 5000):
            write(tmp_path, {name: body})
            results = [read_record(reader, item) for item in inputs]
            kept = [mask for one in results if one.row for mask in one.row["masks"]]
            assert not any(mask["rle"] for mask in kept)
            assert sum(one.num_masks_in for one in results) == claimed
        (tmp_path / name).unlink()
        gone = [read_record(reader, item) for item in inputs]
        assert all(one.row is None or not any(m["rle"] for m in one.row["masks"]) for one in gone)
        assert {one["reason"] for result in gone for one in result.rejects} == {"record_missing"}


def test_links_out_of_a_folder_are_not_followed(tmp_path):
    write(tmp_path / "elsewhere", {"a.jpg": picture(), "b.json": masklets("sav_000003")})
    write(tmp_path, {**sav(count=8), **mevis()})
    (tmp_path / "frames/sav_000001/00008.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    (tmp_path / "sav_train/sav_000003_auto.json").symlink_to(tmp_path / "elsewhere/b.json")
    _, rejects = read_all(reader_of("sav", tmp_path))
    expected = [("unsafe_path", "sav_000001/00008", "", 2), ("unsafe_path", "sav_000003", "", 0)]
    assert reasons(rejects) == expected
    allowed = reader_of("sav", tmp_path, link_root=(str(tmp_path / "elsewhere"),))
    assert {one["reason"] for one in read_all(allowed)[1]} == {"missing_image"}  # of sav_000003


ODD = [None, 0, -1, 2**70, 1.5, True, "", "x", "../x", "\ud800", "a\0b"]
ODD += [[], {}, [None], [[]], {"0": []}, rle(A)]
NAMES = st.sampled_from(["", "x", "../x", "\ud800", "0", "1"])


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Returns all pairs of container and key of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [pair for key, child in list(items) for pair in ((value, key), *places_in(child))]


def change(value: Any, data: st.DataObject) -> None:
    """Changes one place of a JSON value."""
    places = places_in(value)
    if not places:
        return
    container, key = places[data.draw(st.integers(0, len(places) - 1))]
    kind = data.draw(st.sampled_from(["put", "drop", "rename", "repeat"]))
    if kind == "drop":
        del container[key]
    elif kind == "rename" and isinstance(container, dict):
        container[data.draw(NAMES)] = container.pop(key)
    elif kind == "repeat" and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    else:
        container[key] = copy.deepcopy(data.draw(st.sampled_from(ODD)))


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("layout", PUBLISHED)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_file_is_read_or_rejected(tmp_path, layout, data: st.DataObject):
    root = tmp_path / "made"
    shutil.rmtree(root, ignore_errors=True)
    files = copy.deepcopy(PUBLISHED[layout]())
    name = data.draw(st.sampled_from([one for one in files if not one.endswith(".jpg")]))
    if not isinstance(files[name], bytes):
        for _ in range(data.draw(st.integers(1, 3))):
            change(files[name], data)
        files[name] = json.dumps(files[name]).encode()
    raw = bytearray(files[name])
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    write(root, {**files, name: bytes(raw)})
    reader = reader_of(layout, root)
    try:
        listed = list(reader.inputs())
    except DataError:
        return  # the dataset as a whole
    rows, rejects = read_all(reader)
    lost = sum(one["mask_id"] is None for one in rejects)
    inputs = sum(isinstance(item, Input) for item in listed)
    of_listing = [item for item in listed if isinstance(item, dict)]
    assert inputs + sum(one["mask_id"] is None for one in of_listing) == len(rows) + lost
    assert read_all(reader) == (rows, rejects)
