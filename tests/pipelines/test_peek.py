"""A bounded look at a corpus of every layout, as dry runs take it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from jobs.cold_start import main as cold_start
from jobs.evaluate_mllm import main as evaluate_mllm
from jobs.grpo_gres import main as grpo_gres
from jobs.tokenize_corpus import main as tokenize_corpus
from jobs.train_mllm import main as train_mllm
from jobs.train_tokenizer import main as train_tokenizer
from pipelines import storage
from pipelines.ingestion.coco import CocoReader
from pipelines.ingestion.peek import peek
from pipelines.ingestion.reader import Input, Reader
from pipelines.ingestion.refer import ReferReader
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import make_shapes
from samtok.shapes import WorldConfig
from tests.mllm_evaluations import World, write_chats
from tests.readers import build_reader

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

FILES = {
    "coco": "annotations/instances_train.json",
    "refer": "grefs.json",
    "granf": "granf.json",
    "psg": "psg.json",
    "dam": "annotations.json",
    "sa1b": "",
    "panoptic": "annotations/panoptic_train.json",
    "ade20k": "ADE/training",
    "cityscapes": "gtFine/train",
    "masks": "masks/train",
    "labelme": "train",
    "yolo": "labels/train",
    "gar": "",
    "segllm": "mr_refcoco_train.json",
}
WITHOUT_COUNTS = ("sa1b", "ade20k", "cityscapes", "labelme", "yolo")
"""Layouts of which only reading shows how many masks there are."""


def corpus(folder: Path, kind: str, **fields) -> Reader:
    """Twenty scenes in a layout."""
    world = WorldConfig.square(48)
    config = ShapesConfig(out=str(folder), format=kind, num_images=20, world=world, **fields)  # type: ignore
    make_shapes(config)
    images = dict.fromkeys(("granf", "coco", "refer", "panoptic", "masks", "labelme"), f"{folder}/train")
    images |= {"ade20k": f"{folder}/ADE/training", "cityscapes": f"{folder}/leftImg8bit/train"}
    images["yolo"] = f"{folder}/images/train"
    place = {} if kind in ("sa1b", "gar") else {"images": images.get(kind, str(folder))}
    source = str(folder / FILES[kind]).rstrip("/")
    if kind in ("ade20k", "cityscapes"):
        return build_reader("labelmap", source=source, encoding=kind, **place)
    more = {"mask_files": (f"refcoco={folder}/instances.json",)} if kind == "segllm" else {}
    return build_reader(kind, source=source, **place, **more)


@pytest.mark.parametrize("kind", FILES)
def test_a_small_corpus_is_counted_whole_and_eight_images_are_read(tmp_path, kind):
    reader = corpus(tmp_path, kind)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = peek(reader)
    inputs = [item for item in reader.inputs() if isinstance(item, Input)]
    assert (found.images, found.more, found.rejects, found.read) == (len(inputs), False, 0, 8)
    assert found.masks == (None if kind in WITHOUT_COUNTS else sum(item.num_masks or 0 for item in inputs))
    assert not found.faults and str(found).startswith(f"{len(inputs)} images, ")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", FILES)
def test_of_a_longer_corpus_the_first_images_are_counted(tmp_path, kind):
    reader = corpus(tmp_path, kind)
    found = peek(reader, limit=6)
    assert (found.images, found.more) == ((3 if kind == "sa1b" else 6), True)  # there a limit is of names
    assert str(found).startswith(f"at least {found.images} images, ")


def test_images_that_are_not_there_and_masks_that_cannot_be_read_are_found(tmp_path):
    reader = corpus(tmp_path, "coco")
    path = tmp_path / FILES["coco"]
    body = json.loads(path.read_text())
    body["annotations"][0]["segmentation"] = "x"
    path.write_text(json.dumps(body))
    (tmp_path / "train" / "000000000001.jpg").unlink()
    found = peek(reader)
    assert len(found.faults) == 2 and any("000000000001.jpg" in text for text in found.faults)


def test_the_first_the_last_and_some_between_are_opened(tmp_path):
    reader = corpus(tmp_path, "coco")
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"no image")
    opened = [int(text.partition(".jpg")[0][-12:]) for text in peek(reader).faults]
    order = sorted(range(1, 21), key=str)  # of keys, which are text
    places = [order.index(number) for number in opened]
    assert len(opened) == 8 and places == sorted(places)
    assert (places[0], places[-1]) == (0, 19) and places[1:-1] != list(range(1, 7))


def words_flags(root: Path, out: Path) -> list[str]:
    """Flags that tokenize the COCO corpus below ``root`` in this process; --corpus.images is left out."""
    flags = ["--corpus.reader", "coco", "--corpus.source", str(root / FILES["coco"]), "--tokenizer", "tiny"]
    return [*flags, "--out", str(out), "--workers", "0", "--report-images", "0", "--tracking", "off"]


@pytest.mark.parametrize("wrong", ["nothing", "annotations"])
def test_a_mistyped_folder_of_images_is_an_error_before_anything_is_planned(tmp_path, wrong, capsys):
    corpus(tmp_path, "coco")
    right, out = str(tmp_path / "train"), tmp_path / "words"
    flags = words_flags(tmp_path, out)
    for more in (["--dry-run"], []):
        code = tokenize_corpus([*flags, "--corpus.images", str(tmp_path / wrong), *more])
        assert code == 3 and "Is the folder of images right" in capsys.readouterr().err
        assert not out.exists() or not list(out.iterdir())
    assert tokenize_corpus([*flags, "--corpus.images", right, "--limit", "2"]) == 0


def test_training_a_tokenizer_opens_images_first_too(tmp_path, capsys):
    corpus(tmp_path, "coco")
    text = f"reader=coco,source={tmp_path / FILES['coco']},images={tmp_path / 'nothing'}"
    flags = [
        "--model",
        "micro",
        "--corpora",
        text,
        "--validation.corpora",
        text,
        "--steps",
        "40",
        "--out",
        str(tmp_path / "out"),
    ]
    assert train_tokenizer([*flags, "--tracking", "off", "--dry-run"]) == 3
    assert "Is the folder of images right" in capsys.readouterr().err


def test_a_corpus_in_which_nothing_got_words_is_planned_anew_and_another_is_not(tmp_path, capsys):
    corpus(tmp_path, "coco")
    out = tmp_path / "words"
    flags = words_flags(tmp_path, out)
    flags += ["--corpus.images", str(tmp_path / "train"), "--limit", "2", "--shard-rows", "1"]
    tokenize_corpus([*flags, "--min-area-px", "9999"])
    assert list((out / "commits").iterdir())
    assert tokenize_corpus([*flags, "--dry-run"]) == 0
    assert tokenize_corpus([*flags, "--limit", "1"]) == 0
    assert storage.read_json(str(out / "_MANIFEST.json"))["totals"]["masks_out"] > 0
    assert len(list((out / "commits").iterdir())) == len(list((out / "data").iterdir())) == 1
    assert tokenize_corpus(flags) == 2 and "limit: planned 1, now 2" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["flat", "tar"])
def test_sa1b_reads_no_more_names_than_it_may(tmp_path, layout):
    reader = corpus(tmp_path, "sa1b", layout=layout, images_per_folder=5)
    found = peek(reader, limit=7)
    assert found.more and found.images == {"flat": 3, "tar": 5}[layout] and not found.faults
    assert storage.list_files(str(tmp_path), limit=5) == storage.list_files(str(tmp_path))[:5]


class SmallCocoReader(CocoReader):
    max_head_bytes = 100


class SmallReferReader(ReferReader):
    max_head_bytes = 100


def test_a_large_file_is_not_parsed_and_its_first_images_are_counted(tmp_path):
    corpus(tmp_path, "coco")
    path = tmp_path / FILES["coco"]
    path.write_text(path.read_text()[:-20])  # no longer JSON, so parsing it would fail
    reader = SmallCocoReader(name="x", split="train", source=str(path), images=str(tmp_path))
    found = peek(reader)
    assert (found.images, found.masks, found.more, found.read) == (20, None, True, 0)
    assert str(found) == "at least 20 images, masks known after reading, 0 rejects when listing; 0 read"
    assert peek(reader, limit=9).images == 9


def test_a_large_file_of_objects_leaves_the_images_that_have_expressions(tmp_path):
    whole = corpus(tmp_path, "refer")
    source = str(tmp_path / FILES["refer"])
    found = peek(SmallReferReader(name="x", split="train", source=source, images=str(tmp_path)))
    assert found.images == len(list(whole.inputs())) and found.more and found.read == 0


def test_a_corpus_that_does_not_exist_is_named(tmp_path):
    reader = build_reader("coco", source=str(tmp_path / "none.json"), images=str(tmp_path))
    with pytest.raises(storage.NotFoundError, match=r"none\.json"):
        peek(reader)


def test_osprey_is_listed_too(tmp_path):
    region = {"segmentation": [[1, 1, 5, 1, 5, 5]]}
    entry = {"file_name": "a.jpg", "height": 8, "width": 8, "annotation": [region]}
    path = tmp_path / "o.json"
    path.write_text(json.dumps([{**entry, "description": "<region1>: a ring"}, 7]))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    found = peek(build_reader("osprey", source=str(path), images=str(tmp_path)))
    assert found.images == found.masks == found.rejects == found.read == 1 and not found.faults


@pytest.mark.parametrize(
    ("main", "more"),
    [
        (train_mllm, ("--model", "{model}")),
        (evaluate_mllm, ("--model", "{model}", "--benchmark", "gres")),
        (grpo_gres, ("--model", "{model}")),
        (cold_start, ("--teacher.model", "{model}", "--min-iou", "0")),
    ],
)
def test_chats_whose_images_are_all_gone_are_an_error_of_every_job_before_it_starts(
    world, tmp_path, capsys, main: Callable[[list[str]], int], more: tuple[str, ...]
):
    rows = [{**row, "images": [{**row["images"][0], "uri": "/nowhere/x.png"}]} for row in world.rows]
    flags = [
        *(text.format(model=world.model) for text in more),
        *(
            "--tokenizer",
            world.tokenizer_uri,
            "--tracking",
            "off",
            "--dry-run",
            "--out",
            str(tmp_path / "out"),
        ),
    ]
    if main is cold_start:
        flags = flags[:2] + flags[6:]
    for number, spoilt in enumerate((rows, rows[:-1])):
        chats = [*spoilt, *world.rows[len(spoilt) :]]
        corpus = write_chats(tmp_path / str(number), chats, weights_sha256=world.sha256)
        assert main([*flags, "--chats", corpus]) == (0 if number else 3)
        said = capsys.readouterr().err
        assert ("images of the chats in" in said) == (not number), said


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world") / "world", 4)
