"""The job that gives checkpoints the mask words, run in this process: it needs no Ray."""

import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from jobs.extend_mllm import main
from pipelines import storage
from pipelines.extension.config import PRESETS, ExtendMllmConfig
from pipelines.extension.job import extend_mllm
from samtok.errors import ConfigError
from samtok.folders import weights_sha256
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Turn
from samtok.mllm.folder import SAMTOK_FILE
from samtok.mllm.loss import answer_loss
from samtok.mllm.tiny.config import TinyConfig
from samtok.mllm.vocab import MaskVocabulary
from samtok.model.tokenizer import MaskTokenizer
from tests.mllm_evaluations import write_chats
from tests.tiny_mllm import EACH_FAMILY, QWEN, build, picture

WORDS = 2 * 256 + 2
"""Words of the tokenizer that ships."""


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    """No database unless a test names one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")


def content(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_presets_are_what_they_say():
    assert PRESETS["smoke"].tiny == "qwen2_5_vl" and PRESETS["smoke"].rows == "codebooks"
    assert PRESETS["paper"].rows == "noise" and PRESETS["paper"].image.max_pixels == 4_194_304
    assert set(PRESETS) == {"smoke", "paper", "tour", "tour-tasks"}


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_plain_checkpoint_is_extended_and_can_be_trained(tmp_path, family):
    source = build(tmp_path / "hub", family, words=False, padded_rows=10)
    out = tmp_path / "out"
    before = content(source)
    assert main(["--tokenizer", "tiny", "--model", str(source), "--out", str(out)]) == 0
    assert content(source) == before
    adapter = load_adapter(out)
    assert adapter.vocabulary == MaskVocabulary(256, 2)
    assert adapter.tokenizer_sha256 == weights_sha256("tiny")
    model = adapter.load_model(out)
    answer = "".join(["<|mt_start|>", "<|mt_0007|>", "<|mt_0511|>", "<|mt_end|>"])
    sample = adapter.encode([Turn("user", (0, "Where?")), Turn("assistant", (answer,))], [picture()])
    assert sample.num_learnt == 5
    answer_loss(model, adapter.collate([sample])).backward()
    old = AutoModelForImageTextToText.from_pretrained(source)
    num_old = len(AutoTokenizer.from_pretrained(source))
    theirs, mine = old.state_dict(), model.state_dict()
    assert theirs.keys() == mine.keys()
    for name, value in theirs.items():
        same = mine[name][:num_old] if "embed_tokens" in name or "lm_head" in name else mine[name]
        assert torch.equal(same, value[: len(same)])


def test_the_type_of_weights_is_kept(tmp_path):
    source = build(tmp_path / "hub", words=False)
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(source)
    assert main(["--tokenizer", "tiny", "--model", str(source), "--out", str(tmp_path / "out")]) == 0
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.numerics
def test_a_tiny_model_is_the_same_for_the_same_flags_and_is_not_made_twice(tmp_path, lines):
    def run(name: str, *more: str) -> dict[str, str]:
        assert main(["--preset", "smoke", "--out", str(tmp_path / name), *more]) == 0
        made = content(tmp_path / name)
        del made["lineage.json"]  # has the folder's name
        return made

    first = run("a")
    assert first == run("b") != run("c", "--seed", "1")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    assert run("a") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()} == times
    lineage = json.loads((tmp_path / "a" / "lineage.json").read_text())
    assert lineage["config"]["tiny"] == "qwen2_5_vl"
    assert {"torch", "transformers", "commit"} <= set(lineage["versions"])


def distances_alike(out: Path) -> list[float]:
    """Correlates, per level, distances between rows of codes with those between the shipped codebook's."""
    adapter = load_adapter(out)
    rows = adapter.load_model(out).get_input_embeddings().weight.detach()
    vectors = MaskTokenizer.from_pretrained("tiny").quantizer.code_vectors()
    pairs = zip(adapter.word_ids.codes, vectors, strict=True)
    apart = [torch.stack([torch.pdist(rows[list(ids)]), torch.pdist(level)]) for ids, level in pairs]
    return [float(torch.corrcoef(both)[0, 1]) for both in apart]


