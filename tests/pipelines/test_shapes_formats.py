"""Scenes in layouts of texts and boxes are read back as they were written, by the readers of the datasets and
as the registry names their files."""

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest

from pipelines.ingestion.corpora import CorpusConfig, CorpusSpec, is_of_shapes, require_source
from pipelines.ingestion.image_source import read_image
from pipelines.ingestion.known_datasets import parts_of
from pipelines.ingestion.readers import READERS
from pipelines.ingestion.synthetic.config import ExpressionsConfig, Format, ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from pipelines.ingestion.synthetic.scenes import LANGUAGE_STREAM, crowds
from samtok import masks
from samtok.errors import ConfigError
from samtok.shapes import (
    Expression,
    Scene,
    ShapeObject,
    WorldConfig,
    description,
    make_scene,
    referring_expressions,
    relations,
)
from tests.readers import read_all

WORLD = WorldConfig(sizes_hw=((48, 64), (56, 40)))
SCENES = [make_scene(4, index, WORLD) for index in range(3, 9)]
CROWD_SHARE = 0.3

Mark = tuple[Any, ...]
"""RLE or box, label, and flags of a mask."""


class Told(NamedTuple):
    """An annotation, with its masks themselves instead of their ids."""

    task: str
    text: str | None
    marks: list[Mark]
    tags: Sequence[str] = ()
    payload: Any = None


class Row(NamedTuple):
    """What a row is to hold, in any order."""

    scene: Scene
    marks: list[Mark]
    told: list[Told]


def name_of(scene: Scene) -> str:
    return f"{scene.index + 1:012d}.png"


def mark(mask: np.ndarray, label: str | None = None) -> Mark:
    return masks.encode(mask), label


def box(shape: ShapeObject, label: str | None = None, *flags: str) -> Mark:
    left, top, right, bottom = shape.box_xyxy
    return tuple(map(float, (left, top, right + 1, bottom + 1))), label, *flags, "box_only"


def in_turns(texts: list[str]) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"turns": [{"role": roles[place % 2], "text": text} for place, text in enumerate(texts)]}


def said_of(scene: Scene, **counts: Any) -> list[Expression]:
    rng = np.random.default_rng([scene.seed, scene.index, LANGUAGE_STREAM])
    asked = ExpressionsConfig(**counts)
    numbers = {"single": asked.single, "multi": asked.multi, "none": asked.none}
    return referring_expressions(scene, rng, **numbers, families=asked.families)


def singles(scene: Scene) -> list[tuple[str, ShapeObject]]:
    return [(one.text, scene.objects[one.targets[0]]) for one in said_of(scene, multi=0, none=0)]


# ---------------------------------------------------------------- the command for what is not there

OTHER_NAMES = {
    ("parquet", ""): "easyr1",
    ("regions", ""): "groundingsuite",
    ("labelmap", "ade20k_instances"): "ade20k",
    ("labelmap", "sceneparsing"): "ade20k",
    ("labelmap", "cityscapes"): "cityscapes",
    ("video", "sav"): "sav",
    ("video", "sav_masks"): "sav",
    ("video", "mevis"): "mevis",
    ("video", "revos"): "revos",
    ("video", "ytvos"): "ytvos",
    ("video", "videorefer"): "mevis",
    ("coconut_parquet", ""): "panoptic",
}
"""Formats of readers that have another name, or several, by the kind that is read."""
OWN_NAMES = {
    (reader, ""): reader for reader in READERS.keys() - {"mixture"} - {one for one, _ in OTHER_NAMES}
}


@pytest.mark.parametrize(("reader", "kind"), sorted(OWN_NAMES | OTHER_NAMES))
def test_the_command_names_the_format_of_the_reader(tmp_path, reader: Any, kind):
    form = (OWN_NAMES | OTHER_NAMES)[reader, kind]
    option = {"labelmap": "encoding", "video": "video_layout"}.get(reader)
    more: dict[str, Any] = {} if option is None else {option: kind}
    if reader not in ("sa1b", "dam_tar", "parquet", "gar"):
        more["images"] = str(tmp_path)
    config = CorpusConfig(reader=reader, source=str(tmp_path / "none"), **more)
    with pytest.raises(ConfigError, match=rf"python jobs/make_shapes\.py --format {form} --out"):
        require_source(config)
    assert form in get_args(Format)


# ---------------------------------------------------------------- what each layout is to hold


def captioned(scene: Scene, **more: Any) -> Row:
    """A row with a caption of each shape."""
    marks = [mark(shape.mask) for shape in scene.objects]
    told = [
        Told("region_caption", description(shape), [one], **more)
        for shape, one in zip(scene.objects, marks, strict=True)
    ]
    return Row(scene, marks, told)


