"""Writes synthetic scenes in published formats, so that the readers of real datasets serve them.

    COCO instances    OUT/annotations/instances_train.json, OUT/train/000000000001.jpg
    SA-1B             OUT/sa_1.jpg + OUT/sa_1.json, or below OUT/sa_000000/, or in OUT/sa_000000.tar

Image ids are the scene's index + 1, so corpora of disjoint ranges can share a table. The same config gives
the same bytes: repeating a killed run finishes it, a finished corpus is left alone, and a folder with
anything else in it is refused. ``shapes.started`` is written first and ``shapes.complete`` last; both hold
the config as JSON and have no ``.json`` ending, which would make them side-cars of SA-1B.

Sources: cocodataset/cocoapi (annotation format), facebookresearch/segment-anything (README, dataset).
"""

import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from pipelines import storage
from pipelines.ingestion.config import ShapesConfig
from samtok import masks
from samtok.errors import ConfigError
from samtok.shapes import KINDS, Scene, ShapeObject, make_scene, trace_outline

log = logging.getLogger(__name__)

STARTED, COMPLETE = "shapes.started", "shapes.complete"
_SIDECAR_STREAM, _CROWD_STREAM = 1, 2  # further random streams of a scene, beside the one that made it
_LOG_EVERY = 1000


@dataclass(frozen=True)
class CorpusCounts:
    """What a corpus holds."""

    num_images: int
    num_masks: int


def make_shapes(config: ShapesConfig) -> int:
    """Writes the corpus to ``config.out`` and returns the exit code. The work of ``jobs/make_shapes.py``."""
    if config.dry_run:
        log.info("would write %d images as %s to %s", config.num_images, config.format, config.out)
        log.info("config: %s", json.dumps(config.identity()))
        return 0
    counts = {"coco": write_coco, "sa1b": write_sa1b}[config.format](config.out, config)
    log.info("%s has %d images with %d masks", config.out, counts.num_images, counts.num_masks)
    return 0


def write_coco(root: str, config: ShapesConfig) -> CorpusCounts:
    """Writes COCO instances: polygons or compressed RLE, crowds as uncompressed RLE, categories = kinds.

    An annotation has an extra field ``attributes`` with colour and size. Scenes are made one at a time; the
    annotation file is put together in memory, about 400 bytes per mask.

    Args:
        root: Folder or prefix; images go to ``root/<split>``.
        config: What to write; ``out`` and ``format`` are not looked at.

    Raises:
        ConfigError: If ``root`` holds something else than this corpus, whole or in part.
        StorageError: If it cannot be written.
    """
    return _write_once(root, config, "coco", _coco_files)


def write_sa1b(root: str, config: ShapesConfig) -> CorpusCounts:
    """Writes SA-1B: per image a JPEG and a JSON of the same stem, loose or in archives.

    Masks are the visible parts, so they do not overlap. ``predicted_iou`` and ``stability_score`` are drawn
    from [0.88, 1) and [0.92, 1), ``point_coords`` is a pixel of the mask. Memory is bounded by the
    files of an archive.

    Args:
        root: Folder or prefix.
        config: What to write; ``out``, ``format`` and what is COCO's alone are not looked at.

    Raises:
        ConfigError: If ``root`` holds something else than this corpus, whole or in part.
        StorageError: If it cannot be written.
    """
    return _write_once(root, config, "sa1b", _sa1b_archives if config.layout == "tar" else _sa1b_files)


def _write_once(
    root: str, config: ShapesConfig, name: str, write: Callable[[str, ShapesConfig], int]
) -> CorpusCounts:
    identity = {**config.identity(), "format": name}
    complete = storage.join(root, COMPLETE)
    if storage.exists(complete):
        record = storage.read_json(complete)
        _check_same(root, record["config"], identity)
        log.info("%s is complete already", root)
        return CorpusCounts(**record["counts"])
    started = storage.join(root, STARTED)
    if storage.exists(started):
        _check_same(root, storage.read_json(started)["config"], identity)
    else:
        _check_empty(root)
        storage.write_bytes(started, _json_bytes({"config": identity}))
    counts = CorpusCounts(config.num_images, write(root, config))
    storage.write_bytes(complete, _json_bytes({"config": identity, "counts": asdict(counts)}))
    return counts


