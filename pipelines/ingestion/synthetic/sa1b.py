"""Synthetic scenes as SA-1B, loose or in archives (facebookresearch/segment-anything, README, dataset)."""

import io
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.config import ShapesConfig
from samtok.shapes import Scene

Members = list[tuple[str, Callable[[], bytes]]]
"""Names of files, and what makes each."""


def sa1b_files(config: ShapesConfig) -> int:
    """Writes pairs of files, flat, nested or in archives; returns the number of masks."""
    if config.layout == "tar":
        return write_archives(config, "sa_{:06d}.tar", _sa1b_pair)
    num_masks = 0
    for position, scene in enumerate(common.scenes(config)):
        folder = f"sa_{position // config.images_per_folder:06d}"
        place = storage.join(config.out, folder) if config.layout == "nested" else config.out
        num_masks += len(scene.objects)
        for name, make in _sa1b_pair(scene, config):
            common.put_new(storage.join(place, name), make)
    return num_masks


def write_archives(
    config: ShapesConfig, name: str, members_of: Callable[[Scene, ShapesConfig], Members]
) -> int:
    """Writes archives of ``images_per_folder`` scenes; returns the number of masks.

    Args:
        config: Of the corpus.
        name: Of an archive, as ``scenes.scenes_of_files`` takes it.
        members_of: Returns the files of a scene.
    """
    num_masks = 0
    for uri, made in common.scenes_of_files(config, name):
        wanted = not storage.exists(uri)
        members: list[tuple[str, bytes]] = []  # as bytes: scenes are a multiple of their files
        for scene in made:
            num_masks += len(scene.objects)
            if wanted:
                members += [(name, make()) for name, make in members_of(scene, config)]
        if wanted:
            storage.write_bytes(uri, _tar_bytes(members))
    return num_masks


def _sa1b_pair(scene: Scene, config: ShapesConfig) -> Members:
    stem = f"sa_{common.image_id(scene)}"
    return [
        (f"{stem}.jpg", lambda: common.image_bytes(scene, "jpg", config.jpeg_quality)),
        (f"{stem}.json", lambda: common.json_bytes(_sidecar(scene, f"{stem}.jpg"))),
    ]


def _sidecar(scene: Scene, file_name: str) -> dict[str, Any]:
    rng = np.random.default_rng([scene.seed, scene.index, common.SIDECAR_STREAM])
    height, width = scene.size_hw
    image = {"image_id": common.image_id(scene), "width": width, "height": height, "file_name": file_name}
    annotations = []
    for number, shape in enumerate(scene.objects, start=1):
        pixels = np.argwhere(shape.mask)
        y, x = pixels[int(rng.integers(len(pixels)))].tolist()
        annotations.append(
            {
                "id": common.mask_id(scene, number),
                "segmentation": common.rle(shape),
                "bbox": common.bbox_xywh(shape),
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