@pytest.mark.slow
@pytest.mark.numerics
def test_rows_from_codebooks_have_their_geometry_and_the_lineage_says_so(tmp_path):
    source = build(tmp_path / "hub", words=False)
    for name, flags in {
        "tiny": ["--preset", "smoke"],
        "hub": ["--tokenizer", "tiny", "--model", str(source), "--rows", "codebooks"],
        "noise": ["--tokenizer", "tiny", "--model", str(source)],
    }.items():
        out = tmp_path / f"{name}-out"
        assert main([*flags, "--out", str(out)]) == 0
        found = distances_alike(out)
        assert max(map(abs, found)) < 0.1 if name == "noise" else min(found) > 0.8
        lineage = json.loads((out / "lineage.json").read_text())
        assert lineage["config"]["rows"] == ("noise" if name == "noise" else "codebooks")
        assert lineage["tokenizer_sha256"] == weights_sha256("tiny")


@pytest.mark.slow
@pytest.mark.numerics
def test_the_run_is_tracked_with_its_lineage(tmp_path):
    out, tracking = tmp_path / "out", f"sqlite:///{tmp_path}/runs.db"
    assert main(["--preset", "smoke", "--rows", "noise", "--out", str(out), "--tracking", tracking]) == 0
    with sqlite3.connect(tmp_path / "runs.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        assert ("mask_words", 514.0) in database.execute("select key, value from metrics").fetchall()
        (home,) = database.execute("select artifact_uri from runs").fetchone()
    stored = Path(home.removeprefix("file://")) / "lineage.json"
    assert stored.read_text() == (out / "lineage.json").read_text()


def test_rows_that_are_there_already_cannot_be_had_from_codebooks(tmp_path, capfd):
    first = str(tmp_path / "first")
    assert (
        main(["--tokenizer", "tiny", "--model", str(build(tmp_path / "hub", words=False)), "--out", first])
        == 0
    )
    assert (
        main(["--tokenizer", "tiny", "--model", first, "--rows", "codebooks", "--out", str(tmp_path / "out")])
        == 2
    )
    assert "has mask words already and keeps their rows" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["--tokenizer", "tiny", "--model", first, "--out", str(tmp_path / "again")]) == 0


def chats(folder: Path, text: str, *, num_codes: int) -> str:
    """A corpus of chats in which one sentence is asked over and over."""
    message = {"role": "user", "content": [{"text": text, "image": None}], "mask_ids": []}
    row = {
        "dataset": "made",
        "split": "train",
        "image_id": "0",
        "task": "dialogue",
        "tags": [],
        "images": [],
        "messages": [message],
        "masks": [],
        "meta": None,
    }
    rows = [{**row, "sample_id": str(number)} for number in range(10)]
    return write_chats(folder, rows, weights_sha256=None, num_codes=num_codes)


@pytest.mark.slow
@pytest.mark.numerics
def test_the_text_tokenizer_of_a_tiny_model_can_learn_the_texts_of_a_corpus(tmp_path, capfd):
    text = "Seventeen zebras juggle xylophones."
    corpus = chats(tmp_path / "chats", text, num_codes=256)
    assert main(["--preset", "smoke", "--chats", corpus, "--out", str(tmp_path / "out")]) == 0
    assert main(["--preset", "smoke", "--out", str(tmp_path / "plain")]) == 0
    lengths = [len(load_adapter(tmp_path / name).tokenizer(text)["input_ids"]) for name in ("out", "plain")]
    assert lengths[0] <= 6 < 12 < lengths[1]
    other = chats(tmp_path / "other", text, num_codes=64)
    assert main(["--preset", "smoke", "--chats", other, "--out", str(tmp_path / "none")]) == 2
    assert "words of 2 levels of 64 codes, --tokenizer makes 2 of 256" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.numerics
