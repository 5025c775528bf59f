"""Small videos in the layouts in which they are published."""

import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from pipelines import storage
from pipelines.ingestion.reader import Reader
from samtok import masks
from tests.folders import png
from tests.readers import build_reader

HEIGHT, WIDTH = 6, 8
A = np.zeros((HEIGHT, WIDTH), bool)
A[1:5, 1] = A[4, 1:4] = True  # an L, so that a transposed mask is another one
B = np.zeros((HEIGHT, WIDTH), bool)
B[0, 5:8] = True
CORNER = np.zeros((HEIGHT, WIDTH), bool)
CORNER[5, 7] = True
NOTHING = np.zeros((HEIGHT, WIDTH), bool)
SIZE = {"height": HEIGHT, "width": WIDTH}


def rle(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": masks.encode(mask)}


def write(root: Any, files: dict[str, Any]) -> None:
    """Writes files by name: bytes as they are, anything else as JSON."""
    for name, body in files.items():
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        storage.write_bytes(f"{root}/{name}", data)


def picture(size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size_hw[::-1]).save(buffer, "JPEG")
    return buffer.getvalue()


def frames(folder: str, names: Iterable[str]) -> dict[str, bytes]:
    return {f"{folder}/{name}.jpg": picture() for name in names}


def reader_of(layout: Any, root: Any, **options: Any) -> Reader:
    """Builds the reader of what the functions below write."""
    source = {
        "sav": "sav_train",
        "sav_masks": "Annotations_6fps",
        "mevis": "meta_expressions.json",
        "revos": "meta_expressions_train_.json",
        "ytvos": "meta_expressions/train/meta_expressions.json",
        "videorefer": "VideoRefer-Bench-D.json",
    }[layout]
    images = {
        "sav": "frames",
        "sav_masks": "JPEGImages_24fps",
        "ytvos": "train/JPEGImages",
        "videorefer": "frames",
    }
    place = {"source": f"{root}/{source}", "images": f"{root}/{images.get(layout, 'JPEGImages')}"}
    return build_reader("video", **{**place, "dataset": "v", "video_layout": layout, **options})


# ---------------------------------------------------------------- SA-V

SAV = "sav_train/sav_000/sav_000001_auto.json"


def masklets(video: str = "sav_000001", **fields: Any) -> dict[str, Any]:
    """Nine frames, of which three are annotated: the second object vanishes and returns."""
    body = {
        "video_id": video,
        "video_frame_count": 9.0,
        "video_height": float(HEIGHT),
        "video_width": float(WIDTH),
        "masklet": [[rle(A), rle(B)], [rle(A), rle(NOTHING)], [rle(B), rle(A)]],
        "masklet_id": [0, 1],
        "masklet_stability_score": [[0.9, 0.8]] * 3,
    }
    return {**body, **fields}


def sav(body: Any = None, name: str = SAV, count: int = 9) -> dict[str, Any]:
    video = name.rpartition("/")[2].rpartition("_")[0]
    pictures = frames(f"frames/{video}", (f"{number:05d}" for number in range(count)))
    return {name: masklets(video) if body is None else body, **pictures}


def sav_masks() -> dict[str, Any]:
    """Two objects, of which the second has no PNG in the second frame, and an empty one in the third."""
    place = "Annotations_6fps/sav_000002"
    shown = [(A, B), (A, None), (B, NOTHING)]
    made = {
        f"{place}/{number:03d}/{4 * index:05d}.png": png(mask.astype(np.uint8) * 255)
        for index, pair in enumerate(shown)
        for number, mask in enumerate(pair)
        if mask is not None
    }
    return {**made, **frames("JPEGImages_24fps/sav_000002", ("00000", "00004", "00008"))}


# ---------------------------------------------------------------- MeViS and ReVOS

FRAMES = ["00000", "00005", "00010"]
MASK_DICT: dict[str, Any] = {
    "0": [rle(A), rle(A), rle(B)],
    "1": [rle(B), None, rle(A)],
    "2": [None, None, None],
    "9": [rle(B)],  # of another file of expressions
}


def expression(text: Any, *anno_id: Any, **fields: Any) -> dict[str, Any]:
    return {"exp": text, "obj_id": list(range(len(anno_id))), "anno_id": list(anno_id), **fields}


EXPRESSIONS: dict[str, Any] = {
    "0": expression("the dog that stays", 0),
    "1": expression("the dog that leaves", 1),
    "2": expression("both dogs", 0, 1),
    "3": expression("the cat"),
    "4": expression("a bird that nobody sees", 2),
}


def mevis(
    videos: Any = None,
    mask_dict: Any = None,
    names: Iterable[str] = ("v",),
    meta: str = "meta_expressions.json",
    folder: str = "JPEGImages/",
) -> dict[str, Any]:
    made = {"v": {"vid_id": 1, "frames": FRAMES, "expressions": EXPRESSIONS}} if videos is None else videos
    pictures: dict[str, Any] = {}
    for name in names:
        pictures |= frames(f"{folder}{name}", FRAMES)
    return {
        meta: {"videos": made},
        "mask_dict.json": MASK_DICT if mask_dict is None else mask_dict,
        **pictures,
    }


def revos(folder: str = "JPEGImages/", **fields: Any) -> dict[str, Any]:
    said = {
        "0": expression("the dog that stays", 0, type_id=0),
        "1": expression("what leaves?", 1, type_id=1),
        "2": expression("the flying cow", type_id=2),
    }
    video = {"frames": FRAMES, "expressions": said, **SIZE, **fields}
    name = "UVO/all/x"
    return mevis({name: video}, names=(name,), meta="meta_expressions_train_.json", folder=folder)


# ---------------------------------------------------------------- the others


def ytvos() -> dict[str, Any]:
    """Frames with objects 1 and 2, and 1 alone; object 3 has no expression."""
    palette = [255, 255, 255, 200, 0, 0, 0, 0, 200, 9, 9, 9]
    first = np.where(A, 1, 0) + np.where(B, 2, 0)
    first[CORNER] = 3
    maps = {"00000": first, "00005": np.where(B, 1, 0)}
    said = {
        "0": {"exp": "a red car", "obj_id": "1"},
        "1": {"exp": "a blue car", "obj_id": "2"},
    }
    objects = {"1": {"category": "car", "frames": list(maps)}, "2": {"category": "truck"}}
    pngs = {
        f"train/Annotations/v/{name}.png": png(values.astype(np.uint8), palette)
        for name, values in maps.items()
    }
    meta = {"videos": {"v": {"frames": list(maps), "expressions": said}}}
    return {
        "meta_expressions/train/meta_expressions.json": meta,
        "train/meta.json": {"videos": {"v": {"objects": objects}}},
        **pngs,
        **frames("train/JPEGImages/v", maps),
    }


def refer_item(item_id: Any = 7, **fields: Any) -> dict[str, Any]:
    """An item of VideoRefer-Bench-D with two objects."""
    first = {str(number): {"segmentation": rle(A)} for number in (0, 4, 12)}
    second = {"0": {"segmentation": rle(B)}, "4": {"segmentation": None}}
    body = {
        "id": item_id,
        "video": "clip.mp4",
        "caption": "A dog.",
        "frame_idx": "4",
        "annotation": [first, second],
    }
    return {**body, **fields}


def videorefer(*items: Any) -> dict[str, Any]:
    pictures = frames("frames/clip", ("00000", "00004", "00012"))
    return {"VideoRefer-Bench-D.json": list(items or (refer_item(),)), **pictures}


PUBLISHED = {
    "sav": sav,
    "sav_masks": sav_masks,
    "mevis": mevis,
    "revos": revos,
    "ytvos": ytvos,
    "videorefer": videorefer,
}
"""Files of each layout."""
