"""Synthetic scenes with referring expressions, in gRefCOCO's layout (henghuiding/gRefCOCO).

A ref has one sentence, and an extra field ``tags`` (``samtok.shapes.referring``), which real files lack.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.ingestion import shapes_scenes as common
from pipelines.ingestion.config import ShapesConfig
from pipelines.ingestion.shapes_coco import write_instances
from samtok.shapes import KINDS, Expression, Scene, referring_expressions


def refer_files(config: ShapesConfig) -> int:
    """Writes refs, instances and images; returns the number of masks."""
    refs: list[bytes] = []

    def noted() -> Iterator[Scene]:
        for scene in common.pictured(config):
            refs.extend(map(common.json_bytes, _refs(scene, config)))
            yield scene

    num_masks = write_instances("instances.json", noted(), config)
    storage.write_bytes(storage.join(config.out, "grefs.json"), common.json_list(refs) + b"\n")
    return num_masks


def _refs(scene: Scene, config: ShapesConfig) -> list[dict[str, Any]]:
    rng = np.random.default_rng([scene.seed, scene.index, common.LANGUAGE_STREAM])
    wanted = config.expressions
    expressions = referring_expressions(
        scene, rng, single=wanted.single, multi=wanted.multi, none=wanted.none, families=wanted.families
    )
    return [_ref(scene, number, made, config) for number, made in enumerate(expressions, start=1)]


def _ref(scene: Scene, number: int, made: Expression, config: ShapesConfig) -> dict[str, Any]:
    ref_id = common.mask_id(scene, number)
    stem, _, suffix = common.image_name(scene, config).partition(".")
    raw = made.text[0].upper() + made.text[1:] + "."
    return {
        "ref_id": ref_id,
        "ann_id": [common.mask_id(scene, i + 1) for i in made.targets] or [-1],
        "category_id": [KINDS.index(scene.objects[i].kind) + 1 for i in made.targets] or [-1],
        "image_id": common.image_id(scene),
        "split": config.split,
        "file_name": f"{stem}_{number}.{suffix}",  # as published: it is not the name of the image
        "no_target": not made.targets,
        "sent_ids": [ref_id],
        "sentences": [{"sent_id": ref_id, "sent": made.text, "raw": raw, "tokens": made.text.split()}],
        "tags": list(made.tags),
    }
