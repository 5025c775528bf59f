"""Grounded captions: a caption per image, and masks for its phrases (family F7), in three layouts.

- A, GranDf and OpenPSG-GCG: a list of images with ``caption`` and ``groundings`` by phrase. A phrase that is
  null has no masks and is left out.
- B, RefCOCOg-GCG: a list of ``{image id: {img_file_name, caption, refs}}``. Phrases are searched in the
  caption; the size of the image is not stated, so the image is opened.
- C, Flickr30k-GCG: COCO layout, with the caption in ``images`` and ``tokens_positive`` in ``annotations``.

Every mask of a phrase is a mask of its own. A phrase that cannot be placed is a reject, its masks stay.
Records of one image are joined into one row with several captions. Source: mbzuai-oryx/groundingLMM
(docs/datasets.md, dataset/gcg_datasets).
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines import storage
from pipelines.ingestion import annotations, grounded_layouts, image_source, records, spans
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.file_reader import FileReader, ImageFolders
from pipelines.ingestion.grounded_layouts import Captioned
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.spans import Span
from samtok.errors import DataError


@dataclass(frozen=True, kw_only=True)
class GroundedReader(FileReader, ImageFolders):
    """Reads one file of grounded captions; the layout is recognised."""

    options: ClassVar[type] = ImageFolders

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image by ascending key. Holds the whole file meanwhile.

        Raises:
            DataError: If the file has none of the layouts.
        """
        corpus = records.parse_json(storage.read_bytes(self.source), self.source)
        by_image: dict[str, list[Captioned]] = defaultdict(list)
        rejects: list[Reject] = []
        for found in grounded_layouts.captioned(corpus, self.source):
            if found.fault:
                lost = {"mask_id": found.mask_id, "num_masks": found.num_masks}
                rejects.append(self.reject(found.image_id, found.fault.reason, str(found.fault), **lost))
            else:
                by_image[found.image_id].append(found)
        for image_id in [
            one for one, found in by_image.items() if len({records.compact_json(f.image) for f in found}) > 1
        ]:
            message = f"records of image {image_id} differ in its name or size"
            num_masks = sum(found.num_masks for found in by_image.pop(image_id))
            rejects.append(self.reject(image_id, "image_record", message, num_masks=num_masks))
        yield from sorted(rejects, key=records.compact_json)
        for image_id in sorted(by_image):
            found = sorted(by_image[image_id], key=lambda one: records.compact_json(one.record))
            payload = {"image": found[0].image, "captions": [one.record for one in found]}
            num_masks = sum(one.num_masks for one in found)
            yield Input(key=image_id, payload=records.compact_json(payload), num_masks=num_masks)

    def read(self, item: Input) -> ReadResult:
        """Reads one image's captions; ``num_masks_in`` of the result equals ``item.num_masks``."""
        body = json.loads(item.payload)
        try:
            name = records.image_name(body["image"]["file_name"], f"file name of image {item.key}")
            short = body["image"].get("short_name")
            image_uri = self.image_uri(name, *([short] if short else []))
            if body["image"]["height"] is None and body["image"]["width"] is None:
                image_hw = image_source.read_size_hw(image_uri)
            else:
                image_hw = records.size_hw(body["image"], f"image {item.key}")
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=item.num_masks or 0)
        named = [
            {**mask, "mask_id": f"{caption}-{number}"}
            for caption, record in enumerate(body["captions"], start=1)
            for number, mask in enumerate(record["masks"], start=1)
        ]
        result = records.make_row(self, item.key, image_uri, image_hw, named)
        made: list[Annotation] = []
        rejects: list[Reject] = []
        for number, record in enumerate(body["captions"], start=1):
            try:
                made.append(self._annotation(str(number), record, item.key, rejects))
            except DataError as error:
                rejects.append(annotations.annotation_reject(self.name, item.key, str(number), error))
        return annotations.attach(result, made, rejects)

    def _annotation(self, name: str, record: Record, image_id: str, rejects: list[Reject]) -> Annotation:
        caption = record["caption"]
        text = annotations.text_of(caption.strip('"') if isinstance(caption, str) else caption, "caption")
        placed: list[Span] = []
        for grounding in record["groundings"]:
            try:
                placed += _placed(grounding, text)
            except DataError as error:
                phrase = f"{name} phrase {grounding['phrase']!r:.60}"
                rejects.append(annotations.annotation_reject(self.name, image_id, phrase, error))
        kept, lost = spans.apart(placed, text)
        for span in lost:
            error = DataError(f"span {span} is inside of another phrase", reason="span_overlap")
            phrase = f"{name} phrase {text[span.start : span.end]!r:.60}"
            rejects.append(annotations.annotation_reject(self.name, image_id, phrase, error))
        used = list(dict.fromkeys(mask for span in kept for mask in span.masks))
        named = [{**span._asdict(), "masks": [used.index(mask) for mask in span.masks]} for span in kept]
        mask_ids = [f"{name}-{mask + 1}" for mask in used]
        return annotations.annotation(name, "grounded_caption", mask_ids, text=text, payload={"spans": named})


def _placed(grounding: dict[str, Any], text: str) -> list[Span]:
    masks = tuple(grounding["masks"])
    if not masks:
        raise DataError("it has no masks, and is not null", reason="grounding")
    if grounding["spans"] is None:
        return [Span(*spans.found(grounding["phrase"], text), masks)]
    return [Span(*spans.stated(span, text), masks) for span in grounding["spans"]]
