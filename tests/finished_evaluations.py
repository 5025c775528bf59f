"""Folders of finished evaluations of MLLMs, written without a model: answers, manifest, metrics, lineage."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines import shards
from pipelines.mllm_evaluation.rows import ANSWER_ROW
from samtok import masks
from samtok.metrics import referring
from samtok.metrics.referring import MODES, Samples
from samtok.metrics.text_masks import word_scores
from samtok.words import format_words

SIDE, NUM_CODES = 40, 64
KINDS = ("one", "several", "none")
"""What is asked about each image; also the tags of questions."""


@dataclass(frozen=True)
class Asked:
    """What evaluations were asked, and by which settings.

    Attributes:
        seed: Decides the masks; equal ones are equal questions.
        lost: Images that could not be read.
    """

    benchmark: str = "gres"
    dataset: str = "toy"
    split: str = "val"
    num_images: int = 8
    seed: int = 0
    lost: int = 0
    limit: int | None = None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The entries of a fingerprint that decide the questions."""
        chat = f"{self.dataset}-{self.split}-{self.seed}-{self.num_images}"
        of_chats = {"chat": chat, "tasks": [self.benchmark], "turns": "last", "limit": self.limit}
        return {"benchmark": self.benchmark, **of_chats}


def write_evaluation(
    folder: Path,
    asked: Asked | None = None,
    *,
    skill: float = 0.5,
    seed: int = 1,
    images: Path | None = None,
    per_shard: int = 3,
    **settings: Any,
) -> Path:
    """Writes a finished evaluation and returns its folder.

    Args:
        skill: How near answers are to the truth, in [0, 1]; ``seed`` decides where they are not.
        images: Where the images are written; by default they are nowhere.
        per_shard: Images of a data file.
        settings: Further entries of ``measured_with``.
    """
    asked = asked or Asked()
    rows = rows_of(asked, skill=skill, seed=seed, images=images)
    write_answers(folder, rows, per_shard=per_shard * len(KINDS))
    own = {"model_sha256": f"{seed:x}" * 64, "precision": "float32", **settings}
    write_json(folder, "metrics.json", metrics_of(rows, asked, own))
    chats = {"uri": f"runs/{asked.dataset}", "digest": asked.fingerprint["chat"], "fingerprint": {}}
    lineage = {"model": {"uri": f"models/{seed}", "sha256": own["model_sha256"]}, "chat": chats}
    write_json(folder, "lineage.json", {**lineage, "versions": {"samtok": "0.1.0"}})
    return folder


def rows_of(asked: Asked, *, skill: float, seed: int, images: Path | None = None) -> list[dict[str, Any]]:
    """Returns answers to all questions, as their table has them."""
    truths, answers = np.random.default_rng(asked.seed), np.random.default_rng(seed)
    rows = []
    for number in range(asked.num_images):
        uri = f"/nowhere/{number}.png" if images is None else str(images / f"{asked.dataset}-{number}.png")
        pixels = truths.integers(90, 140, (SIDE, SIDE, 3), dtype=np.uint8)
        for kind in KINDS:
            truth = [_rectangle(truths) for _ in range(KINDS.index(kind) + 1 if kind != "none" else 0)]
            pixels[np.any(truth, axis=0) if truth else np.zeros((SIDE, SIDE), bool)] = (200, 60, 60)
            answer = _answer(truth, skill, answers)
            is_lost = number >= asked.num_images - asked.lost
            rows.append(_row(asked, number, kind, uri, truth, None if is_lost else answer))
        if images is not None:
            images.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(uri)
    return rows


def write_answers(
    folder: Path, rows: Sequence[dict[str, Any]], *, per_shard: int, schema: pa.Schema = ANSWER_ROW
) -> None:
    """Writes the data files of an evaluation and their list."""
    records = []
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), per_shard):
        part = list(rows[start : start + per_shard])
        name = f"data/shard-{len(records):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema), folder / name, row_group_size=4)
        records.append({"shard": len(records), "data": {"file": name}, "counts": {"samples_in": len(part)}})
    write_json(folder, "_MANIFEST.json", {"totals": {"samples_in": len(rows)}, "shards": records})


