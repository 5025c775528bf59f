"""Synthetic videos with exact masks: a camera pans over a scene and back, so objects vanish and return.

- sav: masklets in SA-V's JSON (facebookresearch/sam2, sav_dataset/README.md), every fourth frame annotated;
- mevis: expressions and ``mask_dict.json`` (henghuiding/MeViS).

A video has the scene's index + 1 as its number. Only frames with masks are written. Expressions name kinds,
colours and sizes alone, which the camera does not change, of all shapes of the scene; so there may be one
whose shapes no frame shows. Each writer returns the number of masks that have a pixel.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from pipelines import storage
from pipelines.ingestion import shapes_scenes as common
from pipelines.ingestion.config import ShapesConfig
from pipelines.ingestion.video_sav import FRAMES_APART
from samtok import masks
from samtok.shapes import Scene, referring_expressions

_VIEW = 0.55  # sides of the view as shares of the scene's: little enough for most objects to leave it
_FRAMES_PER_S = 24


class View(NamedTuple):
    """One annotated frame of a video."""

    number: int
    """From 0, of annotated frames."""
    scene: Scene
    """What the camera shows; its objects have their whole masks."""
    visible: list[Bool[np.ndarray, "height width"]]
    """The part of each object's mask that it shows."""


def views(scene: Scene, frames: int) -> Iterator[View]:
    """Yields the frames of a video of a scene: from its left to its right and back, and down and up twice."""
    height, width = scene.size_hw
    view_hw = math.ceil(height * _VIEW), math.ceil(width * _VIEW)
    for number in range(frames):
        angle = 2 * math.pi * number / frames
        down, right = (1 - math.cos(2 * angle)) / 2, (1 - math.cos(angle)) / 2
        top, left = round((height - view_hw[0]) * down), round((width - view_hw[1]) * right)
        part = np.s_[top : top + view_hw[0], left : left + view_hw[1]]
        shown = dataclasses.replace(scene, image=scene.image[part])
        yield View(number, shown, [shape.mask[part] for shape in scene.objects])


def sav_files(config: ShapesConfig) -> int:
    """Writes ``sav_SPLIT/sav_000/sav_000001_auto.json`` and ``frames/sav_000001/00004.jpg``."""
    num_masks = 0
    for scene in common.scenes(config):
        name = f"sav_{common.image_id(scene):06d}"
        masklet = []
        for view in views(scene, config.frames):
            frame = f"{name}/{FRAMES_APART * view.number:05d}.jpg"
            _put_frame(storage.join(config.out, "frames", frame), view, config)
            masklet.append([_rle(mask) for mask in view.visible])
            num_masks += sum(bool(mask.any()) for mask in view.visible)
        folder = f"sav_{common.image_id(scene) // config.images_per_folder:03d}"
        uri = storage.join(config.out, f"sav_{config.split}", folder, f"{name}_auto.json")
        body = _masklets(name, masklet, config)
        common.put_new(uri, lambda body=body: common.json_bytes(body))
    return num_masks


def _masklets(name: str, masklet: list[list[dict[str, Any]]], config: ShapesConfig) -> dict[str, Any]:
    count = FRAMES_APART * (len(masklet) - 1) + 1
    height, width = masklet[0][0]["size"]
    num_objects = len(masklet[0])
    return {
        "video_id": name,
        "video_duration": count / _FRAMES_PER_S,
        "video_frame_count": float(count),  # sizes are floats as published
        "video_height": float(height),
        "video_width": float(width),
        "video_resolution": float(height * width),
        "video_environment": "Indoor",
        "video_split": config.split,
        "masklet": masklet,
        "masklet_id": list(range(num_objects)),
        "masklet_frame_count": [len(masklet)] * num_objects,
        "masklet_type": ["auto"] * num_objects,
        "masklet_num": num_objects,
    }


def mevis_files(config: ShapesConfig) -> int:
    """Writes ``meta_expressions.json``, ``mask_dict.json`` and ``JPEGImages`` to the folder of the split."""
    videos: list[bytes] = []
    mask_dict: list[bytes] = []
    num_masks = 0
    root = storage.join(config.out, config.split)
    for scene in common.scenes(config):
        name = f"{common.image_id(scene):012d}"
        frames, by_object = [], [[] for _ in scene.objects]
        for view in views(scene, config.frames):
            frames.append(f"{view.number:05d}")
            _put_frame(storage.join(root, "JPEGImages", name, f"{frames[-1]}.jpg"), view, config)
            for listed, mask in zip(by_object, view.visible, strict=True):
                listed.append(_rle(mask) if mask.any() else None)
                num_masks += bool(mask.any())
        for number, listed in enumerate(by_object, start=1):
            mask_dict.append(b'"%d":' % common.mask_id(scene, number) + common.json_bytes(listed))
        video = {
            "vid_id": common.image_id(scene),
            "frames": frames,
            "expressions": _expressions(scene, config),
        }
        videos.append(b'"%b":' % name.encode() + common.json_bytes(video))
    body = b'{"videos":{\n' + b",\n".join(videos) + b"\n}}\n"
    storage.write_bytes(storage.join(root, "meta_expressions.json"), body)
    storage.write_bytes(storage.join(root, "mask_dict.json"), b"{\n" + b",\n".join(mask_dict) + b"\n}\n")
    return num_masks


def _expressions(scene: Scene, config: ShapesConfig) -> dict[str, Any]:
    rng = np.random.default_rng([scene.seed, scene.index, common.LANGUAGE_STREAM])
    wanted = {name: getattr(config.expressions, name) for name in ("single", "multi", "none")}
    made = referring_expressions(scene, rng, families=("attributes",), **wanted)
    return {
        str(number): {
            "exp": one.text,
            "obj_id": list(one.targets),
            "anno_id": [common.mask_id(scene, target + 1) for target in one.targets],
        }
        for number, one in enumerate(made)
    }


def _put_frame(uri: str, view: View, config: ShapesConfig) -> None:
    common.put_new(uri, lambda: common.image_bytes(view.scene, "jpg", config.jpeg_quality))


def _rle(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": masks.encode(mask)}
