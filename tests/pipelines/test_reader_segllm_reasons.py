"""SegLLM's masks of ReasonSeg: polygons in a file for each image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.ingestion.segllm_rounds import NO_TARGET, rounds_of
from samtok import masks
from tests.label_maps import reasons
from tests.pipelines.test_reader_segllm import (
    ASK,
    HEIGHT,
    IMAGE,
    TWO_ROUNDS,
    WIDTH,
    decode,
    encode,
    payload,
    talk,
    write,
)
from tests.readers import read_all

SQUARE, CORNER = [[1, 1], [4, 1], [4, 4], [1, 4]], [[3, 3], [5, 3], [5, 5], [3, 5]]


def write_polygons(folder: Path, shapes: Any, *, encoding: str = "utf-8") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"text": ["caf\u00e9"], "is_sentence": True, "shapes": shapes}, ensure_ascii=False)
    (folder / "COCO_train2014_000000000009.json").write_bytes(text.encode(encoding))


def shape(points: Any, label: Any = "target") -> dict[str, Any]:
    return {"label": label, "points": points}


def reason_seg(*ids: str) -> dict[str, Any]:
    return talk(ASK, " and ".join(decode(one, "reason_seg") for one in ids))


@pytest.mark.parametrize("below", ["", "train2014"])
def test_reason_seg_has_one_mask_for_each_image_whatever_its_id(tmp_path, below):
    shapes = [shape(SQUARE), shape(CORNER), shape([[2, 2], [3, 2], [3, 3]], "ignore"), shape([], "flag")]
    write_polygons(tmp_path / "polygons" / below, shapes, encoding="cp1252")
    reader = write(tmp_path, reason_seg("", "'", "none", "7", "a_b"), reason_seg=f"{tmp_path}/polygons")
    (row,), rejects = read_all(reader)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:5, 1:5] = expected[3:6, 3:6] = True  # what is ignored is no hole
    assert not rejects and (row["height"], row["width"]) == (HEIGHT, WIDTH)
    assert [(mask["mask_id"], mask["rle"]) for mask in row["masks"]] == [
        ("reason_seg:target", masks.encode(expected))
    ]
    assert payload(row)["rounds"] == [{"targets": [0], "references": []}]
    assert set(reader.witness()) == {"mr.json", "masks of refcoco", "masks of reason_seg"}
    assert reader.head(1).items


def test_a_reference_without_an_id_between_colons_is_none_of_reason_seg_too():
    found = rounds_of(talk(ASK, f"[MASK-DECODE:a:none::{IMAGE}:reason_seg]"))
    assert found.rounds == [{"targets": [0], "references": [], "task": "a"}]
    found = rounds_of(talk(ASK, decode("", "reason_seg"), f"And {encode('', dataset='reason_seg')}?", "It."))
    assert found.rounds[1]["references"] == [{"mask": 0, "round": 0, "form": "mask"}]
    assert rounds_of(talk(ASK, decode(""))).turns[1]["text"] == NO_TARGET


REASON_FAULTS: dict[str, tuple[Any, str]] = {
    "no file": (None, "unknown_mask"),
    "no JSON": (b"{", "json"),
    "another object": (b'{"shapes": {}}', "sidecar_layout"),
    "no label": ([shape(SQUARE, None)], "label"),
    "no points": ([shape([])], "points"),
    "endless points": ([shape([[0, 0], [1, float("inf")], [2, 2]])], "points"),
    "too many corners": ([shape([[0, 0]] * (2**18 + 1))], "too_large"),
}


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("fault", REASON_FAULTS)
def test_polygons_at_fault_cost_their_mask_and_the_conversation_stays(tmp_path, fault):
    content, reason = REASON_FAULTS[fault]
    write_polygons(tmp_path / "polygons", content if isinstance(content, list) else [])
    path = tmp_path / "polygons" / "COCO_train2014_000000000009.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.unlink()
    reader = write(tmp_path, reason_seg(""), TWO_ROUNDS, reason_seg=f"{tmp_path}/polygons")
    (row,), rejects = read_all(reader)
    assert reasons(rejects) == [(reason, IMAGE, "reason_seg:target", 1)]
    assert len(row["masks"]) == 2 and len(row["annotations"]) == 2


def test_polygons_without_a_target_are_an_empty_mask(tmp_path):
    write_polygons(tmp_path / "polygons", [shape(SQUARE, "ignore"), shape([[0, 0], [3, 3]])])
    (row,), rejects = read_all(write(tmp_path, reason_seg(""), reason_seg=f"{tmp_path}/polygons"))
    assert not rejects and [mask["flags"] for mask in row["masks"]] == [["empty"]]
