"""Ref-YouTube-VOS: expressions of videos, a palette PNG for each frame (wjn922/ReferFormer, docs/data.md).

``obj_id`` names the one object of an expression, which is an index of the palette in
``Annotations/VIDEO/FRAME.png``; 0 is the background. ``meta.json`` beside that folder has the classes of
objects, if it is there. Objects that no expression names are masks too.
"""

import posixpath
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pipelines import storage
from pipelines.ingestion import label_maps, records
from pipelines.ingestion.file_reader import witness_of
from pipelines.ingestion.reader import Input, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.video_expressions import ExpressionLayout
from pipelines.ingestion.video_frames import Frame, Masks
from samtok.errors import DataError


class YtvosLayout(ExpressionLayout):
    """Expressions and a palette PNG for each frame."""

    target: ClassVar = "obj_id"

    @property
    def _maps(self) -> str:
        beside = posixpath.join(posixpath.dirname(self.reader.images.rstrip("/")), "Annotations")
        return self.reader.video_masks or beside

    @property
    def _meta(self) -> str:
        return posixpath.join(posixpath.dirname(self._maps.rstrip("/")), "meta.json")

    def witness(self, inputs: Sequence[Input], places: Sequence[Record]) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}`` of expressions and ``meta.json``, and the sizes of the PNGs
        of these inputs, else names and sizes of the first files."""
        found = label_maps.sizes_now(
            (place["file"] for place in places), lambda name: self.reader.below(self._maps, name)
        )
        texts = witness_of(self.reader.source)
        texts |= witness_of(self._meta) if storage.exists(self._meta) else {}
        return texts | (found or {"masks": label_maps.first_files(self._maps)})

    def frames_of(self, part: str) -> Iterator[Frame | Reject]:
        """Yields all frames."""
        videos, rejects = self.videos()
        yield from rejects
        labels = self._labels()
        for name, video in videos.items():
            own = labels.get(name, {})
            objects = {one: own.get(one) for one in (*own, *video.objects)}
            for frame in video.frames[:: self.reader.stride]:
                where = {"file": f"{name}/{frame}.png", "objects": objects}
                yield Frame(name, frame, where, None, texts=video.texts)

    def masks_of(self, key: str, where: Record) -> Masks:
        """Reads the PNG of one frame; each index but 0 is a mask, and objects without pixels are absent."""
        uri = self.reader.below(self._maps, where["file"])
        labels = label_maps.read_map(uri, rgb=False)
        height, width = labels.shape
        found = {str(number): counts for number, counts in label_maps.counts_of(labels, uri).items()}
        usable = []
        for mask_id in {**found, **where["objects"]}:
            rle = {"size": [height, width], "counts": found[mask_id]} if mask_id in found else None
            label = where["objects"].get(mask_id)
            usable.append({"mask_id": mask_id, "segmentation": rle, "label": label})
        return Masks(usable, [])

    def _labels(self) -> dict[str, dict[str, str]]:
        """Returns the classes of the objects of each video, as far as ``meta.json`` has them."""
        if not storage.exists(self._meta):
            return {}
        meta = records.parse_json(storage.read_bytes(self._meta), self._meta)
        videos = meta.get("videos") if isinstance(meta, dict) else None
        if not isinstance(videos, dict):
            raise DataError(f"{self._meta} is no object with the object videos", reason="video_layout")
        found: dict[str, dict[str, str]] = {}
        for name, body in videos.items():
            objects = body.get("objects") if isinstance(body, dict) else None
            for object_id, one in objects.items() if isinstance(objects, dict) else ():
                category = one.get("category") if isinstance(one, dict) else None
                if isinstance(category, str) and records.is_utf8(category + object_id):
                    found.setdefault(name, {})[object_id] = category
        return found
