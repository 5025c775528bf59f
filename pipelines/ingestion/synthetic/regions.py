"""Synthetic scenes in layouts of regions with texts and of several rounds.

- gar: Arrow streams with embedded images, and of each scene a conversation that describes every shape and
  says how shapes relate (Haochen-Wang409/Grasp-Any-Region);
- segllm: conversations of several rounds, whose later ones refer to masks of the first, and the masks in
  COCO layout (berkeley-hipie/segllm).

Each writer returns the number of masks.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from pipelines import storage
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.coco import write_instances
from pipelines.ingestion.synthetic.config import ShapesConfig
from samtok.shapes import Scene, description, relations

GAR_BATCH_ROWS = 100
"""Rows of a record batch, as ``datasets`` writes tables with images."""

RLE = pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])
GAR_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("mask_rle", pa.list_(RLE)),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
    ]
)


def gar_files(config: ShapesConfig) -> int:
    """Writes ``data-00000-of-00001.arrow`` and so on, ``images_per_folder`` scenes to a file."""
    num_masks = 0
    for uri, scenes in common.scenes_of_files(config, "data-{:05d}-of-{:05d}.arrow"):
        rows = []
        for scene in scenes:
            rows.append(_described(scene, config))
            num_masks += len(scene.objects)
        common.put_new(uri, lambda rows=rows: _stream(rows))
    return num_masks


def _stream(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, GAR_SCHEMA) as stream:
        table = pa.Table.from_pylist(rows, schema=GAR_SCHEMA)
        stream.write_table(table, max_chunksize=GAR_BATCH_ROWS)
    return buffer.getvalue()


def _described(scene: Scene, config: ShapesConfig) -> dict[str, Any]:
    image = common.image_bytes(scene, config.image_format, config.jpeg_quality)
    return {
        "image": {"bytes": image, "path": common.image_name(scene, config)},
        "mask_rle": [common.rle(shape) for shape in scene.objects],
        "conversations": about_regions(scene, "<Prompt{}>".format),
    }


def about_regions(scene: Scene, name_of: Callable[[int], str]) -> list[dict[str, str]]:
    """Returns a conversation that describes every shape and says how shapes relate.

    Args:
        scene: Of the shapes.
        name_of: Returns how the dataset names a shape by its index in the scene.
    """
    names = [name_of(i) for i in range(len(scene.objects))]
    said = [
        (f"What is {name}?", description(shape)) for name, shape in zip(names, scene.objects, strict=True)
    ]
    for i, word, j in relations(scene):
        said.append((f"Where is {names[i]}, seen from {names[j]}?", f"{names[i]} is {word} {names[j]}."))
    return _conversation(said)


def segllm_files(config: ShapesConfig) -> int:
    """Writes ``mr_refcoco_<split>.json``, ``instances.json`` and the images."""
    entries: list[bytes] = []

    def noted() -> Iterator[Scene]:
        for scene in common.pictured(config):
            entries.append(common.json_bytes(_rounds(scene, config)))
            yield scene

    num_masks = write_instances("instances.json", noted(), config)
    name = f"mr_refcoco_{config.split}.json"
    storage.write_bytes(storage.join(config.out, name), common.json_list(entries) + b"\n")
    return num_masks


def _rounds(scene: Scene, config: ShapesConfig) -> dict[str, Any]:
    image = f"{config.split}/{common.image_name(scene, config)}"

    def bracket(kind: str, index: int) -> str:
        return f"[{kind}:{image}|refcoco|{common.mask_id(scene, index + 1)}]"

    def answer(indices: list[int]) -> str:
        return ", ".join(bracket("MASK-DECODE", index) for index in indices) + "."

    said = [(f"[IMAGE256:{image}] Segment every object.", answer(list(range(len(scene.objects)))))]
    groups: dict[tuple[str, int], list[int]] = {}
    for subject, word, thing in relations(scene):
        groups.setdefault((word, thing), []).append(subject)
    for (word, thing), subjects in groups.items():
        reference = bracket("MASK-ENCODE", thing) + bracket("BOX-ENCODE", thing)
        said.append((f"Segment all that is {word} {reference}.", answer(subjects)))
    return {"task": "segmentation", "base": "shapes", "conversations": _conversation(said)}


def _conversation(said: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": text}
        for turns in said
        for speaker, text in zip(("human", "gpt"), turns, strict=True)
    ]
