"""The registry of datasets, and the tool that lists, describes and checks them."""

import shlex
from pathlib import Path

import pytest
import tyro

from jobs.make_shapes import main as make_shapes
from pipelines.config import parse_pairs
from pipelines.ingestion.corpora import CorpusSpec, mixed
from pipelines.ingestion.known_datasets import KNOWN, USES, parts_of
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tools.datasets import command_of, main, markdown
from samtok.errors import ConfigError
from tests.pipelines.test_mixtures import corpus_of, write

ROOT = Path(__file__).parents[2]
SPLITS = [(known.name, split) for known in KNOWN.values() for split in known.splits]


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_each_split_is_a_corpus_and_its_command_says_the_same(name, split):
    parts = parts_of(name, "data", split)
    assert parts.pop("root") == "data" and parts["dataset"] == name
    spec = CorpusSpec.of_parts(parts, name, "corpora").below("data")
    assert spec.corpus.source.startswith("data")
    words = shlex.split(command_of(name, "data", split))
    assert words[:2] == ["python", "jobs/tokenize_corpus.py"]
    config = tyro.cli(TokenizeCorpusConfig, args=words[2:])
    assert config.corpus == spec.corpus


def test_each_dataset_says_where_it_is_from_and_under_which_terms():
    for known in KNOWN.values():
        assert known.get and known.licence and known.gives and known.title
        assert set(known.use) <= set(USES)
        assert len(set(known.splits)) == len(known.splits)


def test_the_table_in_the_docs_is_that_of_the_registry():
    text = (ROOT / "docs/datasets.md").read_text()
    table = text.partition("<!-- known datasets -->")[2].partition("<!-- end -->")[0]
    assert table.strip().splitlines() == list(markdown())


def test_a_dataset_that_is_there_is_counted_and_drawn(tmp_path, capsys):
    root = tmp_path / "coco"
    assert make_shapes(["--out", str(root), "--split", "val2017", "--num-images", "5"]) == 0
    page = tmp_path / "page.html"
    flags = ["--root", str(root), "--split", "val", "--output", str(page)]
    assert main(["check", "coco", *flags, "--rows", "3", "--all"]) == 0
    said = capsys.readouterr().out
    assert "found     source" in said and "5 images" in said
    assert page.read_text().count("data:image/jpeg") == 3
    assert main(["check", "coco", *flags, "--rows", "0"]) == 0


def test_what_is_missing_is_named_with_its_place(tmp_path, capsys):
    assert main(["check", "coco", "--root", str(tmp_path), "--split", "val"]) == 2
    said = capsys.readouterr()
    assert f"missing   source    {tmp_path}/annotations/instances_val2017.json" in said.out
    assert "coco/val lacks" in said.err and "Published at cocodataset.org" in said.err


def test_any_corpus_and_any_mixture_is_checked(tmp_path, capsys):
    for layout in ("refer", "sa1b"):
        assert make_shapes(["--format", layout, "--out", str(tmp_path / layout), "--num-images", "4"]) == 0
    refer = {"reader": "refer", "source": "refer/grefs.json", "images": "refer/train"}
    datasets = [refer, {"reader": "sa1b", "source": "sa1b"}]
    mixture = write(tmp_path, {"root": str(tmp_path), "datasets": datasets})
    page = tmp_path / "page.html"
    assert main(["check", f"reader=mixture,source={mixture}", "--output", str(page), "--all"]) == 0
    assert f"found     source    {tmp_path}/refer/grefs.json" in capsys.readouterr().out
    assert "referring" in page.read_text()  # texts of the first dataset
    (tmp_path / "refer/grefs.json").unlink()
    assert main(["check", f"reader=mixture,source={mixture}", "--output", str(page)]) == 2
    assert "refer/train lacks" in capsys.readouterr().err


def test_a_known_dataset_in_a_mixture_is_written_out(tmp_path):
    entry = {"known": "coco", "root": str(tmp_path), "split": "val", "weight": 2, "dataset": "mine"}
    (spec,) = mixed(corpus_of(write(tmp_path, {"datasets": [entry]})))
    assert spec.corpus.source == f"{tmp_path}/annotations/instances_val2017.json"
    assert (spec.weight, spec.name, spec.corpus.split) == (2, "mine", "val")
    for changed, told in (({"known": "cocco"}, "no known dataset cocco"), ({"split": "x"}, "no split x")):
        with pytest.raises(ConfigError, match=told):
            mixed(corpus_of(write(tmp_path, {"datasets": [entry | changed]})))


@pytest.mark.parametrize("path", sorted((ROOT / "infra/mixtures").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_mixtures_that_ship_can_be_read(path):
    specs = mixed(corpus_of(str(path)))
    assert len(specs) > 1


def test_lists_and_descriptions_are_printed(capsys):
    assert main(["list", "--use", "benchmark"]) == 0
    said = capsys.readouterr().out
    assert "grefcoco" in said and "sa1b" not in said
    assert main(["list", "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines() == list(markdown())
    for name, known in KNOWN.items():
        assert main(["describe", name]) == 0
        said = capsys.readouterr().out
        assert known.get in said and known.licence in said
        assert said.count("jobs/tokenize_corpus.py") == len(known.splits)
        source = parse_pairs(next(iter(known.splits.values())), flag="known")["source"]
        assert source in said
