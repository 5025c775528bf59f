"""Questions are put into slices by what makes them hard, and evaluations have numbers for each slice."""

import json

import numpy as np
import pytest

from pipelines.dialogues.compose import Settings, compose_row
from pipelines.dialogues.scene import Scene
from pipelines.dialogues.slices import slices_of
from pipelines.ingestion.synthetic.config import ExpressionsConfig, ShapesConfig
from pipelines.ingestion.synthetic.corpus import write_shapes
from pipelines.mllm_evaluation.rows import inputs_of
from samtok import masks
from tests.code_rows import NUM_CODES, NUM_LEVELS, annotation, code_mask, code_row
from tests.readers import build_reader, read_all


def mask(mask_id: str, label: str, area_px: int, *flags: str) -> dict:
    return {**code_mask(mask_id, (1, 2), label=label), "area_px": area_px, "flags": list(flags)}


MASKS = [mask("a", "cat", 400), mask("b", "cat", 9), mask("c", "dog", 400, "occluded")]


def of_100_px(*annotations: dict) -> dict:
    return {**code_row(MASKS, list(annotations)), "height": 100, "width": 100}


@pytest.mark.parametrize(
    ("text", "targets", "slices"),
    [
        ("the cat", ["a"], ["same class"]),
        ("the small cat", ["b"], ["same class", "small"]),
        ("the second cat from the left", ["b"], ["ordinal", "same class", "small"]),
        ("the 3rd animal", ["c"], ["occluded", "ordinal"]),
        ("all cats", ["a", "b"], []),
        ("a secondary thing", ["a", "b", "c"], ["occluded"]),
        ("the horse", [], ["no target"]),
    ],
)
def test_a_question_is_in_the_slices_that_make_it_hard(text, targets, slices):
    row = of_100_px(annotation("x", "referring", targets, text=text))
    scene = Scene(row, num_codes=NUM_CODES, num_levels=NUM_LEVELS)
    (item,) = scene.items("referring")
    assert slices_of(item, scene) == slices


def test_slices_become_tags_of_each_question_of_a_chat():
    made = [annotation(name, "referring", [name], text=f"the {name}") for name in ("a", "b")]
    settings = Settings(num_codes=NUM_CODES, num_levels=NUM_LEVELS, tasks={"gres": 1.0}, turns_per_sample=2)
    (sample,) = compose_row(of_100_px(*made), settings).samples
    body = json.loads(json.dumps(sample))
    body["masks"] = [{**one, "rle": _square(sample["images"][0])} for one in sample["masks"]]
    (item,) = inputs_of([body], tasks=["gres"], turns="all")
    tags = {q["key"].rpartition("_")[2]: q["tags"] for q in json.loads(item.payload)["questions"]}
    assert tags == {"the a": ["slice: same class"], "the b": ["slice: same class", "slice: small"]}


def _square(image: dict) -> str:
    return masks.encode(np.ones((image["height"], image["width"]), bool))


def test_the_synthetic_world_counts_and_marks_what_is_hidden(tmp_path):
    asked = ExpressionsConfig(
        single=3, multi=0, none=0, families=("ordinals", "attributes"), mark_hidden=True
    )
    config = ShapesConfig(out=str(tmp_path), num_images=40, format="refer", split="val", expressions=asked)
    write_shapes(config)
    reader = build_reader("refer", source=f"{tmp_path}/grefs.json", images=f"{tmp_path}/val", split="val")
    rows, rejects = read_all(reader)
    made = [one for row in rows for one in row["annotations"]]
    counting = [one for one in made if "ordinal" in one["tags"]]
    assert not rejects and len(counting) > 10
    assert all(" from the " in one["text"] and len(one["mask_ids"]) == 1 for one in counting)
    assert any("occluded" in one["tags"] for one in made)
    assert not all("occluded" in one["tags"] for one in made)