def write_json(folder: Path, name: str, body: Any) -> None:
    """Writes a file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(body))


def change_json(folder: Path, name: str, **entries: Any) -> None:
    """Gives a file of a folder other entries; those of None are taken away."""
    body = {**json.loads((folder / name).read_text()), **entries}
    write_json(folder, name, {key: value for key, value in body.items() if value is not None})


def metrics_of(rows: Sequence[dict[str, Any]], asked: Asked, own: dict[str, Any]) -> dict[str, Any]:
    """Returns ``metrics.json`` of answers."""
    nothing = {"codes": [], "intersection_px": 0, "predicted_px": 0, "box_xyxy": None}
    modes = {}
    for mode in MODES:
        silent = [{**row, mode: nothing, "problem": None} for row in rows]
        tags = {tag: _section([row for row in rows if tag in row["tags"]], asked, mode) for tag in KINDS}
        modes[mode] = {
            "read": {"min_pixels": 0},
            "model": {**_section(rows, asked, mode), "by_tag": tags},
            "no_target": _section(silent, asked, mode),
        }
    skipped = sum(row["problem"] is not None for row in rows)
    counts = {"expected": len(rows), "scored": len(rows) - skipped, "skipped": skipped}
    measured_with = {**asked.fingerprint, **own, "questions": shards.digest(asked.fingerprint)}
    return {"measured_with": measured_with, "benchmark": asked.benchmark, "counts": counts, "modes": modes}


def _section(rows: Sequence[dict[str, Any]], asked: Asked, mode: Any) -> dict[str, Any]:
    samples = samples_of(rows, mode)
    used = [row for row in rows if mode == "strict" or row["problem"] is None]
    predicted = [None if row["problem"] else _codes(row[mode]["codes"]) for row in used]
    benchmark = {"gres": referring.gres, "res": referring.res, "rec": referring.rec}[asked.benchmark]
    return {
        "counts": referring.counts(samples),
        asked.benchmark: benchmark(samples, mode=mode),
        "targets": referring.targets(samples, mode=mode),
        "words": word_scores([_codes(row["truth_codes"]) for row in used], predicted),
    }


def samples_of(rows: Sequence[dict[str, Any]], mode: str) -> Samples:
    """Returns answers as metrics take them."""
    none = (0, 0, 0, 0)
    found = [row[mode] or {"intersection_px": 0, "predicted_px": 0, "box_xyxy": None} for row in rows]
    return Samples(
        intersection_px=np.array([one["intersection_px"] for one in found], np.int64),
        predicted_px=np.array([one["predicted_px"] for one in found], np.int64),
        target_px=np.array([row["target_px"] for row in rows], np.int64),
        predicted_box=np.array([one["box_xyxy"] or none for one in found], np.int64).reshape(-1, 4),
        target_box=np.array([row["target_box_xyxy"] or none for row in rows], np.int64).reshape(-1, 4),
        skipped=np.array([row["problem"] is not None for row in rows], bool),
        keys=tuple(row["key"] for row in rows),
    )


def _row(
    asked: Asked,
    number: int,
    kind: str,
    uri: str,
    truth: Sequence[np.ndarray],
    answer: Sequence[np.ndarray] | None,
) -> dict[str, Any]:
    whole = _union(truth)
    codes, said = ([_codes_of(mask) for mask in some or []] for some in (truth, answer))
    row = {
        "dataset": asked.dataset,
        "split": asked.split,
        "image_id": str(number),
        "sample_id": f"{number}/{kind}",
        "turn": 1,
        "round": 1,
        "task": asked.benchmark,
        "tags": [kind],
        "image_uri": uri,
        "height": SIDE,
        "width": SIDE,
        "question": f"Please segment {kind} in this image.",
        "key": f"{number}_{'thing' if kind == 'one' else kind}",
        "truth": _words(codes),
        "truth_codes": codes,
        "truth_rle": masks.encode(whole) if truth else None,
        "truth_masks": [],
        "thought_tokens": None,
        "about": None,
        "asked_rle": None,
        "asked_box_xyxy": None,
        "unfinished": False,
        "target_px": int(whole.sum()),
        "target_box_xyxy": list(masks.box_of(whole) or ()) or None,
    }
    if answer is None:
        return {**dict.fromkeys(ANSWER_ROW.names), **row, "problem": "image_missing"}
    union = _union(answer)
    predicted = {
        "codes": said,
        "rle": masks.encode(union),
        "intersection_px": int((union & whole).sum()),
        "predicted_px": int(union.sum()),
        "box_xyxy": list(masks.box_of(union) or ()) or None,
        "masks": [],
    }
    about = {"generated": _words(said), "num_tokens": 8, "cut": False, "num_malformed": 0}
    return {**row, **about, "strict": predicted, "official": predicted, "problem": None}


def _rectangle(rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, 20, 2)
    height, width = rng.integers(6, 18, 2)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def _answer(truth: Sequence[np.ndarray], skill: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns masks that are the true ones moved, fewer than they are, or found where there is nothing."""
    moved = [np.roll(mask, rng.integers(0, 9, 2), (0, 1)) for mask in truth]
    found = [mask if rng.random() < skill else other for mask, other in zip(truth, moved, strict=True)]
    if rng.random() > skill and len(found) < 2:
        return [] if found else [_rectangle(rng)]
    return found


def _union(some: Sequence[np.ndarray]) -> np.ndarray:
    return np.any(list(some), axis=0) if len(some) else np.zeros((SIDE, SIDE), bool)


def _codes_of(mask: np.ndarray) -> list[int]:
    top, left = np.argwhere(mask)[0]
    return [int(top), int(left)]


def _codes(codes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(word) for word in codes]


def _words(codes: Sequence[Sequence[int]]) -> str:
    return ", ".join(format_words(tuple(one), num_codes=NUM_CODES) for one in codes) or "No target."