def test_a_run_that_was_killed_while_it_wrote_is_finished(tmp_path):
    out = tmp_path / "out"
    main(["--preset", "smoke", "--out", str(out)])
    whole = content(out)
    (out / SAMTOK_FILE).unlink()
    (out / "tokenizer.json").unlink()
    assert main(["--preset", "smoke", "--out", str(out)]) == 0
    assert content(out) == whole
    lineage = json.loads((out / "lineage.json").read_text())
    for later in ("image", "carry_tokenizer", "sam2"):  # as of a release that did not have them
        del lineage["config"][later]
    (out / "lineage.json").write_text(json.dumps(lineage))
    assert main(["--preset", "smoke", "--out", str(out)]) == 0


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, capfd):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--preset", "smoke", "--out", str(tmp_path)]) == 2
    main(["--preset", "smoke", "--out", str(tmp_path / "out")])
    before = content(tmp_path / "out")
    assert main(["--preset", "smoke", "--out", str(tmp_path / "out"), "--seed", "1"]) == 2
    assert content(tmp_path / "out") == before
    assert "is not empty (it has notes.txt)" in capfd.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--preset", "smoke", "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()
    printed = capsys.readouterr().out
    assert '"tiny": "qwen2_5_vl"' in printed
    assert "2 levels of 256 codes" in printed


def test_wrong_checkpoints_are_refused_with_the_code_of_their_kind(tmp_path, capfd):
    out = str(tmp_path / "out")
    assert main(["--tokenizer", "tiny", "--model", str(tmp_path / "none"), "--out", out]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["--tokenizer", "tiny", "--model", str(tmp_path / "empty"), "--out", out]) == 2
    text_only = Qwen2Config(
        vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    Qwen2ForCausalLM(text_only).save_pretrained(tmp_path / "text")
    assert main(["--tokenizer", "tiny", "--model", str(tmp_path / "text"), "--out", out]) == 6
    assert main(["--preset", "smoke", "--tokenizer", str(tmp_path / "none"), "--out", out]) == 2
    said = capfd.readouterr().err
    assert "no adapter for 'qwen2'; known families are qwen2_5_vl, qwen3_vl, qwen3_5, perception_lm" in said
    assert not Path(out).exists()


@pytest.mark.slow
@pytest.mark.numerics
def test_a_model_carries_its_tokenizer_and_is_both_to_every_job(tmp_path, capfd):
    out, again = str(tmp_path / "out"), str(tmp_path / "again")
    assert main(["--preset", "smoke", "--carry-tokenizer", "--out", out]) == 0
    assert (tmp_path / "out" / "mask_tokenizer_256x2.pth").exists()
    assert load_adapter(out).tokenizer_sha256 == weights_sha256(out) == weights_sha256("tiny")
    assert main(["--model", out, "--tokenizer", out, "--carry-tokenizer", "--out", again]) == 0
    assert weights_sha256(again) == weights_sha256("tiny")
    (tmp_path / "again" / "mask_tokenizer_256x2.pth").unlink()
    assert main(["--model", out, "--tokenizer", again, "--out", str(tmp_path / "none")]) == 2
    assert "is a model without a mask tokenizer; there is no" in capfd.readouterr().err


def test_words_of_another_tokenizer_are_refused(tmp_path, capfd):
    tokenizer = MaskTokenizer.from_pretrained("tiny")
    tokenizer.no_mem_embed.data += 1
    tokenizer.save_pretrained(str(tmp_path / "other"))
    model, other = str(tmp_path / "model"), str(tmp_path / "other")
    assert main(["--preset", "smoke", "--rows", "noise", "--out", model]) == 0
    assert main(["--model", model, "--tokenizer", other, "--out", str(tmp_path / "out")]) == 2
    assert "has the words of another mask tokenizer than --tokenizer" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("family", QWEN[:2])  # the third has the image processor of the second
def test_image_sizes_are_written_into_the_processor(tmp_path, family):
    flags = ["--tokenizer", "tiny", "--image.min-pixels", "5000", "--image.max-pixels", "20000"]
    made = (
        ["--tiny", family, "--vision", "random"],
        ["--model", str(build(tmp_path / "hub", family, words=False))],
    )
    for number, source in enumerate(made):
        out = tmp_path / str(number)
        assert main([*flags, *source, "--out", str(out)]) == 0
        size = load_adapter(out).image_processor.size
        assert (size.shortest_edge, size.longest_edge) == (5000, 20_000)
    assert main(["--tokenizer", "tiny", "--model", str(tmp_path / "0"), "--out", str(tmp_path / "kept")]) == 0
    assert load_adapter(tmp_path / "kept").image_processor.size.longest_edge == 20_000


def test_image_sizes_that_cannot_be_are_refused_by_name(tmp_path, capfd):
    source = build(tmp_path / "hub", "perception_lm", words=False)
    flags = ["--tokenizer", "tiny", "--image.max-pixels", "20000", "--out", str(tmp_path / "out")]
    for place in (["--tiny", "perception_lm"], ["--model", str(source)]):
        assert main([*flags, *place]) == 2
        assert "a perception_lm has no limits of pixels" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([*flags, "--tiny", "qwen3_vl", "--image.min-pixels", "20001"])
    assert "--image.min-pixels 20001 is above --image.max-pixels 20000" in capfd.readouterr().err
    paper = [
        "--preset",
        "paper",
        "--tokenizer",
        "tiny",
        "--model",
        str(source),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*paper, "--dry-run"]) == 2
    assert main([*paper, "--image.min-pixels", "None", "--image.max-pixels", "None", "--dry-run"]) == 0