def discussed(scene: Scene) -> Row:
    """A row with the conversation about all shapes."""
    marks = [mark(shape.mask) for shape in scene.objects]
    turns = []
    for i, shape in enumerate(scene.objects):
        turns += [f"What is <mask {i}>?", description(shape)]
    for i, word, j in relations(scene):
        turns += [f"Where is <mask {i}>, seen from <mask {j}>?", f"<mask {i}> is {word} <mask {j}>."]
    if len(turns) == 2:
        payload = {"question": turns[0], "answer": turns[1]}
        return Row(scene, marks, [Told("region_qa", None, marks, (), payload)])
    return Row(scene, marks, [Told("dialogue", None, marks, (), in_turns(turns))])


def osprey(found: Callable[[Scene], Row]) -> dict[str, Row]:
    return {f"COCO_train2014_{name_of(scene)}": found(scene) for scene in SCENES}


def groundingsuite() -> dict[str, Row]:
    rows = {}
    for scene in SCENES:
        row = Row(scene, [], [])
        for one in said_of(scene, none=0):
            mask = np.any([scene.objects[i].mask for i in one.targets], axis=0)
            kinds = {scene.objects[i].kind for i in one.targets}
            row.marks.append(mark(mask, min(kinds) if len(kinds) == 1 else "shape"))
            ys, xs = np.nonzero(mask)
            payload = {"box_xyxy": [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]}
            tags = ["single-object" if len(one.targets) == 1 else "multi-object"]
            row.told.append(Told("referring", one.text, row.marks[-1:], tags, payload))
        rows[f"test/{name_of(scene)}"] = row
    return rows


def mdvp() -> dict[str, Row]:
    more = {"tags": ["natural"], "payload": {"question": "What is in the marked region?"}}
    return {f"shapes/images/{name_of(scene)}": captioned(scene, **more) for scene in SCENES}


def dlc() -> dict[str, Row]:
    """Questions are compared by what they ask; ``test_questions_of_dlc_judge`` looks at the rest."""
    rows = {}
    for scene in SCENES:
        marks = [mark(shape.mask, shape.kind) for shape in scene.objects]
        told = [
            Told("region_caption", None, [one], (), {"class_name": shape.kind})
            for shape, one in zip(scene.objects, marks, strict=True)
        ]
        rows[str(scene.index + 1)] = Row(scene, marks, told)
    return rows


def easyr1() -> dict[str, Row]:
    """A row for each expression."""
    rows: dict[str, Row] = {}
    for number, part in enumerate((SCENES[:4], SCENES[4:])):
        prompts = [(scene, one) for scene in part for one in said_of(scene)]
        for place, (scene, one) in enumerate(prompts):
            shapes = [scene.objects[i] for i in one.targets]
            marks = [mark(shape.mask) for shape in shapes]
            answer = (", ".join(map(description, shapes)) or "No target") + "."
            text = f"<image>\nPlease segment {one.text}."
            told = [Told("referring", text, marks, ["gres"], {"answer": answer})]
            rows[f"train-{number:05d}-of-00002-{place:08d}"] = Row(scene, marks, told)
    return rows


def visual7w() -> dict[str, Row]:
    rows = {}
    for scene in SCENES:
        told = [
            Told("referring", f"Which is {text}?", [box(shape, shape.kind)]) for text, shape in singles(scene)
        ]
        rows[f"v7w_{scene.index + 1}.png"] = Row(scene, [one.marks[0] for one in told], told)
    return rows


def invig() -> dict[str, Row]:
    rows = {}
    for scene in SCENES:
        names = list(map(description, scene.objects))
        told = []
        for shape in scene.objects:
            if names.count(description(shape)) == 1:
                asked = ("What colour is it?", f"It is {shape.colour}.")
                said = (f"Find the {shape.kind}.", *asked, "Is it small or large?", f"It is {shape.size}.")
                told.append(Told("dialogue", None, [box(shape)], (), in_turns([*said, "<mask 0>"])))
        rows[name_of(scene)] = Row(scene, [one.marks[0] for one in told], told)
    return {name: row for name, row in rows.items() if row.told}


def copsref() -> dict[str, Row]:
    """Each ref has a box of its own, though another one may mean the same shape."""
    rows = {}
    for scene in SCENES:
        told = [Told("referring", text, [box(shape)]) for text, shape in singles(scene)]
        rows[f"{scene.index + 1}.jpg"] = Row(scene, [one.marks[0] for one in told], told)
    return rows


def v3det() -> dict[str, Row]:
    rows = {}
    for scene in SCENES:
        flags = [("crowd",) * crowd for crowd in crowds(scene, CROWD_SHARE)]
        marks = [box(s, s.kind, *more) for s, more in zip(scene.objects, flags, strict=True)]
        rows[str(scene.index + 1)] = Row(scene, marks, [])
    return rows


class Case(NamedTuple):
    """A layout as a dataset of the registry."""

    known: str
    split: str
    expected: Callable[[], dict[str, Row]]
    changed: Mapping[str, str] = MappingProxyType({})
    """What differs from the registry."""
    config: Mapping[str, Any] = MappingProxyType({})


