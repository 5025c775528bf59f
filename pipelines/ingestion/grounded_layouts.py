"""The three layouts of grounded captions, brought into one form for ``grounded``.

A record is ``{"caption", "masks": [{"segmentation"}], "groundings": [{"phrase", "spans", "masks"}]}``: values
as they are in the file, except that a grounding names its masks by index. ``spans`` of None asks to search
for the phrase. Groundings are sorted, so neither the order of a file's records nor that of its keys matters.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.ingestion import records
from pipelines.ingestion.records import Record
from samtok.errors import DataError


@dataclass(frozen=True)
class Captioned:
    """A caption of an image.

    Attributes:
        image_id: The image; ``#7`` for the record at index 7 if it does not say.
        image: ``file_name``, ``height`` and ``width``, the last two None where the layout has no size.
        record: The caption in the form above.
        fault: Why it cannot be used; None if it can.
        mask_id: Set for what is no caption but a mask whose image is not there.
    """

    image_id: str
    image: Record
    record: Record
    fault: DataError | None = None
    mask_id: str | None = None

    @property
    def num_masks(self) -> int:
        """Masks that it claims."""
        return len(self.record["masks"])


def captioned(corpus: Any, where: str) -> Iterator[Captioned]:
    """Yields the captions of a parsed file.

    Raises:
        DataError: ``gcg_layout`` if the file is neither a list nor in COCO layout.
    """
    if isinstance(corpus, dict) and isinstance(corpus.get("images"), list):
        marks = corpus.get("annotations")
        yield from _coco_captions(corpus["images"], marks if isinstance(marks, list) else [])
    elif isinstance(corpus, list):
        for index, entry in enumerate(corpus):
            yield _listed_caption(entry, index)
    else:
        raise DataError(
            f"{where} holds a {type(corpus).__name__}, expected a list of captioned images (GranDf, OpenPSG, "
            "RefCOCOg) or an object with images and annotations (Flickr)",
            reason="gcg_layout",
        )


def _listed_caption(entry: Any, index: int) -> Captioned:
    if isinstance(entry, dict) and "caption" in entry:
        return _grandf_caption(entry, index)
    if isinstance(entry, dict) and len(entry) == 1:
        ((image_id, body),) = entry.items()
        if isinstance(body, dict) and image_id and records.is_utf8(image_id):
            return _refcocog_caption(image_id, body)
    fault = DataError(
        f"record at index {index} is {entry!r:.200}, expected an object with a caption or one image's",
        reason="record_type",
    )
    return Captioned(f"#{index}", {}, _record(None, []), fault)


def _grandf_caption(entry: Record, index: int) -> Captioned:
    groundings = entry.get("groundings")
    parts = []
    for phrase, body in groundings.items() if isinstance(groundings, dict) else ():
        if body is not None:
            fields = body if isinstance(body, dict) else {}
            found = fields.get("rle_masks")
            found = found if isinstance(found, list) else []
            parts.append((phrase, [fields.get("token_positives")], [{"segmentation": one} for one in found]))
    fault = None
    name = entry.get("file_name")
    stem = posixpath.splitext(posixpath.basename(name))[0] if isinstance(name, str) else None
    image_id = records.id_text(entry.get("image_id", stem))
    if not isinstance(groundings, dict):
        fault = DataError(f"groundings are {groundings!r:.80}, expected phrases", reason="groundings")
    if image_id is None:
        fault = DataError(f"image_id is {entry.get('image_id')!r:.80}, expected an id", reason="image_id")
    image = {key: entry.get(key) for key in ("file_name", "height", "width")}
    if fault is None and image["height"] is None and image["width"] is None:
        image |= {"height": 0}  # this layout has sizes; without one the image is not opened
    return Captioned(image_id or f"#{index}", image, _record(entry["caption"], parts), fault)


def _refcocog_caption(image_id: str, body: Record) -> Captioned:
    refs = body.get("refs")
    parts = []
    for ref in refs if isinstance(refs, list) else ():
        fields = ref if isinstance(ref, dict) else {}
        parts.append((fields.get("sentence"), None, [{"segmentation": fields.get("segmentation")}]))
    fault = None
    if not isinstance(refs, list):
        fault = DataError(f"refs are {refs!r:.80}, expected a list", reason="groundings")
    image = {"file_name": body.get("img_file_name"), "height": body.get("height"), "width": body.get("width")}
    return Captioned(image_id, image, _record(body.get("caption"), parts), fault)


def _coco_captions(images: list[Any], marks: list[Any]) -> Iterator[Captioned]:
    kept, nameless, repeated = records.by_id(
        ((records.id_of(entry), entry) for entry in images),
        lambda image: (_flickr_image(image), image.get("caption")),
    )
    for index, entry in nameless:
        fault = DataError(f"image at index {index} is {entry!r:.200}, expected an id", reason="image_id")
        yield Captioned(f"#{index}", {}, _record(None, []), fault)
    for image_id, _, end in repeated:
        fault = DataError(f"image id {image_id} {end}", reason="duplicate_image_id")
        yield Captioned(image_id, {}, _record(None, []), fault)
    by_image: dict[str, list[Any]] = defaultdict(list)
    for index, mark in enumerate(marks):
        owner = records.id_of(mark, "image_id")
        if owner in kept:
            by_image[owner].append(_flickr_part(mark))
        else:
            fault = DataError(f"annotation is of image {owner}, which is not there", reason="unknown_image")
            mask_id = records.id_of(mark)
            lost = _record(None, [(None, None, [{}])])
            yield Captioned(owner or "?", {}, lost, fault, mask_id or f"#{index}")
    for image_id, image in kept.items():
        yield Captioned(image_id, _flickr_image(image), _record(image.get("caption"), by_image[image_id]))


def _flickr_image(image: Record) -> Record:
    """Returns the image's fields; its file may be named by the part after the last underscore alone."""
    name = image.get("file_name")
    sizes = {key: image.get(key, 0) for key in ("height", "width")}
    short = name.rpartition("_")[2] if isinstance(name, str) else ""
    return {"file_name": name, **({"short_name": short} if short not in ("", name) else {}), **sizes}


def _flickr_part(mark: Any) -> tuple[Any, Any, list[Record]]:
    fields = mark if isinstance(mark, dict) else {}
    mask = {"segmentation": fields.get("sam_mask"), "ignore": fields.get("ignore")}
    places = fields.get("tokens_positive")
    return records.id_of(mark), places if isinstance(places, list) and places else [None], [mask]


def _record(caption: Any, parts: list[tuple[Any, Any, list[Record]]]) -> Record:
    """Numbers the masks in an order that does not come from the file."""
    masks: list[Record] = []
    groundings = []
    for phrase, places, own in sorted(parts, key=records.compact_json):
        indices = list(range(len(masks), len(masks) + len(own)))
        masks += own
        groundings.append({"phrase": phrase, "spans": places, "masks": indices})
    return {"caption": caption, "masks": masks, "groundings": groundings}