def test_a_checkpoint_with_other_words_is_refused(tmp_path, capfd):
    source = build(tmp_path / "hub")  # 16 codes, the tokenizer that ships has 256
    assert main(["--tokenizer", "tiny", "--model", str(source), "--out", str(tmp_path / "out")]) == 6
    assert "has 34 mask words" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "exactly one of --model FOLDER and --tiny FAMILY"),
        ({"model": "a", "tiny": "qwen3_vl"}, "exactly one"),
        ({"model": "a", "chats": "b"}, "--chats trains"),
        ({"model": "a", "sam2": "b"}, "--sam2 lies beside the tokenizer of --carry-tokenizer"),
        ({"model": "a", "pad_to_multiple_of": 0}, "--pad-to-multiple-of must be >= 1"),
        ({"model": "a", "seed": -1}, "--seed must be >= 0"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        ExtendMllmConfig(out="out", tokenizer="tiny", **flags)


@pytest.mark.parametrize(
    "numbers", [{"image_size": 50}, {"dim": 30}, {"vision_dim": 20}, {"vocab_size": 100}, {"padded_rows": -1}]
)
def test_sizes_that_cannot_work_are_refused(numbers):
    with pytest.raises(ValueError, match="must be"):
        TinyConfig(**numbers)


@pytest.mark.slow
def test_a_bucket_is_as_good_as_a_disk(bucket, tmp_path):
    source = build(tmp_path / "hub", words=False)
    storage.put_folder(source, f"{bucket}/hub")
    config = ExtendMllmConfig(model=f"{bucket}/hub", tokenizer="tiny", out=f"{bucket}/out")
    assert extend_mllm(config) == 0
    assert extend_mllm(ExtendMllmConfig(model=str(source), tokenizer="tiny", out=str(tmp_path / "out"))) == 0
    with storage.local_folder(f"{bucket}/out") as folder:
        remote, local = content(folder), content(tmp_path / "out")
        load_adapter(folder)
    assert {k: v for k, v in remote.items() if k != "lineage.json"} == {
        k: v for k, v in local.items() if k != "lineage.json"
    }
    assert extend_mllm(config) == 0