TALK = {"source": "osprey_conversation.json"}
CASES = {
    "osprey": Case("osprey", "train", lambda: osprey(captioned)),
    "osprey, polygons": Case("osprey", "train", lambda: osprey(discussed), TALK, {"segmentation": "polygon"}),
    "groundingsuite": Case("groundingsuite", "test", groundingsuite),
    "mdvp": Case("mdvp", "test", mdvp),
    "dlc": Case("dlc", "test", dlc),
    "dam_tar": Case(
        "dam-tar",
        "SAM",
        lambda: {
            f"dam_{i // 4:06d}/{scene.index + 1:012d}": captioned(scene) for i, scene in enumerate(SCENES)
        },
    ),
    "easyr1": Case("samtok-rl", "train", easyr1, {"source": "."}),
    "visual7w": Case("visual7w", "val", visual7w),
    "invig": Case("invig", "train", invig),
    "copsref": Case("copsref", "train", copsref),
    "v3det": Case("v3det", "val", v3det, {}, {"crowd_share": CROWD_SHARE}),
}


def rows_read(root: str, case: str) -> list[dict[str, Any]]:
    """Writes a corpus and reads it by its entry in the registry; nothing may be rejected."""
    about = CASES[case]
    layout: Any = case.partition(",")[0]
    config = ShapesConfig(
        out=root,
        format=layout,
        num_images=len(SCENES),
        first_index=SCENES[0].index,
        seed=4,
        world=WORLD,
        split=about.split,
        image_format="jpg" if layout in ("dam_tar", "copsref") else "png",
        images_per_folder=4,
        **about.config,
    )
    num_masks = write_shapes(config)
    parts = {**parts_of(about.known, root, about.split), **about.changed}
    del parts["root"]
    spec = CorpusSpec.of_parts(parts, case, "corpora").below(root)
    assert is_of_shapes(spec.corpus.source)
    rows, rejects = read_all(spec.reader())
    assert not rejects
    if layout != "visual7w":  # where only boxes that are asked for are read
        assert num_masks == sum(len(row["masks"]) for row in rows)
    return rows


def marks_in(row: dict[str, Any]) -> dict[str, Mark]:
    assert all((mask["rle"] is None) == ("box_only" in mask["flags"]) for mask in row["masks"])
    return {
        mask["mask_id"]: (mask["rle"] or tuple(mask["box_xyxy"]), mask["label"], *mask["flags"])
        for mask in row["masks"]
    }


def told_in(row: dict[str, Any]) -> list[Told]:
    marks = marks_in(row)
    return [
        Told(
            made["task"],
            made["text"],
            [marks[mask_id] for mask_id in made["mask_ids"]],
            tuple(made["tags"]),
            json.loads(made["payload"]) if made["payload"] else None,
        )
        for made in row["annotations"]
    ]


def in_any_order(found: Sequence[Any]) -> list[str]:
    return sorted(json.dumps(one, default=float, sort_keys=True) for one in found)


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("case", CASES)
def test_scenes_are_read_back_as_they_were_written(tmp_path, case):
    rows, expected = rows_read(str(tmp_path), case), CASES[case].expected()
    assert len(rows) == len(expected) and {row["image_id"] for row in rows} == expected.keys()
    for row in rows:
        scene, marks, told = expected[row["image_id"]]
        image = read_image(row["image_uri"], expected_hw=(row["height"], row["width"]))
        if case in ("dam_tar", "copsref"):
            assert np.abs(image.astype(int) - scene.image).mean() < 4
        else:
            assert (image == scene.image).all()
        found = [
            one._replace(payload={"class_name": one.payload["class_name"]}) if case == "dlc" else one
            for one in told_in(row)
        ]
        shown = list(marks_in(row).values())
        if case == "visual7w":  # questions may share a box
            marks = list({one[0]: one for one in marks}.values())
        assert in_any_order(shown) == in_any_order(marks)
        assert in_any_order(found) == in_any_order(told)


def test_questions_of_dlc_judge_what_is_there_and_what_is_not(tmp_path):
    scenes = {str(scene.index + 1): scene for scene in SCENES}
    for row in rows_read(str(tmp_path), "dlc"):
        shapes = {masks.encode(shape.mask): shape for shape in scenes[row["image_id"]].objects}
        for one in told_in(row):
            words = description(shapes[one.marks[0][0]]).split()
            asked = one.payload["questions"]
            for question in asked:
                word = question["question"].removeprefix("Does the description call the object ")[:-1]
                score = dict(question["choices"])["Yes"]
                assert (word in words) == (question["type"] == "positive") == (score == 1)
            assert {question["type"] for question in asked} == {"positive", "negative"}


def test_an_answer_of_visual7w_is_not_among_its_wrong_choices(tmp_path):
    rows_read(str(tmp_path), "visual7w")
    body = json.loads((tmp_path / "dataset_v7w_pointing.json").read_bytes())
    ids = {one["box_id"] for one in body["boxes"]}
    assert len(ids) == len(body["boxes"]) == sum(len(scene.objects) for scene in SCENES)
    pairs = [pair for image in body["images"] for pair in image["qa_pairs"]]
    assert pairs and all({pair["answer"], *pair["multiple_choices"]} <= ids for pair in pairs)
    assert not any(pair["answer"] in pair["multiple_choices"] for pair in pairs)
