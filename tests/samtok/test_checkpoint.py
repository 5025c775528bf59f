"""Weight files: what is saved loads back equal, and what is wrong is refused with the keys named."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from samtok import folders
from samtok.checkpoint import from_authors, from_sam2
from samtok.errors import CheckpointError
from samtok.model.tokenizer import MaskTokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MaskTokenizer.from_preset("micro").save_pretrained(str(tmp_path / "micro"))
    return tmp_path / "micro"


def test_a_saved_tokenizer_loads_with_equal_weights(saved: Path):
    torch.manual_seed(0)
    original = MaskTokenizer.from_preset("micro")
    loaded = MaskTokenizer.from_pretrained(str(saved))
    assert loaded.config == original.config
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_a_tokenizer_loads_from_any_uri_that_fsspec_opens(saved: Path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in saved.iterdir():
        memory.pipe_file(f"/tokenizers/micro/{path.name}", path.read_bytes())
    assert MaskTokenizer.from_pretrained("memory://tokenizers/micro").num_codes == 64


def test_a_tokenizer_is_saved_to_any_uri_that_fsspec_opens(saved: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = MaskTokenizer.from_pretrained(str(saved))
    for uri in ("memory://saved/micro/", f"file://{tmp_path}/by-uri"):
        tokenizer.save_pretrained(uri)
        assert MaskTokenizer.from_pretrained(uri).weights_sha256 == tokenizer.weights_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-uri", "micro"]
    with pytest.raises(CheckpointError, match="nowhere://x/model.safetensors cannot be written"):
        tokenizer.save_pretrained("nowhere://x")


def test_architecture_and_hash_are_read_without_the_model(saved: Path):
    loaded = MaskTokenizer.from_pretrained(str(saved))
    assert folders.read_config(str(saved)) == loaded.config
    assert folders.weights_sha256(f"{saved}/") == loaded.weights_sha256
    assert folders.is_shipped("tiny") and not folders.is_shipped("./tiny")


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"there is no .*nowhere/config.json"):
        MaskTokenizer.from_pretrained(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a mask tokenizer"),
        ({"format_version": 99}, "format version 99"),
        ({"wings": 2}, r"unknown fields \['wings'\]"),
        ({"dim": 128}, "of another size"),
        ({"multimask": True}, "of another size|missing mask_decoder"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(saved: Path, change: dict, message: str):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        MaskTokenizer.from_pretrained(str(saved))


def test_missing_and_unknown_keys_are_named(saved: Path):
    weights = load_file(saved / "model.safetensors")
    weights["extra.weight"] = weights.pop("no_mem_embed")
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing no_mem_embed, unknown extra.weight"):
        MaskTokenizer.from_pretrained(str(saved))


def test_a_truncated_weight_file_is_refused(saved: Path):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        MaskTokenizer.from_pretrained(str(saved))


class Payload:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize("load", [lambda p: from_sam2(p, "sam2.1-tiny"), from_authors])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    torch.save({"model": Payload()}, path, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        load(str(path))
    assert not (tmp_path / "pwned").exists()


def write(tmp_path: Path, body: object) -> str:
    torch.save(body, tmp_path / "file.pt")
    return str(tmp_path / "file.pt")


def test_sam2_files_of_other_kinds_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match='no "model" entry'):
        from_sam2(write(tmp_path, {"weights": {}}), "sam2.1-tiny")
    with pytest.raises(CheckpointError, match="keys that SAM2.1 does not have: vision_tower.w"):
        from_sam2(write(tmp_path, {"model": {"vision_tower.w": torch.zeros(1)}}), "sam2.1-tiny")
    with pytest.raises(CheckpointError, match="is not a SAM2.1 size"):
        from_sam2(write(tmp_path, {"model": {}}), "tiny")
    with pytest.raises(CheckpointError, match="missing"):
        from_sam2(write(tmp_path, {"model": {"no_mem_embed": torch.zeros(1, 1, 256)}}), "sam2.1-tiny")


def authors_parts(tokens: int = 1, padded: int = 5) -> dict[str, torch.Tensor]:
    state = {"model.sam2_model.sam_mask_encoder.mask_tokens.weight": torch.zeros(tokens, 256)}
    for level in range(2):
        entry = f"quantizer.codebooks.{level}."
        state[entry + "weight"] = torch.zeros(padded, 256)
        state[entry + "embed_ema"] = torch.zeros(padded - 1, 256)
        state[entry + "cluster_size_ema"] = torch.zeros(padded - 1)
    return state


def test_variants_of_the_authors_tokenizer_are_refused_clearly(tmp_path: Path):
    with pytest.raises(CheckpointError, match="encodes a mask with 4 tokens"):
        from_authors(write(tmp_path, authors_parts(tokens=4)))
    concatenated = authors_parts() | {"concate_mask_embeds.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="concate_mask_embeds"):
        from_authors(write(tmp_path, concatenated))
    partial = authors_parts()
    del partial["quantizer.codebooks.1.embed_ema"]
    with pytest.raises(CheckpointError, match="quantizer keys are"):
        from_authors(write(tmp_path, partial))
    with pytest.raises(CheckpointError, match=r"missing .*image_encoder.*and \d+ more"):
        from_authors(write(tmp_path, authors_parts()), "sam2.1-tiny")


def test_codes_are_equal_after_a_round_trip(saved: Path):
    loaded = MaskTokenizer.from_pretrained(str(saved))
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:20, 8:30] = True
    first = loaded.encode(image, [mask])
    loaded.save_pretrained(str(saved))
    np.testing.assert_array_equal(first, MaskTokenizer.from_pretrained(str(saved)).encode(image, [mask]))