def _check_same(root: str, written: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [
        f"{name}: there {written.get(name)!r}, wanted {wanted.get(name)!r}"
        for name in sorted(written.keys() | wanted.keys())
        if written.get(name) != wanted.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{root} holds another synthetic corpus. Different: {'; '.join(changed)}. "
            "Choose another --out, or repeat the settings that it was made with."
        )


def _check_empty(root: str) -> None:
    for found in storage.list_files(root):
        raise ConfigError(
            f"{root} is not empty and no synthetic corpus: it holds {found.uri}. Choose another --out."
        )


def _scenes(config: ShapesConfig) -> Iterator[Scene]:
    for done in range(config.num_images):
        if done and done % _LOG_EVERY == 0:
            log.info("%d of %d images", done, config.num_images)
        yield make_scene(config.seed, config.first_index + done, config.world)


def _put_new(uri: str, make: Callable[[], bytes]) -> None:
    """Writes an object unless it is there, which is then the same: writes are whole and bytes repeat."""
    if not storage.exists(uri):
        storage.write_bytes(uri, make())


def _image_bytes(scene: Scene, image_format: str, jpeg_quality: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(scene.image)
    if image_format == "png":
        image.save(buffer, "PNG")
    else:  # full colour resolution: chroma subsampling would smear the edges of small shapes
        image.save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _image_id(scene: Scene) -> int:
    return scene.index + 1


def _mask_id(scene: Scene, number: int) -> int:
    return _image_id(scene) * 100 + number  # a scene has at most 99 shapes


def _bbox_xywh(shape: ShapeObject) -> list[float]:
    left, top, right, bottom = shape.box_xyxy
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def _rle(shape: ShapeObject) -> dict[str, Any]:
    return {"size": list(shape.mask.shape), "counts": masks.encode(shape.mask)}


# --- COCO -------------------------------------------------------------------------------------------------


def _coco_files(root: str, config: ShapesConfig) -> int:
    images, annotations = [], []
    for scene in _scenes(config):
        name = f"{_image_id(scene):012d}.{config.image_format}"
        uri = storage.join(root, config.split, name)
        _put_new(uri, lambda scene=scene: _image_bytes(scene, config.image_format, config.jpeg_quality))
        height, width = scene.size_hw
        entry = {"id": _image_id(scene), "file_name": name, "height": height, "width": width}
        images.append(_json_bytes(entry))
        annotations += map(_json_bytes, _coco_annotations(scene, config))
    categories = [{"id": i, "name": kind, "supercategory": "shape"} for i, kind in enumerate(KINDS, start=1)]
    parts = [
        b'{"info":{"description":"synthetic shapes"},"licenses":[],"images":[\n',
        b",\n".join(images),
        b'\n],"annotations":[\n',
        b",\n".join(annotations),
        b'\n],"categories":',
        _json_bytes(categories),
        b"}\n",
    ]
    uri = storage.join(root, "annotations", f"instances_{config.split}.json")
    storage.write_bytes(uri, b"".join(parts))
    return len(annotations)


def _coco_annotations(scene: Scene, config: ShapesConfig) -> list[dict[str, Any]]:
    rng = np.random.default_rng([scene.seed, scene.index, _CROWD_STREAM])
    crowds = rng.random(len(scene.objects)) < config.crowd_share
    return [
        {
            "id": _mask_id(scene, number),
            "image_id": _image_id(scene),
            "category_id": KINDS.index(shape.kind) + 1,
            "segmentation": _coco_segmentation(shape, config.segmentation, crowd=bool(crowd)),
            "area": int(shape.mask.sum()),
            "bbox": _bbox_xywh(shape),
            "iscrowd": int(crowd),
            "attributes": {"colour": shape.colour, "size": shape.size},
        }
        for number, (shape, crowd) in enumerate(zip(scene.objects, crowds, strict=True), start=1)
    ]


def _coco_segmentation(shape: ShapeObject, form: str, *, crowd: bool) -> dict[str, Any] | list[list[int]]:
    if crowd:
        height, width = shape.mask.shape
        runs = masks.parse_counts(masks.encode(shape.mask), height=height, width=width)
        return {"size": [height, width], "counts": runs.tolist()}
    outline = trace_outline(shape.mask) if form == "polygon" else None
    return [outline] if outline else _rle(shape)


# --- SA-1B ------------------------------------------------------------------------------------------------


def _sa1b_files(root: str, config: ShapesConfig) -> int:
    num_masks = 0
    for position, scene in enumerate(_scenes(config)):
        folder = f"sa_{position // config.images_per_folder:06d}"
        place = storage.join(root, folder) if config.layout == "nested" else root
        num_masks += len(scene.objects)
        for name, make in _sa1b_pair(scene, config):
            _put_new(storage.join(place, name), make)
    return num_masks


def _sa1b_archives(root: str, config: ShapesConfig) -> int:
    num_masks = 0
    scenes = _scenes(config)
    for number in range(-(-config.num_images // config.images_per_folder)):
        uri = storage.join(root, f"sa_{number:06d}.tar")
        wanted = not storage.exists(uri)
        members: list[tuple[str, bytes]] = []  # as bytes: scenes are a multiple of their files
        for scene in islice(scenes, config.images_per_folder):
            num_masks += len(scene.objects)
            if wanted:
                members += [(name, make()) for name, make in _sa1b_pair(scene, config)]
        if wanted:
            storage.write_bytes(uri, _tar_bytes(members))
    return num_masks


def _sa1b_pair(scene: Scene, config: ShapesConfig) -> list[tuple[str, Callable[[], bytes]]]:
    stem = f"sa_{_image_id(scene)}"
    return [
        (f"{stem}.jpg", lambda: _image_bytes(scene, "jpg", config.jpeg_quality)),
        (f"{stem}.json", lambda: _json_bytes(_sidecar(scene, f"{stem}.jpg"))),
    ]


def _sidecar(scene: Scene, file_name: str) -> dict[str, Any]:
    rng = np.random.default_rng([scene.seed, scene.index, _SIDECAR_STREAM])
    height, width = scene.size_hw
    image = {"image_id": _image_id(scene), "width": width, "height": height, "file_name": file_name}
    annotations = []
    for number, shape in enumerate(scene.objects, start=1):
        pixels = np.argwhere(shape.mask)
        y, x = pixels[int(rng.integers(len(pixels)))].tolist()
        annotations.append(
            {
                "id": _mask_id(scene, number),
                "segmentation": _rle(shape),
                "bbox": _bbox_xywh(shape),
                "area": len(pixels),
                "predicted_iou": round(float(rng.uniform(0.88, 1.0)), 6),
                "stability_score": round(float(rng.uniform(0.92, 1.0)), 6),
                "crop_box": [0.0, 0.0, float(width), float(height)],
                "point_coords": [[float(x), float(y)]],
            }
        )
    return {"image": image, "annotations": annotations}


def _tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    """Packs files without times and owners, so that the same files give the same archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
