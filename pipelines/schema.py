"""Arrow schemas of all rows, and their version. One row per image everywhere.

Masks and annotations are nested lists, so an image is decoded and encoded once whatever the number of
its masks, and a row is either done or not done. Readers yield plain dicts in the shape of ``IMAGE_ROW``;
``table`` turns them into Arrow and refuses what does not fit.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 3
_METADATA = {"samtok_schema_version": str(SCHEMA_VERSION)}

MASK_FLAGS = ("crowd", "void", "empty", "box_only", "point_only", "occluded")
"""Flags a reader may set. A reader flags, the pipeline filters and counts. The box of ``point_only`` is the
point, without width and height. ``occluded``, of an object that others hide in part, is told and no more."""

FROM_PROMPT = "from_prompt"
"""Flag of a mask that SAM2 has predicted from a box or a point."""

_MASK_FIELDS = [
    pa.field("mask_id", pa.string(), nullable=False),  # unique inside the image
    pa.field("rle", pa.string()),  # compressed COCO counts (column-major); null if the mask cannot be used
    pa.field("box_xyxy", pa.list_(pa.float32())),  # pixels; only when the dataset has a box and no mask
    pa.field("label", pa.string()),
    pa.field("flags", pa.list_(pa.string()), nullable=False),
]

ANNOTATION_TASKS = (
    "referring",  # text: the expression; masks: its targets, none for a no-target
    "region_caption",  # text: the caption of the one mask
    "region_qa",  # payload {"question", "answer"}, which name masks by index of mask_ids: <mask 0>, <mask 1>
    "grounded_caption",  # text: the caption; payload {"spans": [{"start", "end", "masks": [0, 2]}]}: offsets
    # in characters, end exclusive, ascending and apart; indices of mask_ids
    "scene_graph",  # masks: all objects; payload {"triplets": [[subject, predicate, object]]}: indices, text
    "dialogue",  # payload {"turns": [{"role", "text"}]}, which name masks as <mask 0>
)
"""What an annotation can be. A mask's own name is its label, not an annotation."""

ANNOTATION_FIELDS = [
    pa.field("annotation_id", pa.string(), nullable=False),  # unique in the image; refs: "ref_id-sent_id"
    pa.field("task", pa.string(), nullable=False),  # one of ANNOTATION_TASKS
    pa.field("mask_ids", pa.list_(pa.string()), nullable=False),  # an empty list is a no-target
    pa.field("text", pa.string()),
    pa.field("tags", pa.list_(pa.string()), nullable=False),  # groups that metrics are also reported for
    pa.field("payload", pa.string()),  # JSON of what only this task has: spans, triplets, turns
]

_IMAGE_FIELDS = [
    pa.field("dataset", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("image_id", pa.string(), nullable=False),  # unique in the dataset
    pa.field("image_uri", pa.string(), nullable=False),  # ``pipelines.ingestion.image_source``
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
]

_CODE_MASK_FIELDS = [
    *_MASK_FIELDS,
    pa.field("codes", pa.list_(pa.int32()), nullable=False),  # one per level, each in [0, codebook size)
    pa.field("words", pa.string(), nullable=False),
    pa.field("area_px", pa.int64(), nullable=False),
    pa.field("iou", pa.float32()),  # of the reconstruction; null where it was not asked for
    pa.field("boundary_iou", pa.float32()),  # likewise, of the boundaries (samtok.metrics.regions)
]


def _rows(mask_fields: list[pa.Field]) -> pa.Schema:
    fields = [
        *_IMAGE_FIELDS,
        pa.field("masks", pa.list_(pa.struct(mask_fields)), nullable=False),
        pa.field("annotations", pa.list_(pa.struct(ANNOTATION_FIELDS)), nullable=False),
    ]
    return pa.schema(fields, metadata=_METADATA)


IMAGE_ROW = _rows(_MASK_FIELDS)
CODE_ROW = _rows(_CODE_MASK_FIELDS)

CHAT_TASKS = (
    "res",  # one expression, its target
    "gres",  # one expression, any number of targets
    "grounding",  # res, asked as grounding (REC)
    "gcg",  # a caption with interleaved words
    "psg",  # triplets of a scene graph
    "instances",  # all objects of a class
    "region_caption",
    "region_qa",
    "multi_round",  # several questions, where later ones name masks of earlier ones
    "dialogue",
)
"""Tasks of chat samples."""

_PART_FIELDS = [  # of which exactly one is not null
    pa.field("text", pa.string()),
    pa.field("image", pa.int32()),  # index of the sample's images
]

_MESSAGE_FIELDS = [
    pa.field("role", pa.string(), nullable=False),  # system, user, assistant
    pa.field("content", pa.list_(pa.struct(_PART_FIELDS)), nullable=False),
    pa.field("mask_ids", pa.list_(pa.string()), nullable=False),  # whose words it has, in the text's order
]

_CHAT_MASK_FIELDS = [
    pa.field("mask_id", pa.string(), nullable=False),
    pa.field("image", pa.int32(), nullable=False),  # index of the sample's images
    pa.field("codes", pa.list_(pa.int32()), nullable=False),
    pa.field("words", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("iou", pa.float32()),
    pa.field("rle", pa.string()),  # the original mask; null where the corpus of words has none
]

_CHAT_IMAGE_FIELDS = [pa.field("uri", pa.string(), nullable=False), *_IMAGE_FIELDS[-2:]]

CHAT_ROW = pa.schema(
    [
        *_IMAGE_FIELDS[:3],
        pa.field("sample_id", pa.string(), nullable=False),  # unique in the corpus
        pa.field("task", pa.string(), nullable=False),  # one of CHAT_TASKS
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("images", pa.list_(pa.struct(_CHAT_IMAGE_FIELDS)), nullable=False),
        pa.field("messages", pa.list_(pa.struct(_MESSAGE_FIELDS)), nullable=False),
        pa.field("masks", pa.list_(pa.struct(_CHAT_MASK_FIELDS)), nullable=False),  # all that messages name
        pa.field("meta", pa.string()),  # JSON: expression, style, template; unlearnt: places of messages
    ],
    metadata=_METADATA,
)
"""One sample of a dialogue with an image: what an MLLM trains on, and what rewards and metrics need."""

MASK_ROW = pa.schema(
    [
        *_IMAGE_FIELDS[:3],
        pa.field("mask_id", pa.string(), nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("iou", pa.float32(), nullable=False),
        pa.field("boundary_iou", pa.float32(), nullable=False),
        pa.field("codes", pa.list_(pa.int32()), nullable=False),
    ],
    metadata=_METADATA,
)
"""One mask of an evaluation."""

REJECT_ROW = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),  # read, decode, tokenize, filter, compose, load
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("row_id", pa.string(), nullable=False),  # the image id; of one not read, the input's key
        pa.field("mask_id", pa.string()),  # null: the whole row
        pa.field("num_masks", pa.int32(), nullable=False),  # lost with this entry, so that counts add up
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ],
    metadata=_METADATA,
)


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Builds a table from dicts; an empty input gives an empty table of the schema."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def reject(
    stage: str,
    dataset: str,
    row_id: str,
    reason: str,
    message: str,
    *,
    mask_id: str | None = None,
    num_masks: int = 0,
) -> dict[str, Any]:
    """Returns one entry of the reject table."""
    which = {"stage": stage, "dataset": dataset, "row_id": row_id, "mask_id": mask_id}
    return {**which, "num_masks": num_masks, "reason": reason, "message": message[:2000]}
