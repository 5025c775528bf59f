"""Datasets of a mixture file: read as one, drawn by weight, composed by their own tasks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.compose_dialogues import main as compose_dialogues
from jobs.make_shapes import main as make_shapes
from jobs.tokenize_corpus import main as tokenize_corpus
from pipelines.chats.corpus import load_chat_corpus, rows_of
from pipelines.chats.spec import ChatCorpusSpec, chat_specs_of
from pipelines.ingestion.corpora import CorpusConfig, CorpusSpec, mixed, of_datasets, reader_of, specs_of
from pipelines.ingestion.reader import Input, read_record
from samtok.errors import ConfigError
from tests.jobs import read_manifest

HERE = ("--workers", "0", "--tracking", "off")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Four datasets of different layouts, of 6 images each."""
    home = tmp_path_factory.mktemp("mixture")
    for layout in ("coco", "sa1b", "refer", "panoptic"):
        assert make_shapes(["--format", layout, "--out", str(home / layout), "--num-images", "6"]) == 0
    return home


def entries(**changed: Any) -> list[dict[str, Any]]:
    coco = {"source": "coco/annotations/instances_train.json", "images": "coco/train", "dataset": "coco"}
    panoptic = {"source": "panoptic/annotations/panoptic_train.json", "images": "panoptic/train"}
    return [
        {"reader": "coco", **coco, "weight": 3, **changed},
        {"reader": "sa1b", "source": "sa1b", "limit": 4, "weight": 1},
        {"reader": "refer", "source": "refer/grefs.json", "images": "refer/train", "weight": 1},
        {"reader": "panoptic", **panoptic, "weight": 0.5},
    ]


def write(home: Path, body: Any, name: str = "mix.yaml") -> str:
    path = home / name
    path.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
    return str(path)


def corpus_of(uri: str) -> CorpusConfig:
    return CorpusConfig(reader="mixture", source=uri, dataset="four")


def test_a_mixture_is_read_as_its_datasets_one_after_the_other(home):
    corpus = corpus_of(write(home, {"root": str(home), "datasets": entries()}))
    reader, specs = reader_of(corpus), mixed(corpus)
    alone = [list(spec.reader().inputs())[: spec.limit] for spec in specs]
    assert [len(items) for items in alone] == [6, 4, 6, 6]
    together = list(reader.inputs())
    assert [item.key for item in together] == [
        f"{number:03d}/{item.key}" for number, items in enumerate(alone) for item in items
    ]
    assert together == sorted(together, key=lambda item: item.key)
    of_parts = [item for part in reader.parts() for item in reader.inputs_of(part)]
    assert sorted(of_parts, key=lambda item: item.key) == together
    one_by_one = [
        read_record(spec.reader(), item) for spec, items in zip(specs, alone, strict=True) for item in items
    ]
    assert [read_record(reader, item) for item in together] == one_by_one
    witness = reader.witness(together)
    assert {name[:3] for name in witness} == {"000", "001", "002", "003"}
    head = reader.head(8)
    assert {item.key[:3] for item in head.items if isinstance(item, Input)} == {"000", "001", "002", "003"}


def test_places_are_below_the_root_unless_they_are_absolute(home, monkeypatch):
    monkeypatch.chdir(home)
    below = [{**entries()[0], "root": "s3://bucket/data"}, entries()[1]]
    first, second = mixed(corpus_of(write(home, {"datasets": below})))
    assert first.corpus.source == "s3://bucket/data/coco/annotations/instances_train.json"
    assert first.corpus.images == "s3://bucket/data/coco/train"
    assert second.corpus.source == str(home / "sa1b")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("[", "is no YAML"),
        ("- a", "expected some of root, datasets and chats"),
        ({"sets": []}, "the keys sets"),
        ({"datasets": []}, "has no dataset"),
        ({"datasets": ["coco"]}, "datasets must be a list of entries"),
        ({"datasets": [{"reader": "coco"}]}, r"datasets\[1\]: source must be given"),
        ({"datasets": [{**entries()[0], "wieght": 1}]}, r"datasets\[1\] has the key wieght"),
        ({"datasets": [{**entries()[0], "weight": "much"}]}, r"datasets\[1\]: weight"),
        ({"datasets": [{**entries()[0], "limit": True}]}, "limit of datasets.1. must be a text"),
        ({"datasets": [entries()[0], entries()[0]]}, "has coco/train twice"),
        ({"datasets": [{"reader": "mixture", "source": "other.yaml"}]}, "is a mixture itself"),
        (
            {"datasets": [{"reader": "sa1b", "source": "x", "legend": "y"}]},
            "legend is no option of reader sa1b",
        ),
    ],
)
def test_a_file_that_is_no_mixture_is_refused(home, body, told):
    with pytest.raises(ConfigError, match=told) as caught:
        mixed(corpus_of(write(home, body, "bad.yaml")))
    assert "bad.yaml" in caught.value.message


def test_a_mixture_in_a_flag_stands_for_its_datasets(home):
    uri = write(home, {"root": str(home), "datasets": entries()})
    first, *others = specs_of(
        [f"reader=mixture,source={uri},limit=5", "reader=sa1b,source=x"], flag="corpora"
    )
    assert [spec.weight for spec in (first, *others)] == [3, 1, 1, 0.5, None]
    assert [spec.limit for spec in (first, *others)] == [5, 4, 5, 5, None]
    assert first == CorpusSpec.parse(first.text, flag="corpora")
    with pytest.raises(ConfigError, match="weights of a mixture stand in its file"):
        specs_of([f"reader=mixture,source={uri},weight=2"], flag="corpora")


