"""The GPU check, with tiny sizes on a CPU and without what a GPU machine may lack."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_check
from tests.benchmarks.gpu.place import TINY, Found, Place
from tests.benchmarks.gpu.sft import DEPTHS, TEXT, like_3b, make

ROOT = Path(__file__).parent.parent
WITHOUT = """
import runpy, sys

NAMES = {"ray", "mlflow", "deepspeed", "pyarrow", "pipelines", "accelerate", "psutil", "tyro"}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in NAMES else self.finder.find_spec(name, *rest)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
try:
    import pipelines
except ModuleNotFoundError:
    runpy.run_module("tests.benchmarks.gpu_check", run_name="__main__")
"""
"""Runs the check as on a machine where these packages are not installed."""

KEYS = {
    "matmul": {"dtype", "tflops"},
    "parity": {"equal_codes", "most_apart", "different_pixels", "distinct_words"},
    "agreement": {"equal_level_0", "equal_level_1", "equal_words", "iou", "iou_of_other_masks"},
    "images": {"dtype", "encoder_images_per_s", "tflop_per_image", "share_of_peak", "peak_gib"},
    "masks": {"masks", "images_per_s", "masks_per_s", "encode_share_of_peak", "decode_share_of_peak"},
    "tokenizer training": {"dtype", "masks", "step_ms", "masks_per_s", "peak_gib", "last_loss"},
    "sft": {"packed", "layers", "tokens_per_s", "peak_gib", "first_loss", "last_loss"},
    "generation": {"prompts", "new_tokens", "new_tokens_per_s", "peak_gib"},
    "grpo": {"sample_s", "learn_s", "parity_mean", "parity_max", "peak_gib"},
    "gpu tests": {"file", "passed", "skipped"},
}


@pytest.mark.slow
def test_the_check_runs_with_samtok_alone_on_a_cpu(tmp_path: Path):
    command = [sys.executable, "-c", WITHOUT, "--tiny", "--out", str(tmp_path)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    body = json.loads((tmp_path / "gpu_check.json").read_text())
    assert body["tiny"]
    assert body["machine"].keys() >= {"date", "commit", "cpu", "gpu", "python", "torch", "transformers"}
    assert body["parts"].keys() == KEYS.keys() == gpu_check.PARTS.keys()
    for name, keys in KEYS.items():
        part = body["parts"][name]
        assert part["error"] is None and part["problems"] == [], part
        assert part["note"] and all(row.keys() >= keys for row in part["rows"]), part
    assert [row["masks"] for row in body["parts"]["masks"]["rows"]] == 2 * list(TINY.masks)
    text = (tmp_path / "gpu_check.md").read_text()
    assert text in done.stdout and "says nothing about speed" in text
    assert all(f"## {name}, " in text for name in KEYS)
    assert "| not measured |" in text  # the memory of a GPU
    assert "FAILED" not in text


def test_a_part_that_fails_or_never_ends_is_reported_and_the_others_run(tmp_path, monkeypatch, capsys):
    def fails(place: Place) -> Found:
        raise RuntimeError("no kernel for this device")

    def never_ends(place: Place) -> Found:
        time.sleep(60)
        return Found([], "")

    def differs(place: Place) -> Found:
        return Found([{"equal_codes": 0.5}], "Words.", ["equal_codes is 0.5, expected at least 0.97."])

    def fine(place: Place) -> Found:
        return Found([{"side": 8, "ms": 1.23456, "peak_gib": None}], "Products.")

    parts = {"a": (9, fails), "b": (0.2, never_ends), "c": (9, differs), "d": (9, fine)}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert gpu_check.main(["--tiny", "--out", str(tmp_path), "--commit", "abc"]) == 1
    body = json.loads((tmp_path / "gpu_check.json").read_text())
    assert body["machine"]["commit"] == "abc"
    assert body["parts"]["a"]["error"] == "RuntimeError: no kernel for this device"
    assert body["parts"]["b"]["error"] == f"TimeoutError: took longer than {0.2 * gpu_check.PATIENCE:g} s."
    text = capsys.readouterr().out
    assert "FAILED: RuntimeError: no kernel for this device" in text
    assert "FAILED: equal_codes is 0.5, expected at least 0.97." in text
    assert "Products.\n\n| side | ms | peak_gib |\n| --- | --- | --- |\n| 8 | 1.235 | not measured |" in text
    monkeypatch.setattr(gpu_check, "PARTS", {"d": (9, fine)})
    assert gpu_check.main(["--tiny", "--out", str(tmp_path)]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="full sizes are right where there is a GPU")
def test_full_sizes_are_refused_without_a_gpu(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    assert "give --tiny" in capsys.readouterr().err


def test_the_large_model_has_the_parameters_of_qwen2_5_vl_3b():
    with torch.device("meta"):
        weights = [weight.numel() for weight in make(like_3b({}, DEPTHS[0])).parameters()]
    more_rows = TEXT["vocab_size"] - 151_936
    assert (
        sum(weights) == 3_754_622_976 + more_rows * TEXT["hidden_size"]
    )  # as the Hub counts the released one


def test_random_weights_give_words_that_could_differ():
    place = Place(TINY, "cpu")
    tokenizer = place.tokenizer
    (scene,) = place.scenes((1, 16))
    codes = tokenizer.encode(*scene)
    assert len(set(map(tuple, codes.tolist()))) > 8
    assert tokenizer.quantizer.code_vectors().std() > 0.01
