"""Artifacts of release 0.1 (tests/golden/artifacts-0.1.md): each is read, or refused with the way on."""

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import cli, shards
from pipelines.chats.corpus import answer_words, load_chat_corpus, rows_of, turns_of
from pipelines.chats.prompts import prompt_of
from pipelines.chats.source import ChatSource
from pipelines.cold_start.job import cold_start
from pipelines.config import flag_name
from pipelines.dialogues.job import compose_dialogues
from pipelines.grpo.trajectories import read_trajectories, steps_of
from pipelines.help import flags_of
from pipelines.mllm_evaluation.job import evaluate_mllm
from pipelines.renamed_flags import successor
from pipelines.tools import browse
from pipelines.training import checkpoints, resume
from samtok.errors import CheckpointError, ConfigError
from samtok.mllm.adapters import load_adapter
from samtok.model.tokenizer import MaskTokenizer
from tests import printed
from tests.jobs import read_manifest

ARCHIVE = Path(__file__).parent.parent / "golden/artifacts-0.1.tar.xz"

CONFIGS = {
    "words": "tokenize_corpus",
    "words-val": "tokenize_corpus",
    "chats": "compose_dialogues",
    "chats-imported": "compose_dialogues",
    "thoughts": "cold_start",
    "thoughts-model": "cold_start",
    "tokenizer-run": "train_tokenizer",
    "tokenizer-evaluation": "evaluate_tokenizer",
    "sft": "train_mllm",
    "mllm-evaluation": "evaluate_mllm",
    "sweep": "sweep_codebook",
    "grpo": "grpo_gres",
}
"""Job that wrote the config.json of each folder."""

GONE: dict[str, set[str]] = {}
"""Keys of config.json that have no successor, by job."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all artifacts; places in them begin with /data, where nothing is."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


# ---------------------------------------------------------------- corpora


@pytest.mark.parametrize("name", ["words", "words-val"])
def test_words_are_shown(name: str, old: Path, tmp_path: Path, capsys):
    page = tmp_path / "page.html"
    assert browse.main([str(old / name), "--images", "0", "--output", str(page)]) == 0
    assert "shapes" in capsys.readouterr().out and page.stat().st_size > 1000


def _without_slices(row: dict) -> dict:
    """Returns a chat without what was not noted then."""
    meta = json.loads(row["meta"])
    meta.pop("slices", None)
    return {**row, "meta": json.dumps(meta, ensure_ascii=False, sort_keys=True)}


def test_words_become_the_same_chats(old: Path, tmp_path: Path):
    kind, presets = printed.parsed_by("compose_dialogues")
    flags = ["--words", str(old / "words"), "--out", str(tmp_path / "chats"), "--min-iou", "0"]
    flags += ["--tasks", "gres=1,instances=0.5", "--styles", "words", "json", "--shard-rows", "64"]
    flags += ["--workers", "0", "--report-samples", "0", "--tracking", "off"]
    config = cli.parse(kind, presets, flags, doc="")
    assert compose_dialogues(config) == 0
    before, now = read_manifest(old / "chats"), read_manifest(tmp_path / "chats")
    made = [_without_slices(row) for row in rows(tmp_path / "chats", now, "data")]
    assert made == rows(old / "chats", before, "data")
    assert rows(tmp_path / "chats", now, "rejects") == rows(old / "chats", before, "rejects")
    assert now["fingerprint"] == before["fingerprint"] | {
        name: now["fingerprint"][name] for name in ("words", "code_version") if name in before["fingerprint"]
    }


@pytest.mark.parametrize("name", ["chats", "chats-val", "chats-imported", "thoughts"])
def test_chats_are_read_and_become_prompts(name: str, old: Path):
    corpus = load_chat_corpus(str(old / name))
    source = ChatSource(corpus)
    assert corpus.num_samples == len(source) == sum(1 for _ in rows_of(corpus)) > 0
    for index in range(len(source)):
        row = source.row(index)
        turns, words = turns_of(row), answer_words(row)
        assert turns and len(words) == sum(message["role"] == "assistant" for message in row["messages"])
        if name != "thoughts":  # its answers hold thoughts, which are no truth
            prompt_of(row, thinking=False, num_codes=corpus.num_codes, num_levels=corpus.num_levels)


def dry_run(job: Callable[[Any], int], name: str, *flags: str) -> int:
    """Runs a dry run in this process; returns its exit code."""
    kind, presets = printed.parsed_by(name)
    return job(cli.parse(kind, presets, [*flags, "--tracking", "off", "--dry-run"], doc=""))


ANSWERS = ("--benchmark", "gres", "--shard-rows", "2", "--generation.max-new-tokens", "12")


def test_an_evaluation_stands_beside_a_new_one_and_does_not_go_on_with_other_code(
    old: Path, capsys, monkeypatch
):
    monkeypatch.setattr("pipelines.mllm_evaluation.prepare.require_images", lambda _: None)  # none were kept
    flags = ["--model", str(old / "sft/final"), "--chats", str(old / "chats-val"), *ANSWERS]
    flags += ["--tokenizer", str(old / "tokenizer"), "--beside", f"old={old / 'mllm-evaluation'}"]
    assert dry_run(evaluate_mllm, "evaluate_mllm", *flags, "--out", str(old / "new")) == 0
    assert dry_run(evaluate_mllm, "evaluate_mllm", *flags, "--out", str(old / "mllm-evaluation")) == 2
    assert "Different: code_version: planned 1, now" in capsys.readouterr().err


def test_replies_become_the_same_thoughts(old: Path, tmp_path: Path):
    kind, presets = printed.parsed_by("cold_start")
    flags = ["--chats", str(old / "chats"), "--teacher.replies", str(old / "replies.jsonl")]
    flags += ["--out", str(tmp_path / "thoughts"), "--report-samples", "0", "--tracking", "off"]
    flags += ["--max-reject-rate", "0.5"]
    assert cold_start(cli.parse(kind, presets, flags, doc="")) == 0
    before, now = read_manifest(old / "thoughts"), read_manifest(tmp_path / "thoughts")
    for kind in ("data", "rejects"):
        assert rows(tmp_path / "thoughts", now, kind) == rows(old / "thoughts", before, kind)
    assert now["fingerprint"] == before["fingerprint"] | {"code_version": now["fingerprint"]["code_version"]}


def rows(out: Path, manifest: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Reads data or rejects of a corpus; rejects without messages, whose wording may change."""
    found = [
        row for shard in manifest["shards"] for row in pq.read_table(out / shard[kind]["file"]).to_pylist()
    ]
    return [row | {"message": ""} for row in found] if kind == "rejects" else found