@pytest.mark.slow
@pytest.mark.numerics
def test_words_of_a_mixture_are_those_of_its_datasets_and_the_report_tells_them_apart(home, tmp_path):
    uri = write(home, {"root": str(home), "datasets": entries()})
    corpus = ("--corpus.reader", "mixture", "--corpus.source", uri, "--corpus.dataset", "four")
    more = ("--tokenizer", "tour", "--reconstruct", "1", "--shard-rows", "16", *HERE)
    out = tmp_path / "words"
    assert tokenize_corpus([*corpus, *more, "--out", str(out)]) == 0
    manifest = read_manifest(out)
    found = manifest["datasets"]
    assert {name: counts["rows"] for name, counts in found.items()} == {
        "coco": 6,
        "panoptic": 6,
        "refer": 6,
        "sa1b": 4,
    }
    for total, key in (("rows_out", "rows"), ("masks_out", "masks"), ("masks_rejected", "masks_rejected")):
        assert sum(counts[key] for counts in found.values()) == manifest["totals"][total]
    assert sum(counts["iou_count"] for counts in found.values()) == manifest["iou"]["count"]
    page = (out / "report/index.html").read_text()
    assert "Datasets" in page and "panoptic" in page
    assert tokenize_corpus([*corpus, *more, "--out", str(out)]) == 0  # nothing is left to do
    one, *_ = entries()
    changed = write(
        home, {"root": str(home), "datasets": [{**one, "limit": 3}, *entries()[1:]]}, "other.yaml"
    )
    other = [changed if word == uri else word for word in corpus]
    assert tokenize_corpus([*other, *more, "--out", str(out)]) == 2  # these words are of another mixture

    refer = {"dataset": "refer", "tasks": "gres=1", "styles": ["authors", "json"]}
    tasks = [refer, {"dataset": "coco", "tasks": ["instances"]}]
    mixture = write(home, {"datasets": tasks}, "tasks.yaml")
    chats = tmp_path / "chats"
    flags = ("--words", str(out), "--tasks", "instances=0.5", "--mixture", mixture, "--tracking", "off")
    assert compose_dialogues([*flags, "--out", str(chats)]) == 0
    rows = list(rows_of(load_chat_corpus(str(chats))))
    kinds = {(row["dataset"], row["task"]) for row in rows}
    styles = {(row["dataset"] == "refer", json.loads(row["meta"])["style"]) for row in rows}
    assert styles == {(True, "authors"), (True, "json"), (False, "words")}
    assert kinds >= {("refer", "gres"), ("coco", "instances"), ("panoptic", "instances")}
    assert ("refer", "instances") not in kinds
    totals = read_manifest(chats)["totals"]
    of_each = [totals[f"samples_out of {name}"] for name in ("coco", "panoptic", "refer", "sa1b")]
    assert sum(of_each) == totals["samples_out"] and all(of_each)
    assert "Datasets" in (chats / "report/index.html").read_text()
    assert read_manifest(chats)["fingerprint"]["tasks_of"] == {
        "refer": {"gres": 1.0},
        "coco": {"instances": 1.0},
    }


def test_a_dataset_without_its_images_ends_the_run_before_it_begins(home, tmp_path, capsys):
    (empty := tmp_path / "images").mkdir()
    datasets = [*entries()[1:], {**entries()[0], "images": str(empty)}]
    uri = write(home, {"root": str(home), "datasets": datasets}, "gone.yaml")
    corpus = ("--corpus.reader", "mixture", "--corpus.source", uri, "--tokenizer", "tour")
    assert tokenize_corpus([*corpus, *HERE, "--out", str(tmp_path / "words")]) != 0
    assert "images of coco that were tried is there" in capsys.readouterr().err
    assert not (tmp_path / "words/commits").exists()


def test_tasks_of_one_dataset_agree(home):
    two = [{"dataset": "a", "split": "x", "tasks": "gres"}, {"dataset": "a", "split": "y", "tasks": "res"}]
    with pytest.raises(ConfigError, match="has other tasks than an earlier a"):
        of_datasets(write(home, {"datasets": two}), "tasks", flag="--mixture")


def test_chats_of_a_mixture_are_read_where_chats_are_named(home):
    body = {
        "root": "s3://b",
        "chats": [{"uri": "words", "weight": 2}, {"uri": "/vqa", "limit": 5, "weight": 1}],
    }
    found = chat_specs_of([write(home, body), "uri=/more,weight=3"], flag="chats")
    assert found == [
        ChatCorpusSpec("s3://b/words", 2, None),
        ChatCorpusSpec("/vqa", 1, 5),
        ChatCorpusSpec("/more", 3, None),
    ]
    for body, told in (({"chats": [{"url": "x"}]}, "has the key url"), ({"datasets": []}, "names no chats")):
        with pytest.raises(ConfigError, match=told):
            chat_specs_of([write(home, body)], flag="chats")


@pytest.mark.slow
@pytest.mark.numerics
def test_a_plain_corpus_has_no_table_of_datasets(home, tmp_path):
    corpus = ("--corpus.reader", "sa1b", "--corpus.source", str(home / "sa1b"), "--tokenizer", "tour")
    assert tokenize_corpus([*corpus, *HERE, "--out", str(tmp_path / "words")]) == 0
    assert "datasets" not in read_manifest(tmp_path / "words")
    record = json.loads(next((tmp_path / "words/commits").iterdir()).read_text())
    assert "datasets" not in record
    assert dataclasses.asdict(corpus_of("x"))["reader"] == "mixture"
