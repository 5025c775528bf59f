"""A tokenizer that knows synthetic shapes only says so, where the images are none."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluate_tokenizer import main as evaluate_tokenizer
from jobs.tokenize_corpus import main as tokenize_corpus
from pipelines import cli, storage
from pipelines.ingestion.corpora import CorpusConfig, is_of_shapes
from pipelines.tokenizer_training.worker import TokenizerWorker
from pipelines.tools.browse import main as browse
from samtok import folders
from samtok.config import PRESETS, SYNTHETIC, MaskTokenizerConfig
from samtok.model.tokenizer import MaskTokenizer
from tests import corpora
from tests.printed import parsed_by


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A synthetic corpus, the same files without its mark, and a tokenizer with the field."""
    root = tmp_path_factory.mktemp("synthetic")
    corpora.write_shapes(root / "shapes", num_images=2)
    for name in ("annotations", "train"):
        shutil.copytree(root / "shapes" / name, root / "photos" / name)
    model = MaskTokenizer.from_preset("micro")
    model.config = dataclasses.replace(model.config, trained_on=SYNTHETIC)
    model.save_pretrained(str(root / "tokenizer"))
    return {name: root / name for name in ("shapes", "photos", "tokenizer")}


def corpus(root: Path) -> dict[str, Any]:
    images, source = str(root / "train"), str(root / "annotations/instances_train.json")
    return {"reader": "coco", "source": source, "images": images, "dataset": root.name}


def test_the_mark_of_a_synthetic_corpus_is_found_beside_its_source_and_above(places):
    shapes, photos = places["shapes"], places["photos"]
    assert is_of_shapes(corpus(shapes)["source"])
    assert is_of_shapes(f"{shapes}/")
    assert is_of_shapes(f"{shapes}/sa_0.tar")
    assert not is_of_shapes(corpus(photos)["source"])
    assert not is_of_shapes("/")


def tokenized(places: dict[str, Path], name: str, out: Path, tracking: str) -> str:
    """Tokenizes a corpus; returns the page."""
    of_corpus = [part for key, value in corpus(places[name]).items() for part in (f"--corpus.{key}", value)]
    flags = [*of_corpus, "--tokenizer", str(places["tokenizer"]), "--out", str(out), "--tracking", tracking]
    assert tokenize_corpus([*flags, "--workers", "0", "--report-images", "1"]) == 0
    return (out / "report/index.html").read_text()


@pytest.mark.slow
@pytest.mark.numerics
def test_words_of_photographs_by_a_synthetic_tokenizer_carry_a_warning(places, database, tmp_path, capsys):
    from mlflow import MlflowClient

    uri = f"sqlite:///{database}"
    page = tokenized(places, "photos", tmp_path / "out", uri)
    text = "was trained on synthetic shapes, which photos has not"
    assert text in page and text in capsys.readouterr().err
    run = json.loads((tmp_path / "out/mlflow_run.json").read_text())["run_id"]
    assert text in MlflowClient(uri).get_run(run).data.tags["caveat"]
    assert browse([str(tmp_path / "out"), "--images", "1", "--output", str(tmp_path / "page.html")]) == 0
    assert text in (tmp_path / "page.html").read_text()
    assert "synthetic shapes" not in tokenized(places, "shapes", tmp_path / "fine", "off")
    assert "synthetic shapes" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.numerics
def test_so_does_its_evaluation(places, tmp_path):
    texts = [",".join(f"{k}={v}" for k, v in corpus(places[name]).items()) for name in ("shapes", "photos")]
    flags = ["--tokenizer", str(places["tokenizer"]), "--out", str(tmp_path), "--tracking", "off"]
    assert evaluate_tokenizer(["--corpora", *texts, *flags, "--workers", "0", "--report-images", "1"]) == 0
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("was trained on synthetic shapes, which photos has not") == 1


@pytest.mark.parametrize("job", ["tokenize_corpus", "evaluate_tokenizer", "train_mllm", "evaluate_mllm"])
def test_a_tokenizer_is_named_by_flag_or_preset(job, capsys):
    kind, presets = parsed_by(job)
    given = [
        "--out",
        "x",
        "--corpus.reader",
        "sa1b",
        "--corpus.source",
        "y",
        "--corpora",
        "reader=sa1b,source=y",
    ]
    given += ["--model", "m", "--chats", "c"]
    known = {flag.name for flag in cli.pages.flags_of(kind)}
    pairs = [pair for pair in zip(given[::2], given[1::2], strict=True) if pair[0] in known]
    with pytest.raises(SystemExit) as end:
        cli.parse(kind, presets, [part for pair in pairs for part in pair], doc=None)
    assert end.value.code == 2 and "--tokenizer" in capsys.readouterr().err
    assert presets["smoke"].tokenizer in ("tiny", "tour")


def test_shipped_tokenizers_say_what_they_know_and_keep_their_architecture():
    for name in ("tiny", "tour"):
        found = folders.read_config(name)
        assert found.trained_on == SYNTHETIC and found.architecture.trained_on == ""
        assert MaskTokenizerConfig.from_json(found.to_json()) == found
    assert folders.read_config("tiny").architecture == PRESETS["tiny"]
    assert "trained_on" not in PRESETS["tiny"].to_json()


@pytest.mark.parametrize(
    ("names", "seen"), [((), SYNTHETIC), (("shapes",), SYNTHETIC), (("shapes", "photos"), "")]
)
def test_a_training_writes_what_its_tokenizer_has_seen(places, tmp_path, names, seen):
    """Without a run: of a worker, export needs the tokenizer, the corpora and its rank."""
    worker = object.__new__(TokenizerWorker)
    worker.rank, worker.corpora = 0, [CorpusConfig(**corpus(places[name])) for name in names]
    worker.tokenizer = MaskTokenizer.from_pretrained(str(places["tokenizer"]))
    worker.export(str(tmp_path / "final"), {})
    assert folders.read_config(str(tmp_path / "final"), read=storage.read_bytes).trained_on == seen
