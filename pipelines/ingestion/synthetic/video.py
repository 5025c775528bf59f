"""Synthetic videos with exact masks: a camera pans over a scene and back, so objects vanish and return.

- sav: masklets in SA-V's JSON (facebookresearch/sam2, sav_dataset/README.md), every fourth frame annotated;
- mevis: expressions and ``mask_dict.json`` (henghuiding/MeViS);
- revos: the same with sizes, kinds of expressions and names of videos that are paths (cilinyan/ReVOS-api);
- ytvos: expressions of one object and palette PNGs (Ref-YouTube-VOS; wjn922/ReferFormer, docs/data.md).

A video has the scene's index + 1 as its number. Only frames with masks are written. Expressions name kinds,
colours and sizes alone, which the camera does not change, of all shapes of the scene; so there may be one
whose shapes no frame shows, except in ytvos. Each writer returns the number of masks that have a pixel.
"""

import dataclasses
import io
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from pipelines import storage
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.video_sav import FRAMES_APART
from samtok import masks
from samtok.shapes import Scene

_VIEW = 0.55  # sides of the view as shares of the scene's: little enough for most objects to leave it
_FRAMES_PER_S = 24
_PALETTE = [number * step % 256 for number in range(256) for step in (67, 101, 151)]
_REFERRING, _NO_TARGET = 0, 2  # type_id of ReVOS


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
    return _mask_dict_files(config, storage.join(config.out, config.split), "meta_expressions.json")


def revos_files(config: ShapesConfig) -> int:
    """Writes ``meta_expressions_SPLIT_.json``, ``mask_dict.json`` and ``JPEGImages/shapes/SPLIT``."""
    name = f"meta_expressions_{config.split}_.json"
    return _mask_dict_files(config, config.out, name, folder=f"shapes/{config.split}/")


def _mask_dict_files(config: ShapesConfig, root: str, meta: str, *, folder: str = "") -> int:
    """Writes videos with a file of all masks; ``folder`` comes before their names."""
    videos: list[bytes] = []
    mask_dict: list[bytes] = []
    num_masks = 0
    for scene in common.scenes(config):
        name = f"{folder}{common.image_id(scene):012d}"
        frames, by_object = [], [[] for _ in scene.objects]
        size_hw = (0, 0)
        for view in views(scene, config.frames):
            size_hw = view.scene.size_hw
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
        if config.format == "revos":
            video |= {"height": size_hw[0], "width": size_hw[1]}
        videos.append(b'"%b":' % name.encode() + common.json_bytes(video))
    body = b'{"videos":{\n' + b",\n".join(videos) + b"\n}}\n"
    storage.write_bytes(storage.join(root, meta), body)
    storage.write_bytes(storage.join(root, "mask_dict.json"), b"{\n" + b",\n".join(mask_dict) + b"\n}\n")
    return num_masks


def _expressions(scene: Scene, config: ShapesConfig) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(common.expressions(scene, config, families=("attributes",))):
        found[str(number)] = {
            "exp": one.text,
            "obj_id": list(one.targets),
            "anno_id": [common.mask_id(scene, target + 1) for target in one.targets],
        }
        if config.format == "revos":
            found[str(number)]["type_id"] = _REFERRING if one.targets else _NO_TARGET
    return found


def ytvos_files(config: ShapesConfig) -> int:
    """Writes ``meta_expressions/SPLIT/meta_expressions.json``, and to the folder of the split ``meta.json``,
    ``JPEGImages`` and ``Annotations``."""
    videos: list[bytes] = []
    objects: list[bytes] = []
    num_masks = 0
    root = storage.join(config.out, config.split)
    for scene in common.scenes(config):
        name = f"{common.image_id(scene):012d}"
        frames, shown = [], [[] for _ in scene.objects]
        for view in views(scene, config.frames):
            frames.append(f"{view.number:05d}")
            _put_frame(storage.join(root, "JPEGImages", name, f"{frames[-1]}.jpg"), view, config)
            uri = storage.join(root, "Annotations", name, f"{frames[-1]}.png")
            common.put_new(uri, lambda view=view: _palette_png(view))
            for listed, mask in zip(shown, view.visible, strict=True):
                listed += [frames[-1]] * bool(mask.any())
        num_masks += sum(map(len, shown))
        made = common.single_expressions(scene, config, families=("attributes",))
        said = {
            str(number): {"exp": one.text, "obj_id": str(one.targets[0] + 1)}
            for number, one in enumerate(made)
            if shown[one.targets[0]]
        }
        there = {
            str(number): {"category": shape.kind, "frames": listed}
            for number, (shape, listed) in enumerate(zip(scene.objects, shown, strict=True), start=1)
            if listed
        }
        key = b'"%b":' % name.encode()
        videos.append(key + common.json_bytes({"frames": frames, "expressions": said}))
        objects.append(key + common.json_bytes({"objects": there}))
    texts = f"meta_expressions/{config.split}/meta_expressions.json"
    for path, entries in ((texts, videos), (f"{config.split}/meta.json", objects)):
        body = b'{"videos":{\n' + b",\n".join(entries) + b"\n}}\n"
        storage.write_bytes(storage.join(config.out, path), body)
    return num_masks


def _palette_png(view: View) -> bytes:
    numbers = np.zeros(view.scene.size_hw, np.uint8)
    for number, mask in enumerate(view.visible, start=1):
        numbers[mask] = number
    image = Image.fromarray(numbers)
    image.putpalette(_PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _put_frame(uri: str, view: View, config: ShapesConfig) -> None:
    common.put_new(uri, lambda: common.image_bytes(view.scene, "jpg", config.jpeg_quality))


def _rle(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": masks.encode(mask)}
