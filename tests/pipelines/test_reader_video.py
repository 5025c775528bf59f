"""The reader of videos: frames, masks of objects that vanish and return, expressions, in five datasets."""

import json
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pipelines import storage
from pipelines.ingestion import external_sort, json_stream
from pipelines.ingestion.corpora import is_of_shapes
from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.reader import Input, Reader
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from pipelines.ingestion.synthetic.scenes import LANGUAGE_STREAM, mask_id
from pipelines.ingestion.synthetic.video import views
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.shapes import WorldConfig, make_scene, referring_expressions
from tests.folders import png
from tests.label_maps import inputs_of, reasons
from tests.readers import build_reader, read_all
from tests.videos import (
    CORNER,
    EXPRESSIONS,
    FRAMES,
    HEIGHT,
    MASK_DICT,
    PUBLISHED,
    SAV,
    WIDTH,
    A,
    B,
    expression,
    frames,
    masklets,
    mevis,
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

IN_A, IN_B = masks.encode(A), masks.encode(B)


def masks_in(row: dict[str, Any]) -> dict[str, str | None]:
    """Returns the masks of a row by id; None for one that is flagged as empty."""
    assert all((mask["flags"] == ["empty"]) == (mask["rle"] is None) for mask in row["masks"])
    return {mask["mask_id"]: mask["rle"] for mask in row["masks"]}


def said_in(row: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the ids of masks that each annotation names."""
    return {made["annotation_id"]: made["mask_ids"] for made in row["annotations"]}


FOUND: dict[str, dict[str, dict[str, str | None]]] = {
    "sav": {
        "sav_000001/00000": {"0": IN_A, "1": IN_B},
        "sav_000001/00004": {"0": IN_A, "1": None},
        "sav_000001/00008": {"0": IN_B, "1": IN_A},
    },
    "sav_masks": {
        "sav_000002/00000": {"000": IN_A, "001": IN_B},
        "sav_000002/00004": {"000": IN_A},
        "sav_000002/00008": {"000": IN_B, "001": None},
    },
    "mevis": {
        "v/00000": {"0": IN_A, "1": IN_B, "2": None},
        "v/00005": {"0": IN_A, "1": None, "2": None},
        "v/00010": {"0": IN_B, "1": IN_A, "2": None},
    },
    "revos": {
        "UVO/all/x/00000": {"0": IN_A, "1": IN_B},
        "UVO/all/x/00005": {"0": IN_A, "1": None},
        "UVO/all/x/00010": {"0": IN_B, "1": IN_A},
    },
    "ytvos": {
        "v/00000": {"1": IN_A, "2": IN_B, "3": masks.encode(CORNER)},
        "v/00005": {"1": IN_B, "2": None},
    },
    "videorefer": {
        "clip/00000": {"7-1": IN_A, "7-2": IN_B},
        "clip/00004": {"7-1": IN_A, "7-2": None},
        "clip/00012": {"7-1": IN_A},
    },
}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_each_frame_is_a_row_whose_masks_have_the_ids_of_their_objects(tmp_path, layout):
    write(tmp_path, PUBLISHED[layout]())
    rows, rejects = read_all(reader_of(layout, tmp_path))
    assert {row["image_id"]: masks_in(row) for row in rows} == FOUND[layout]
    assert {one["num_masks"] for one in rejects} <= {0}
    for row in rows:
        assert (row["height"], row["width"]) == (HEIGHT, WIDTH) == read_size_hw(row["image_uri"])


SAID: dict[str, dict[str, dict[str, list[str]]]] = {
    "mevis": {
        "v/00000": {"0": ["0"], "1": ["1"], "2": ["0", "1"], "3": [], "4": []},
        "v/00005": {"0": ["0"], "2": ["0"], "3": [], "4": []},
        "v/00010": {"0": ["0"], "1": ["1"], "2": ["0", "1"], "3": [], "4": []},
    },
    "revos": {
        "UVO/all/x/00000": {"0": ["0"], "1": ["1"], "2": []},
        "UVO/all/x/00005": {"0": ["0"], "2": []},
        "UVO/all/x/00010": {"0": ["0"], "1": ["1"], "2": []},
    },
    "ytvos": {"v/00000": {"0": ["1"], "1": ["2"]}, "v/00005": {"0": ["1"]}},
    "videorefer": {"clip/00000": {}, "clip/00004": {"7": ["7-1"]}, "clip/00012": {}},
}


@pytest.mark.parametrize("layout", SAID)
def test_expressions_name_those_of_their_objects_that_a_frame_has(tmp_path, layout):
    write(tmp_path, PUBLISHED[layout]())
    rows, rejects = read_all(reader_of(layout, tmp_path))
    assert {row["image_id"]: said_in(row) for row in rows} == SAID[layout]
    told = Counter(one["reason"] for one in rejects)
    assert told == {
        "mevis": {"target_absent": 1, "targets_nowhere": 1},
        "revos": {"target_absent": 1},
        "ytvos": {"target_absent": 1},
    }.get(layout, {})


def test_an_expression_whose_objects_are_absent_can_mean_nothing_there(tmp_path):
    write(tmp_path, mevis())
    rows, rejects = read_all(reader_of("mevis", tmp_path, absent_targets="no_target"))
    assert [said_in(row)["1"] for row in rows] == [["1"], [], ["1"]]
    assert reasons(rejects) == [("targets_nowhere", "v", "annotation 4", 0)]


def test_texts_kinds_and_classes_are_read(tmp_path):
    for layout in ("revos", "ytvos", "videorefer"):
        write(tmp_path / layout, PUBLISHED[layout]())
    row = read_all(reader_of("revos", tmp_path / "revos"))[0][0]
    assert [(made["text"], made["task"], made["tags"]) for made in row["annotations"]] == [
        ("the dog that stays", "referring", ["referring"]),
        ("what leaves?", "referring", ["reasoning"]),
        ("the flying cow", "referring", ["nan"]),
    ]
    row = read_all(reader_of("ytvos", tmp_path / "ytvos"))[0][0]
    assert [(mask["mask_id"], mask["label"]) for mask in row["masks"]] == [
        ("1", "car"),
        ("2", "truck"),
        ("3", None),
    ]
    (made,) = read_all(reader_of("videorefer", tmp_path / "videorefer"))[0][1]["annotations"]
    assert (made["task"], made["text"]) == ("region_caption", "A dog.")


STRIDES = {
    "sav": ["sav_000001/00000", "sav_000001/00008"],
    "sav_masks": ["sav_000002/00000", "sav_000002/00008"],
    "mevis": ["v/00000", "v/00010"],
    "revos": ["UVO/all/x/00000", "UVO/all/x/00010"],
    "ytvos": ["v/00000"],
    "videorefer": ["clip/00000", "clip/00004", "clip/00012"],  # the caption's frame is read whatever it is
}


@pytest.mark.parametrize("layout", STRIDES)
def test_a_stride_takes_every_nth_annotated_frame_as_it_is(tmp_path, layout):
    write(tmp_path, PUBLISHED[layout]())
    every = {row["image_id"]: row for row in read_all(reader_of(layout, tmp_path))[0]}
    rows = read_all(reader_of(layout, tmp_path, stride=2))[0]
    assert rows == [every[name] for name in STRIDES[layout]]


@pytest.mark.parametrize("layout", PUBLISHED)
def test_readers_are_sent_to_workers_and_witness_what_they_read(tmp_path, layout):
    write(tmp_path, PUBLISHED[layout]())
    reader = reader_of(layout, tmp_path)
    inputs = inputs_of(reader)
    assert inputs == sorted(inputs) and inputs_of(pickle.loads(pickle.dumps(reader))) == inputs
    assert [
        item for part in reader.parts() for item in reader.inputs_of(part) if isinstance(item, Input)
    ] == inputs
    before = reader.witness(), reader.witness(inputs)
    assert (reader.witness(), reader.witness(inputs)) == before
    head = reader.head(1)
    assert [item.key for item in head.items if isinstance(item, Input)] == [inputs[0].key] and head.more
    changed = next(
        name for name in PUBLISHED[layout]() if "frames/" not in name and not name.endswith(".jpg")
    )
    storage.write_bytes(f"{tmp_path}/{changed}", b"[0]")
    assert reader.witness() != before[0] and reader.witness(inputs) != before[1]


def test_no_mask_is_in_a_plan_of_masklets_or_of_mevis(tmp_path):
    write(tmp_path, {**sav(), **mevis()})
    for layout in ("sav", "mevis"):
        assert all('"counts"' not in item.payload for item in inputs_of(reader_of(layout, tmp_path)))


# ---------------------------------------------------------------- SA-V


def test_manual_masklets_are_read_by_an_option(tmp_path):
    write(tmp_path, sav())
    with pytest.raises(DataError, match=r"no file \*_manual.json below .*--corpus.masklets says which"):
        inputs_of(reader_of("sav", tmp_path, masklets="manual"))
    write(tmp_path, {SAV.replace("auto", "manual"): masklets(masklet=[[rle(B)]], masklet_id=[5])})
    rows, _ = read_all(reader_of("sav", tmp_path, masklets="manual"))
    assert [masks_in(row) for row in rows] == [{"5": IN_B}]


def test_videos_without_frames_name_the_command_that_extracts_them(tmp_path):
    write(tmp_path, {SAV: masklets(), "frames/sav_000001.mp4": b"video"})
    with pytest.raises(DataError, match=r"no frame below .*ffmpeg -i sav_000001.mp4 .*-start_number 0"):
        inputs_of(reader_of("sav", tmp_path))
    write(tmp_path, frames("frames/sav_000001", ["00000", "00004"]))
    rows, rejects = read_all(reader_of("sav", tmp_path))  # videos can be a frame short
    assert len(rows) == 2 and reasons(rejects) == [("missing_image", "sav_000001/00008", "", 2)]
    assert "ffmpeg" in rejects[0]["message"]


FRAME_PATHS = {
    "in the folder of the annotations": ("frames/sav_000/sav_000001/00000.jpg", None),
    "without zeros": ("frames/sav_000001/0.png", "{video}/{frame:01d}.png"),
    "in one folder": ("frames/sav_000001_000000.jpg", "{video}_{frame:06d}.jpg"),
    "in several": ("frames/a/sav_000/b/sav_000001/00000.jpeg", "a/{folder}/b/{video}/{frame}.jpeg"),
}


@pytest.mark.parametrize("where", FRAME_PATHS)
def test_frames_may_lie_in_other_folders(tmp_path, where):
    place, option = FRAME_PATHS[where]
    write(tmp_path, {SAV: masklets(), place: frames("x", ["0"])["x/0.jpg"]})
    (row,), rejects = read_all(reader_of("sav", tmp_path, frame_path=option))
    assert row["image_uri"] == f"{tmp_path}/{place}" and len(rejects) == 2


def test_a_palette_or_several_values_of_a_png_of_one_object_are_all_inside(tmp_path):
    write(tmp_path, sav_masks())
    values = (A * np.arange(1, WIDTH + 1)).astype(np.uint8)
    for palette in (None, [9, 9, 9, 0, 0, 0]):
        write(tmp_path, {"Annotations_6fps/sav_000002/000/00000.png": png(values, palette)})
        assert masks_in(read_all(reader_of("sav_masks", tmp_path))[0][0])["000"] == IN_A


# ---------------------------------------------------------------- MeViS and ReVOS


def test_masks_of_mevis_are_in_the_order_of_sorted_frames(tmp_path):
    video = {"frames": FRAMES[::-1], "expressions": EXPRESSIONS}
    write(tmp_path, mevis({"v": video}))
    rows, _ = read_all(reader_of("mevis", tmp_path))
    assert {row["image_id"]: masks_in(row) for row in rows} == FOUND["mevis"]


def test_frames_of_revos_that_are_not_sorted_are_refused(tmp_path):
    write(tmp_path, revos(frames=FRAMES[::-1]))
    rows, rejects = read_all(reader_of("revos", tmp_path))
    assert not rows and reasons(rejects) == [("frame_order", "UVO/all/x", "", 0)]


@pytest.mark.parametrize("folder", ["JPEGImages/", ""])
@pytest.mark.parametrize("images", ["", "/JPEGImages"])
def test_videos_of_revos_are_found_in_both_layouts(tmp_path, folder, images):
    write(tmp_path, revos(folder))
    rows, rejects = read_all(reader_of("revos", tmp_path, images=f"{tmp_path}{images}"))
    found = {row["image_uri"] for row in rows}
    if images and not folder:
        assert not rows and {one["reason"] for one in rejects} == {"missing_image"}
    else:
        assert found == {f"{tmp_path}/{folder}UVO/all/x/{name}.jpg" for name in FRAMES}


def test_masks_may_lie_elsewhere(tmp_path):
    write(tmp_path, {**mevis(), **ytvos()})
    expected = [read_all(reader_of(layout, tmp_path)) for layout in ("mevis", "ytvos")]
    (tmp_path / "mask_dict.json").rename(tmp_path / "other.json")
    (tmp_path / "train/Annotations").rename(tmp_path / "maps")
    moved = reader_of("mevis", tmp_path, video_masks=f"{tmp_path}/other.json")
    assert read_all(moved) == expected[0]
    rows, _ = read_all(reader_of("ytvos", tmp_path, video_masks=f"{tmp_path}/maps"))
    assert [masks_in(row) for row in rows] == [masks_in(row) for row in expected[1][0]]


def test_a_frame_without_any_mask_has_the_size_of_its_video(tmp_path):
    mask_dict = {**MASK_DICT, "0": [None, None, rle(B)], "1": [None] * 3}
    write(tmp_path, mevis(mask_dict=mask_dict))
    rows, _ = read_all(reader_of("mevis", tmp_path))
    assert [(row["height"], row["width"]) for row in rows] == [(HEIGHT, WIDTH)] * 3
    write(tmp_path, {"mask_dict.json": {name: [None] * 3 for name in "012"}})
    rows, _ = read_all(reader_of("mevis", tmp_path))  # whose images tell
    assert [(row["height"], row["width"]) for row in rows] == [(HEIGHT, WIDTH)] * 3


@pytest.mark.slow
@pytest.mark.numerics
def test_a_file_of_masks_larger_than_memory_is_indexed_on_the_disk(tmp_path, monkeypatch):
    videos, mask_dict = {}, {}
    for number in range(40):
        own = {str(place): expression(f"thing {place}", 10 * number + place) for place in range(3)}
        videos[f"v{number}"] = {"frames": FRAMES, "expressions": own}
        mask_dict |= {str(10 * number + place): MASK_DICT[str(place)] for place in range(3)}
    mask_dict["é"] = ["ü" * 50]  # characters of several bytes before others
    files = mevis(videos, dict(reversed(mask_dict.items())), names=videos)
    files["mask_dict.json"] = json.dumps(files["mask_dict.json"], ensure_ascii=False, indent=1).encode()
    write(tmp_path, files)
    expected = read_all(reader_of("mevis", tmp_path))
    assert len(expected[0]) == 120 and masks_in(expected[0][0]) == {"0": IN_A, "1": IN_B, "2": None}
    monkeypatch.setattr(external_sort, "RUN_ROWS", 7)
    monkeypatch.setattr(json_stream, "PIECE_BYTES", 64)
    assert read_all(reader_of("mevis", tmp_path)) == expected
    monkeypatch.setattr(type(reader_of("mevis", tmp_path)), "max_head_bytes", 100)
    head = reader_of("mevis", tmp_path).head(50)
    assert not head.items and head.more and head.unlisted == 50


def test_items_of_one_video_share_its_frames(tmp_path):
    write(tmp_path, videorefer(refer_item(), refer_item(8, frame_idx="0", caption="Another.")))
    rows, _ = read_all(reader_of("videorefer", tmp_path))
    assert [row["image_id"] for row in rows] == list(FOUND["videorefer"])
    assert list(masks_in(rows[0])) == ["7-1", "7-2", "8-1", "8-2"]
    assert [said_in(row) for row in rows] == [{"8": ["8-1"]}, {"7": ["7-1"]}, {}]


# ---------------------------------------------------------------- options

WRONG = {
    "no layout": ({"video_layout": None}, "needs --video-layout, one of sav, sav_masks, mevis"),
    "masklets": ({"masklets": "manual"}, "masklets is for --video-layout sav, not mevis"),
    "masks": ({"video_layout": "sav", "video_masks": "m"}, "video-masks is for --video-layout mevis, revos"),
    "absent": ({"video_layout": "sav", "absent_targets": "no_target"}, "absent-targets is for"),
    "no frame": ({"frame_path": "{video}.jpg"}, "frame-path must be text with"),
    "another field": ({"frame_path": "{frame}{0}.jpg"}, "frame-path must be text with"),
    "no field": ({"frame_path": "{frame.__class__}"}, "frame-path must be text with"),
}


@pytest.mark.parametrize("what", WRONG)
def test_options_that_do_not_go_together_are_refused(what):
    options, message = WRONG[what]
    with pytest.raises(ConfigError, match=message):
        build_reader("video", **{"source": "a", "images": "b", "video_layout": "mevis", **options})


# ---------------------------------------------------------------- synthetic videos


def synthetic(root: str, layout: Any) -> tuple[ShapesConfig, Reader]:
    config = ShapesConfig(
        out=f"{root}/{layout}", format=layout, num_images=5, seed=4, frames=7, world=WorldConfig.square(48)
    )
    write_shapes(config)
    place = {
        "sav": {"source": f"{config.out}/sav_train", "images": f"{config.out}/frames"},
        "mevis": {
            "source": f"{config.out}/train/meta_expressions.json",
            "images": f"{config.out}/train/JPEGImages",
        },
        "revos": {"source": f"{config.out}/meta_expressions_train_.json", "images": config.out},
        "ytvos": {
            "source": f"{config.out}/meta_expressions/train/meta_expressions.json",
            "images": f"{config.out}/train/JPEGImages",
        },
    }[layout]
    return config, build_reader("video", video_layout=layout, dataset="s", **place)


def check_synthetic(config: ShapesConfig, rows: list[dict[str, Any]]) -> None:
    """What was written is read back: frames, masks bit for bit under the ids of their objects, and texts."""
    found = {row["image_id"]: row for row in rows}
    assert len(rows) == len(found) == config.num_images * config.frames
    form, vanished = config.format, 0
    counts = {"single": 2, "multi": 1, "none": 1} if form != "ytvos" else {"single": 2, "multi": 0, "none": 0}
    for index in range(config.num_images):
        scene = make_scene(config.seed, index, config.world)
        rng = np.random.default_rng([scene.seed, scene.index, LANGUAGE_STREAM])
        said = [] if form == "sav" else referring_expressions(scene, rng, families=("attributes",), **counts)
        named = sorted({target for one in said for target in one.targets})
        chosen = named if form in ("mevis", "revos") else range(len(scene.objects))
        shown = list(views(scene, config.frames))
        ever = {i for i in chosen if any(view.visible[i].any() for view in shown)}
        if form == "ytvos":  # what no frame shows is in no file
            chosen, said = sorted(ever), [one for one in said if one.targets[0] in ever]
        first = {"sav": 0, "ytvos": 1}.get(form, mask_id(scene, 1))
        ids = {i: str(first + i) for i in chosen}
        for view in shown:
            name = f"sav_{index + 1:06d}/{4 * view.number:05d}"
            if form != "sav":
                folder = "shapes/train/" if form == "revos" else ""
                name = f"{folder}{index + 1:012d}/{view.number:05d}"
            row = found[name]
            there = {i: masks.encode(view.visible[i]) if view.visible[i].any() else None for i in chosen}
            assert masks_in(row) == {ids[i]: there[i] for i in chosen}
            vanished += sum(there[i] is None for i in ever)
            expected = {}
            for one in said:
                present = [ids[i] for i in one.targets if there[i]]
                if present or not set(one.targets) & ever:
                    expected[one.text] = present
            assert {made["text"]: made["mask_ids"] for made in row["annotations"]} == expected
            if form == "revos":
                kinds = {one.text: ["referring" if one.targets else "nan"] for one in said}
                assert all(made["tags"] == kinds[made["text"]] for made in row["annotations"])
            if form == "ytvos":
                labels = {mask["mask_id"]: mask["label"] for mask in row["masks"]}
                assert labels == {ids[i]: scene.objects[i].kind for i in chosen}
            assert read_size_hw(row["image_uri"]) == (row["height"], row["width"]) == view.scene.size_hw
    assert vanished


@pytest.mark.parametrize("layout", ["sav", "mevis", "revos", "ytvos"])
def test_synthetic_videos_are_read_back_as_they_were_written(tmp_path, layout):
    config, reader = synthetic(str(tmp_path), layout)
    assert is_of_shapes(reader.source)
    rows, rejects = read_all(reader)
    check_synthetic(config, rows)
    assert {one["reason"] for one in rejects} <= {"target_absent", "targets_nowhere"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", PUBLISHED)
def test_videos_on_s3_are_read_as_on_a_disk(tmp_path, bucket, layout):
    for root in (tmp_path, bucket):
        write(root, PUBLISHED[layout]())
    here, there = reader_of(layout, tmp_path), reader_of(layout, bucket)
    inputs = inputs_of(there)
    assert inputs == inputs_of(here)
    assert there.witness() == here.witness() and there.witness(inputs) == here.witness(inputs)
    text = json.dumps(read_all(here)).replace(str(tmp_path), bucket)
    assert json.dumps(read_all(there)) == text


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sav", "mevis", "revos", "ytvos"])
def test_synthetic_videos_on_s3_are_read_back_as_they_were_written(bucket, layout):
    config, reader = synthetic(bucket, layout)
    check_synthetic(config, read_all(reader)[0])
