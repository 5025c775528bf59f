"""Exports are read by transformers 4.57 too, which frameworks of others pin: the same logits from both."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from samtok.mllm.image_size import limit_pixels
from samtok.mllm.older import make_readable
from samtok.mllm.pretrained import load_processor
from tests import older_transformers, tiny_mllm
from tests.s3_server import build_environment

TESTS = Path(__file__).parent.parent
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_has_the_names_of_older_releases_and_means_the_same(family: str, tmp_path: Path):
    folder = tiny_mllm.build(tmp_path / family, family)
    plain = tiny_mllm.build(tmp_path / "plain", family, words=False)  # as transformers 5 writes it
    assert "rope_parameters" in json.loads((plain / "config.json").read_text())["text_config"]
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert (
        text["rope_theta"] == 100_000
        and text["rope_scaling"]["mrope_section"]
        and text["tie_word_embeddings"]
    )
    assert (folder / "preprocessor_config.json").exists() and (
        folder / "video_preprocessor_config.json"
    ).exists()
    before, tokens = AutoConfig.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    make_readable(plain)
    after, again = AutoConfig.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    assert after.text_config.rope_parameters == before.text_config.rope_parameters
    changed = {**after.to_dict()["text_config"], "tie_word_embeddings": None}
    assert changed == {**before.to_dict()["text_config"], "tie_word_embeddings": None}
    assert after.to_dict() | {"text_config": 0} == before.to_dict() | {"text_config": 0}
    assert again.all_special_tokens == tokens.all_special_tokens
    assert again.get_vocab() == tokens.get_vocab()


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with transformers 4.57, and all else from the environment of the tests."""
    folder = TESTS.parent / ".venv-older"
    python = build_environment(folder, TESTS / "older_requirements.lock", "--no-deps")
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def limited(folder: Path) -> Path:
    """Gives a checkpoint limits of pixels that are not those of its building."""
    processor = load_processor(folder)
    limit_pixels(processor, min_pixels=1000, max_pixels=5000)
    processor.save_pretrained(folder)
    make_readable(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_both_releases_give_the_same_logits(python: Path, tmp_path: Path):
    folders = [limited(tiny_mllm.build(tmp_path / n, n)) for n in FAMILIES]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([python, TESTS / "older_transformers.py", *folders], check=True, env=environment)
    for folder in folders:
        ours = older_transformers.logits_of(str(folder))
        with np.load(f"{folder}.npz") as theirs:
            assert len(theirs["pixel_values"]) == 8 * 10  # the picture was reduced
            assert theirs["version"].tolist() == [4, 57] and ours["version"][0] >= 5
            np.testing.assert_array_equal(ours["input_ids"], theirs["input_ids"])
            np.testing.assert_allclose(ours["pixel_values"], theirs["pixel_values"], atol=1e-6)
            np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=1e-4)