def test_a_teacher_without_thoughts_left_its_replies(old: Path):
    assert shards.load_manifest(str(old / "thoughts-model/teacher"))["shards"]
    assert load_chat_corpus(str(old / "thoughts-model")).num_samples == 0


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer-run/final", "tokenizer-run/best"])
def test_tokenizers_are_loaded(name: str, old: Path):
    tokenizer = MaskTokenizer.from_pretrained(str(old / name))
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), bool)
    mask[10:30, 20:40] = True
    (codes,) = tokenizer.encode(image, [mask])
    assert len(codes) == tokenizer.config.quantizer.num_levels


@pytest.mark.parametrize("name", ["mllm", "sft/best", "sft/final", "grpo/best-0", "grpo/final"])
def test_mllms_are_loaded_with_their_words(name: str, old: Path):
    adapter = load_adapter(old / name)
    assert adapter.vocabulary is not None and adapter.vocabulary.num_codes == 64


# ---------------------------------------------------------------- runs

RUNS = {"tokenizer-run": [4], "sft": [2, 4], "grpo": [1, 2]}


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_are_found_and_refused_with_the_way_on(name: str, old: Path):
    out = str(old / name)
    assert checkpoints.steps(out) == RUNS[name]
    for step in RUNS[name]:
        with pytest.raises(CheckpointError, match=r"version 2, this release reads 3. Go on with .* --out"):
            checkpoints.load(out, step)


@pytest.mark.parametrize("name", RUNS)
def test_another_run_in_the_folder_is_refused_with_what_differs(name: str, old: Path):
    with pytest.raises(ConfigError, match="other settings. Different: .*seed: .* choose another --out"):
        resume.check_same(str(old / name), {"seed": 99})


def test_trajectories_are_read(old: Path):
    out = str(old / "grpo")
    assert steps_of(out) == [0, 1]
    assert len(list(read_trajectories(out))) == 16


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize("folder", CONFIGS)
def test_a_config_is_read_or_refused_with_every_new_name(folder: str, old: Path, capsys):
    job, path = CONFIGS[folder], old / folder / "config.json"
    kind, presets = printed.parsed_by(job)
    known = {flag.name.removeprefix("--") for flag in flags_of(kind)}
    gone = [leaf for leaf in leaves(json.loads(path.read_text())) if flag_name(leaf) not in known]
    if not gone:
        cli.parse(kind, presets, ["--config", str(path)], doc="")
        return
    with pytest.raises(SystemExit) as end:
        cli.parse(kind, presets, ["--config", str(path)], doc="")
    assert end.value.code == 2
    error = capsys.readouterr().err
    for leaf in gone:
        new = successor(leaf, known)
        if new is None:
            assert leaf in GONE.get(job, ()), f"{job}: {leaf} has no successor"
            assert f"{leaf.partition('.')[0]}" in error
        else:
            assert f"{leaf} is now {new.replace('-', '_')}" in error


def leaves(body: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of a config."""
    for name, value in body.items():
        if isinstance(value, dict) and value and name != "weights":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
