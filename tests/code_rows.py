"""Rows of words with annotations of all kinds, and small corpora of them; no tokenizer runs."""

import json
import random
from typing import Any

from pipelines import schema, shards
from pipelines.ingestion.reader import Input
from pipelines.planning import plans
from pipelines.tokenization.assemble import summarize
from samtok.words import format_words

NUM_CODES, NUM_LEVELS = 64, 2
WEIGHTS = "5a" * 32


def code_mask(mask_id: str, codes: tuple[int, int], **changed: Any) -> dict[str, Any]:
    """Returns a mask with words; its box is a point unless told otherwise."""
    return {
        "mask_id": mask_id,
        "rle": "04",
        "box_xyxy": [0.0, 0.0, 1.0, 1.0],
        "label": None,
        "flags": [],
        "codes": list(codes),
        "words": format_words(codes, num_codes=NUM_CODES),
        "area_px": 4,
        "iou": None,
        "boundary_iou": None,
        **changed,
    }


def annotation(annotation_id: str, task: str, mask_ids: list[str], **changed: Any) -> dict[str, Any]:
    """Returns an annotation; a payload may be any JSON value."""
    payload = changed.pop("payload", None)
    return {
        "annotation_id": annotation_id,
        "task": task,
        "mask_ids": mask_ids,
        "text": None,
        "tags": [],
        "payload": None if payload is None else json.dumps(payload),
        **changed,
    }


def code_row(
    masks: list[dict[str, Any]], annotations: list[dict[str, Any]], *, image_id: str = "image"
) -> dict[str, Any]:
    """Returns a row of 2 x 2 pixels."""
    return {
        "dataset": "made",
        "split": "train",
        "image_id": image_id,
        "image_uri": f"/images/{image_id}.png",
        "height": 2,
        "width": 2,
        "masks": masks,
        "annotations": annotations,
    }


def random_row(rng: random.Random, image_id: str = "image") -> dict[str, Any]:
    """Returns a row with annotations of all tasks, all of which can be used."""
    labels = [*rng.sample(["cat", "dog", 'a "red" ball', "wheel of a car"], 3), None]
    masks = []
    for number in range(rng.randint(2, 6)):
        x, y = rng.randrange(4), rng.randrange(4)  # few places and codes, so that some are the same
        codes = (rng.randrange(3), rng.randrange(NUM_CODES))
        box = [float(x), float(y), x + 2.0, y + 2.0]
        masks.append(code_mask(f"m{number}", codes, box_xyxy=box, label=rng.choice(labels)))
    names = [mask["mask_id"] for mask in masks]

    def some(least: int = 0, most: int = 4) -> list[str]:
        return rng.sample(names, rng.randint(least, min(most, len(names))))

    annotations = [
        annotation(
            f"ref-{number}", "referring", some(), text=f"the {number} things.", tags=[f"t{number % 2}"]
        )
        for number in range(rng.randint(0, 4))
    ]
    annotations.append(annotation("single", "referring", some(1, 1), text="a thing on the left"))
    annotations.append(annotation("region", "region_caption", some(1, 1), text="A thing.\nIt is small."))
    about = some(1)
    question = {"question": "What is <mask 0> for?", "answer": f"<mask {len(about) - 1}> and <mask 0>"}
    annotations.append(annotation("qa", "region_qa", about, payload=question))
    turns = [("system", "Be brief."), ("user", "Where is it?"), ("assistant", "<mask 0>, there.")]
    said = [{"role": role, "text": text} for role, text in turns]
    annotations.append(annotation("talk", "dialogue", some(1), payload={"turns": said}))
    annotations += [_caption(some(1, 3)), _graph(rng, masks)] if all(m["label"] for m in masks) else []
    return code_row(masks, annotations, image_id=image_id)


def _caption(mask_ids: list[str]) -> dict[str, Any]:
    spans = [
        {"start": 0, "end": 5, "masks": list(range(len(mask_ids)))},
        {"start": 9, "end": 14, "masks": [0]},
    ]
    return annotation(
        "caption", "grounded_caption", mask_ids, text="A cat on a mat.", payload={"spans": spans}
    )


def _graph(rng: random.Random, masks: list[dict[str, Any]]) -> dict[str, Any]:
    count = len(masks)
    triplets = [[rng.randrange(count), rng.choice(["on", "beside"]), rng.randrange(count)] for _ in range(5)]
    names = [mask["mask_id"] for mask in masks]
    return annotation("graph", "scene_graph", names, payload={"triplets": triplets})


def write_words(out: str, rows: list[dict[str, Any]], *, shard_rows: int = 4, **changed: Any) -> str:
    """Writes a finished corpus of words; ``changed`` replaces entries of its fingerprint."""
    size = {"num_codes": NUM_CODES, "num_levels": NUM_LEVELS}
    told = {"dataset": "made", "split": "train", "tokenizer": "tiny", "weights_sha256": WEIGHTS, **size}
    inputs = [Input(f"{number:06d}", "", None) for number in range(len(rows))]
    plan = plans.make_plan(out, told | changed, inputs, shard_rows=shard_rows, chunk_rows=shard_rows)
    for shard in range(len(plan.shard_rows)):
        part = rows[shard * shard_rows : (shard + 1) * shard_rows]
        masks = sum(len(row["masks"]) for row in part)
        counts = dict.fromkeys(shards.COUNTS["words"], 0)
        counts |= {"rows_in": len(part), "rows_out": len(part), "masks_in": masks, "masks_out": masks}
        table, rejects = schema.table(part, schema.CODE_ROW), schema.table([], schema.REJECT_ROW)
        shards.commit(
            plan, shard, rows=table, rejects=rejects, summary=summarize(table, rejects, counts, **size)
        )
    shards.finish(plan)
    return out
