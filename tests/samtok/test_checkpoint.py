"""Weight files: what is saved loads back equal, and what is wrong is refused with the keys named."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

from samtok import folders, sam2_folder
from samtok.checkpoint import from_authors, from_sam2
from samtok.config import PRESETS
from samtok.errors import CheckpointError
from samtok.model.tokenizer import MaskTokenizer
from tests.published import tiny_sam2


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


@pytest.mark.slow
def test_a_tokenizer_is_saved_to_a_bucket(saved: Path, bucket: str):
    MaskTokenizer.from_pretrained(str(saved)).save_pretrained(f"{bucket}/tokenizer")
    assert MaskTokenizer.from_pretrained(f"{bucket}/tokenizer").num_codes == 64


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


@pytest.fixture(scope="module")
def transformers_sam2(tmp_path_factory) -> tuple[Sam2Model, str]:
    """A tiny SAM2.1 of transformers with random weights, and its folder."""
    model = tiny_sam2()
    folder = str(tmp_path_factory.mktemp("sam2") / "hf")
    model.save_pretrained(folder)
    return model, folder


@torch.inference_mode()
def test_sam2_of_transformers_gives_equal_features_and_logits(transformers_sam2):
    theirs, folder = transformers_sam2
    ours = from_sam2(folder).eval()
    assert ours.config.image_size == 256 and ours.config.backbone.stages == (1, 2, 2, 1)
    pixels = torch.randn(2, 3, 256, 256)
    features = ours.embed_images(pixels)
    fine, middle, coarse = theirs.get_image_embeddings(pixels)
    for mine, other in ((features.fine, fine), (features.middle, middle), (features.coarse, coarse)):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    points = torch.tensor([[[[30.0, 60.0], [200.0, 180.0]]], [[[99.0, 5.0], [12.0, 240.0]]]])
    masks = torch.randn(2, 1, 64, 64)
    asked = {"input_points": points, "input_labels": torch.tensor([[[1, 0]], [[2, 3]]]), "input_masks": masks}
    found = theirs(image_embeddings=[fine, middle, coarse], multimask_output=True, **asked)
    sparse, dense = ours.prompt_encoder(
        points=(points[:, 0], asked["input_labels"][:, 0]), boxes=None, masks=masks
    )
    logits, iou, _, score = ours.mask_decoder(
        image_embeddings=features.coarse,
        image_pe=ours.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=False,
        high_res_features=[features.fine, features.middle],
    )
    torch.testing.assert_close(logits, found.pred_masks[:, 0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(iou, found.iou_scores[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(score, found.object_score_logits[:, 0], atol=1e-4, rtol=1e-4)


def test_a_folder_of_sam2_says_its_size_and_what_it_lacks(transformers_sam2, tmp_path: Path, saved: Path):
    with pytest.raises(CheckpointError, match="is not sam2.1-tiny; it is of no known size"):
        from_sam2(transformers_sam2[1], "sam2.1-tiny")
    with pytest.raises(CheckpointError, match="there is no .*config.json. SAM2.1 is a file"):
        from_sam2(str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="is not the config of a SAM2.1 of transformers"):
        from_sam2(str(saved))


@pytest.mark.parametrize("kind", [Sam2Model, Sam2VideoModel])
def test_published_sizes_have_all_names_of_transformers(kind):
    config = {Sam2Model: Sam2Config, Sam2VideoModel: Sam2VideoConfig}[kind]()
    with torch.device("meta"):
        names = sam2_folder.renamed(kind(config).state_dict())
    assert sam2_folder.architecture(config.to_json_string(), where="test") == PRESETS["sam2.1-tiny"]
    ours = MaskTokenizer.from_preset("sam2.1-tiny").state_dict()
    ours = {
        name: value for name, value in ours.items() if not name.startswith(("mask_encoder.", "quantizer."))
    }
    assert {name: value.shape for name, value in names.items()} == {n: v.shape for n, v in ours.items()}


def test_weight_files_are_read_by_uri(tmp_path: Path):
    import fsspec

    path = write(tmp_path, {"weights": {}})
    fsspec.filesystem("memory").pipe_file("/weights/sam2.pt", Path(path).read_bytes())
    with pytest.raises(CheckpointError, match='memory://weights/sam2.pt has no "model" entry'):
        from_sam2("memory://weights/sam2.pt", "sam2.1-tiny")
    with pytest.raises(CheckpointError, match="memory://weights/sam2.pt is not an authors' mask tokenizer"):
        from_authors("memory://weights/sam2.pt")
    with pytest.raises(CheckpointError, match="there is no file memory://weights/none.pt"):
        from_sam2("memory://weights/none.pt", "sam2.1-tiny")
