"""Layouts of rows that hold an image, its masks and texts, brought into one form, and a row made of that.

The table ``LAYOUTS`` recognises a layout by its columns:

- EasyR1's, which the authors publish (mix_gres8k_ver4k_train.parquet): one image, a prompt, and compressed
  RLEs in the order of the answer's words; no RLE is "no target";
- RefCOCO-M's: one image, and of each sample a ``mask`` and its ``sentences``;
- GAR's (Haochen-Wang409/Grasp-Any-Region): ``mask_rle`` is an RLE, a list of them, or nothing, which means
  the whole image; ``<Prompt0>`` in ``conversations`` names the first one;
- the authors' ``sam_obj_cap_gar``: ``ann``, a JSON list of ``{ann: {segmentation}, caption}``;
- ours (``pipelines.tools.export_words``): ``masks`` and ``annotations`` as in ``pipelines.schema``;
- DAM's as published (nvidia/describe-anything-dataset): ``pickle``, a pickled list of ``{mask_rle,
  caption}``.

The form is ``{"masks": [...], "texts": [...]}``: RLEs, and of each annotation either ``conversation`` or
``text`` with its ``task``, the numbers of its ``masks``, ``tags`` and ``payload``. With ``whole`` the one
mask is that of the whole image, whose size is known only once it is read. Of ours the body has ``named``
masks, in the common shape of ``records``, and ``annotations`` of rows instead.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipelines import schema
from pipelines.ingestion import annotations, conversations, image_source, records, rl_rows, safe_pickle
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.reader import Reader, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import DataError

_ANNOTATION = {field.name for field in schema.ANNOTATION_FIELDS}

_PROMPT = re.compile(r"<Prompt(\d{1,6})>")


class Layout(NamedTuple):
    """How rows of some columns are read."""

    columns: frozenset[str]
    """Columns that recognise it."""
    image: str
    """Column with the image."""
    further: tuple[str, ...]
    """Columns that are read besides where they are there."""
    body_of: Callable[[Record], dict[str, Any]]
    """Makes ``masks`` and ``texts`` of the values of a row; raises DataError."""

    def listed(self, found: Sequence[str]) -> list[str]:
        """Returns the columns to read of a file that has these."""
        wanted = {*self.columns, *self.further} - {self.image}
        return [name for name in found if name in wanted]


def layout_of(found: Sequence[str], uri: str) -> Layout:
    """Returns the layout of a file with these columns; DataError ``parquet_layout`` if it has none."""
    for layout in LAYOUTS:
        if layout.columns <= set(found):
            return layout
    raise DataError(
        f"{uri} has the columns {', '.join(found)}, expected images, problem and masks (EasyR1, the "
        "authors' files), image and samples (RefCOCO-M), image, mask_rle and conversations (GAR), image, "
        "masks and annotations (pipelines.tools.export_words), image and "
        "ann (sam_obj_cap_gar), or jpg and pickle (DAM); mask, segments_info and image_info (COCONut) are "
        "of the reader coconut_parquet",
        reason="parquet_layout",
    )


def row_of(reader: Reader, key: str, uri: str, body: dict[str, Any]) -> ReadResult:
    """Returns the row of an image of that URI; masks are numbered from 1. Of the image at most its size is
    read."""
    rles = body["masks"]
    try:
        image_hw = (
            records.size_hw(body, "the image")
            if "named" in body
            else records.size_hw_of_masks(rles, "the image") or image_source.read_size_hw(uri)
        )
    except DataError as error:
        return ReadResult.refused(reader.name, key, error, num_masks=len(rles))
    if body.get("whole"):
        rles = [{"size": list(image_hw), "counts": [0, image_hw[0] * image_hw[1]]}]
    if "named" in body:
        named = [{**about, "segmentation": rle} for about, rle in zip(body["named"], rles, strict=True)]
        return annotations.attach(records.make_row(reader, key, uri, image_hw, named), body["annotations"])
    named = [{"mask_id": str(number), "segmentation": one} for number, one in enumerate(rles, start=1)]
    made: list[Annotation] = []
    lost: list[Reject] = []
    for number, entry in enumerate(body["texts"], start=1):
        try:
            made.append(_annotation(str(number), entry, len(rles)))
        except DataError as error:
            lost.append(annotations.annotation_reject(reader.name, key, str(number), error))
    return annotations.attach(records.make_row(reader, key, uri, image_hw, named), made, lost)


def _annotation(name: str, entry: Record, num_masks: int) -> Annotation:
    if "conversation" in entry:
        return conversations.annotation(
            name, entry["conversation"], _PROMPT, lambda digits: _prompted(int(digits), num_masks)
        )
    text = annotations.text_of(entry["text"], "text")
    about = {"tags": entry.get("tags", ()), "payload": entry.get("payload")}
    ids = [str(one) for one in entry["masks"]]
    return annotations.annotation(name, entry.get("task", "referring"), ids, text=text, **about)


def _prompted(index: int, num_masks: int) -> str:
    if index >= num_masks:
        raise DataError(f"<Prompt{index}> is named, but there are {num_masks} masks", reason="unknown_region")
    return str(index + 1)


def _of_problem(values: Record) -> dict[str, Any]:
    """EasyR1: all masks of a row are the targets of its prompt, a text or a list of one."""
    row = rl_rows.of_easyr1(values)
    entry = {"text": row.problem, "masks": list(range(1, len(row.masks) + 1))}
    if row.source is not None:
        entry["tags"] = [row.source]
    if row.answer is not None:
        entry["payload"] = {"answer": row.answer}
    return {"masks": row.masks, "texts": [entry]}


def _of_samples(values: Record) -> dict[str, Any]:
    """RefCOCO-M: each sample has a mask, and sentences about it."""
    rles, texts = [], []
    for number, sample in enumerate(rl_rows.listed(values["samples"], "samples"), start=1):
        if not isinstance(sample, dict) or "mask" not in sample or "sentences" not in sample:
            raise DataError(
                f"sample {number} is {sample!r:.200}, expected mask and sentences", reason="sample"
            )
        rles.append(rl_rows.rle_of(sample["mask"]))
        sentences = rl_rows.listed(sample["sentences"], "sentences")
        texts += [{"text": one, "masks": [number]} for one in sentences]
    return {"masks": rles, "texts": texts}


def _of_conversations(values: Record) -> dict[str, Any]:
    """GAR: RLEs, structs or JSON texts of them, and one conversation."""
    found = rl_rows.rle_of(values["mask_rle"])
    rles = [rl_rows.rle_of(one) for one in found] if isinstance(found, list) else [found]
    body = {"masks": rles, "texts": [{"conversation": values["conversations"]}]}
    return body | ({"whole": True} if found is None else {})


def _of_words(values: Record) -> dict[str, Any]:
    """A corpus of words as ``pipelines.tools.export_words`` writes it; its words are not read."""
    size = [values["height"], values["width"]]
    rles, named = [], []
    for mask in rl_rows.listed(values["masks"], "masks"):
        fields = mask if isinstance(mask, dict) else {}
        flags, counts = rl_rows.listed(fields.get("flags"), "flags"), fields.get("rle")
        rles.append(None if counts is None else {"size": size, "counts": counts})
        about = {"mask_id": records.id_text(fields.get("mask_id")) or "", "label": fields.get("label")}
        about["occluded"] = "occluded" in flags
        named.append({**about, "iscrowd": int("crowd" in flags), "ignore": "void" in flags})
    told = rl_rows.listed(values["annotations"], "annotations")
    if not all(map(_is_annotation, told)):
        raise DataError(f"annotations are {told!r:.200}, expected those of a row", reason="parquet_value")
    size_hw = {"height": values["height"], "width": values["width"]}
    return {"masks": rles, "named": named, "annotations": told, "texts": [], **size_hw}


def _is_annotation(value: Any) -> bool:
    """Whether a value has what ``pipelines.schema`` says of an annotation."""
    if not isinstance(value, dict) or set(value) != _ANNOTATION:
        return False
    texts = (value["annotation_id"], *rl_rows.listed(value["mask_ids"], "mask_ids"))
    return value["task"] in schema.ANNOTATION_TASKS and all(isinstance(text, str) for text in texts)


def _of_captions(values: Record) -> dict[str, Any]:
    """sam_obj_cap_gar: a JSON list of masks with a caption each."""
    entries = values["ann"]
    if isinstance(entries, str):
        entries = records.parse_json(entries.encode(errors="replace"), "ann")
    return captioned(entries, lambda entry: entry["ann"]["segmentation"])


def _of_pickle(values: Record) -> dict[str, Any]:
    return of_pickle(values["pickle"])


def of_pickle(raw: Any) -> dict[str, Any]:
    """Returns the body of DAM's pickled list of masks with a caption each; raises DataError as
    ``safe_pickle.load_plain``, and ``parquet_value`` for what is no such list."""
    if not isinstance(raw, bytes):
        raise DataError(f"pickle is a {type(raw).__name__}, expected bytes", reason="parquet_value")
    return captioned(safe_pickle.load_plain(raw, "the pickle"), lambda entry: entry["mask_rle"])


def captioned(entries: Any, mask_of: Callable[[Record], Any]) -> dict[str, Any]:
    """Returns a body of masks with a caption each; what is no such entry is a mask that cannot be read."""
    rles, texts = [], []
    for number, entry in enumerate(rl_rows.listed(entries, "regions"), start=1):
        try:
            rle, caption = rl_rows.rle_of(mask_of(entry)), entry.get("caption")
        except (TypeError, KeyError, AttributeError, DataError):
            rle, caption = repr(entry)[:80], None
        rles.append(rle)
        texts.append({"text": caption, "masks": [number], "task": "region_caption"})
    return {"masks": rles, "texts": texts}


LAYOUTS = (
    Layout(frozenset({"images", "problem", "masks"}), "images", ("answer", "source"), _of_problem),
    Layout(frozenset({"image", "samples"}), "image", (), _of_samples),
    Layout(frozenset({"image", "mask_rle", "conversations"}), "image", (), _of_conversations),
    Layout(frozenset({"image", "masks", "annotations", "height", "width"}), "image", (), _of_words),
    Layout(frozenset({"image", "ann"}), "image", (), _of_captions),
    Layout(frozenset({"jpg", "pickle"}), "jpg", (), _of_pickle),
)
