"""What all formats of the synthetic corpus share: scenes in order, their ids, and their bytes."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from pipelines import storage
from pipelines.ingestion.synthetic.config import ShapesConfig
from samtok import masks
from samtok.shapes import Expression, Scene, ShapeObject, make_scene, referring_expressions

log = logging.getLogger(__name__)

_LOG_EVERY = 1000

SIDECAR_STREAM, CROWD_STREAM, LANGUAGE_STREAM = 1, 2, 3
"""Further random streams of a scene, beside the one that made it."""


def scenes(config: ShapesConfig) -> Iterator[Scene]:
    """Makes the scenes of a corpus one at a time."""
    for done in range(config.num_images):
        if done and done % _LOG_EVERY == 0:
            log.info("%d of %d images", done, config.num_images)
        yield make_scene(config.seed, config.first_index + done, config.world)


def scenes_of_files(config: ShapesConfig, name: str) -> Iterator[tuple[str, Iterator[Scene]]]:
    """Yields the URI of each file of ``images_per_folder`` scenes, and these, to be taken before the next.

    Args:
        name: Below the corpus, with places for the number of the file and how many there are:
            ``data-{:05d}-of-{:05d}.arrow``.
    """
    count = -(-config.num_images // config.images_per_folder)
    made = scenes(config)
    for number in range(count):
        yield storage.join(config.out, name.format(number, count)), islice(made, config.images_per_folder)


def put_new(uri: str, make: Callable[[], bytes]) -> None:
    """Writes an object unless it is there, which is then the same: writes are whole and bytes repeat."""
    if not storage.exists(uri):
        storage.write_bytes(uri, make())


def image_name(scene: Scene, config: ShapesConfig) -> str:
    """Returns COCO's name of an image: ``000000000001.jpg``."""
    return f"{image_id(scene):012d}.{config.image_format}"


def pictured(config: ShapesConfig, folder: str = "") -> Iterator[Scene]:
    """Makes the scenes of a corpus; writes each image to the folder of the split unless it is there, below a
    folder of the corpus."""
    place = f"{folder}/{config.split}" if folder else config.split
    return pictured_as(config, lambda scene: f"{place}/{image_name(scene, config)}")


def pictured_as(config: ShapesConfig, name_of: Callable[[Scene], str]) -> Iterator[Scene]:
    """Makes the scenes of a corpus; writes each image under its name below the corpus unless it is there."""
    for scene in scenes(config):
        uri = storage.join(config.out, name_of(scene))
        put_new(uri, lambda scene=scene: image_bytes(scene, config.image_format, config.jpeg_quality))
        yield scene


def language_rng(scene: Scene) -> np.random.Generator:
    """Returns the random stream of a scene's texts."""
    return np.random.default_rng([scene.seed, scene.index, LANGUAGE_STREAM])


def expressions(scene: Scene, config: ShapesConfig, **changed: Any) -> list[Expression]:
    """Draws the referring expressions of a scene that ``--expressions`` asks for, but for what is changed."""
    wanted: dict[str, Any] = {**vars(config.expressions), **changed}
    del wanted["mark_hidden"]  # which says what is written of them
    return referring_expressions(scene, language_rng(scene), **wanted)


def single_expressions(scene: Scene, config: ShapesConfig, **changed: Any) -> list[Expression]:
    """Draws those of ``expressions`` that mean one shape."""
    return expressions(scene, config, multi=0, none=0, **changed)


def image_bytes(scene: Scene, image_format: str, jpeg_quality: int) -> bytes:
    """Encodes the image as ``png`` or ``jpg``; the quality is JPEG's."""
    buffer = io.BytesIO()
    image = Image.fromarray(scene.image)
    if image_format == "png":
        image.save(buffer, "PNG")
    else:  # full colour resolution: chroma subsampling would smear the edges of small shapes
        image.save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()


def json_bytes(value: Any) -> bytes:
    """Returns compact JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def json_list(entries: list[bytes]) -> bytes:
    """Returns a JSON list with an entry per line."""
    return b"[\n" + b",\n".join(entries) + b"\n]"


def image_id(scene: Scene) -> int:
    """Returns the scene's index + 1."""
    return scene.index + 1


def mask_id(scene: Scene, number: int) -> int:
    """Returns the id of a scene's shape; numbers count from 1."""
    return image_id(scene) * 100 + number  # a scene has at most 99 shapes


def crowds(scene: Scene, share: float) -> list[bool]:
    """Draws which shapes of a scene are crowds."""
    rng = np.random.default_rng([scene.seed, scene.index, CROWD_STREAM])
    return (rng.random(len(scene.objects)) < share).tolist()


def bbox_xywh(shape: ShapeObject) -> list[float]:
    """Returns x, y, width, height of the visible part in pixels."""
    left, top, right, bottom = shape.box_xyxy
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def rle(shape: ShapeObject) -> dict[str, Any]:
    """Returns the visible part as compressed RLE."""
    return {"size": list(shape.mask.shape), "counts": masks.encode(shape.mask)}


def box_xyxy(mask: np.ndarray) -> list[float]:
    """Returns left, top, right and bottom edge in pixels of a mask with a pixel."""
    box = masks.box_of(mask)
    assert box is not None
    left, top, right, bottom = box
    return [float(left), float(top), float(right + 1), float(bottom + 1)]
