"""A model and its mask tokenizer in one folder, as the authors publish their checkpoints."""

import dataclasses
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from samtok import folders
from samtok.checkpoint import to_authors
from samtok.config import PRESETS, MaskTokenizerConfig, QuantizerConfig
from samtok.errors import CheckpointError
from samtok.mllm.adapters import load_adapter
from samtok.model.tokenizer import MaskTokenizer
from tests.published import authors_state, published_keys, sam2_state
from tests.tiny_mllm import VOCABULARY, build

TINY = dataclasses.replace(
    PRESETS["micro"], quantizer=QuantizerConfig(num_codes=VOCABULARY.num_codes, num_levels=2)
)
NAMES = {"prompt_encoder.": "sam_prompt_encoder.", "mask_decoder.": "sam_mask_decoder."}
NAMES |= {"mask_encoder.": "sam_mask_encoder."}


def made(config: MaskTokenizerConfig) -> MaskTokenizer:
    torch.manual_seed(0)
    return MaskTokenizer(config).eval().requires_grad_(False)


def as_published(tokenizer: MaskTokenizer) -> dict[str, torch.Tensor]:
    """The tensors of ``mask_tokenizer_256x2.pth``: a padding row ends each codebook, uses are counted."""
    state = tokenizer.state_dict()
    found = {"model.sam2_model.memory_encoder.out_proj.weight": torch.ones(2)}
    for name, value in state.items():
        prefix = next((p for p in NAMES if name.startswith(p)), "")
        if not name.startswith("quantizer."):
            found[f"model.sam2_model.{NAMES.get(prefix, '')}{name.removeprefix(prefix)}"] = value
    for level in range(tokenizer.num_levels):
        books, entry = state["quantizer.codebooks"], f"quantizer.codebooks.{level}."
        found[entry + "weight"] = torch.cat([books[level], torch.full((1, books.shape[-1]), 9.0)])
        found[entry + "cluster_size_ema"] = 64 * state["quantizer.cluster_size"][level]
        found[entry + "embed_ema"] = 64 * state["quantizer.embed_sum"][level]
    return found


def said(tokenizer: MaskTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Codes of masks, and masks of codes."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    masks = np.zeros((2, 40, 50), dtype=bool)
    masks[0, 5:20, 8:30] = masks[1, 20:, :10] = True
    return tokenizer.encode(image, masks), tokenizer.decode(image, [[1, 2], [15, 0]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without files of ours, but for the one that says that it is tiny."""
    folder = build(tmp_path / "checkpoint")
    (folder / "samtok.json").unlink()
    torch.save(as_published(made(TINY)), folder / "mask_tokenizer_16x2.pth")
    (folder / "sam2.1_hiera_large.pt").write_bytes(b"not read")
    data = (folder / "mask_tokenizer_16x2.pth").read_bytes()
    (folder / "mask_tokenizer.json").write_bytes(folders.beside_json(TINY, data, None))
    return folder


def test_one_folder_is_a_model_and_a_tokenizer(folder: Path):
    adapter = load_adapter(folder)
    assert adapter.vocabulary == VOCABULARY
    adapter.load_model(folder)
    tokenizer = MaskTokenizer.from_pretrained(str(folder))
    for ours, theirs in zip(said(made(TINY)), said(tokenizer), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    own = hashlib.sha256((folder / "mask_tokenizer_16x2.pth").read_bytes()).hexdigest()
    assert tokenizer.weights_sha256 == folders.weights_sha256(str(folder)) == own
    for name, value in made(TINY).state_dict().items():
        torch.testing.assert_close(tokenizer.state_dict()[name], value)


def test_without_a_word_of_ours_the_tokenizer_is_the_published_one(folder: Path):
    (folder / "mask_tokenizer.json").unlink()
    assert folders.read_config(str(folder)) == PRESETS["sam2.1-large"]
    with pytest.raises(CheckpointError, match="there is no .*/mask_tokenizer_256x2.pth"):
        MaskTokenizer.from_pretrained(str(folder))
    (folder / "mask_tokenizer_16x2.pth").rename(folder / "mask_tokenizer_256x2.pth")
    assert folders.weights_sha256(str(folder))


def test_a_tokenizer_that_is_carried_keeps_its_name(tmp_path: Path):
    made(TINY).save_pretrained(str(tmp_path / "own"))
    tokenizer = MaskTokenizer.from_pretrained(str(tmp_path / "own"))
    folder = build(tmp_path / "model")
    for name, data in to_authors(tokenizer).items():
        (folder / name).write_bytes(data)
    carried = MaskTokenizer.from_pretrained(str(folder))
    assert carried.weights_sha256 == folders.weights_sha256(str(folder)) == tokenizer.weights_sha256
    assert carried.config == tokenizer.config
    for ours, theirs in zip(said(tokenizer), said(carried), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    written = torch.load(folder / "mask_tokenizer_16x2.pth", weights_only=True)
    expected = as_published(tokenizer)
    del expected["model.sam2_model.memory_encoder.out_proj.weight"]
    assert {n: v.shape for n, v in written.items()} == {n: v.shape for n, v in expected.items()}
    other = MaskTokenizer(TINY)
    (folder / "mask_tokenizer_16x2.pth").write_bytes(to_authors(other)["mask_tokenizer_16x2.pth"])
    with pytest.raises(CheckpointError, match="is not the file that mask_tokenizer.json beside it states"):
        folders.weights_sha256(str(folder))


@pytest.mark.parametrize("text", ["[]", "{", '{"config": 1}', '{"config": {}, "file_sha256": "x"}'])
def test_a_description_that_describes_nothing_is_refused(folder: Path, text: str):
    (folder / "mask_tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="mask_tokenizer.json describes no mask tokenizer"):
        folders.read_config(str(folder))


def test_a_tokenizer_that_their_layout_cannot_hold_is_refused():
    for quantizer, kind in (
        (QuantizerConfig(kind="fsq", num_codes=16, grid=(4, 4)), "an fsq quantizer"),
        (QuantizerConfig(num_codes=16, shared=True), "shared codebooks"),
    ):
        with pytest.raises(CheckpointError, match=f"one codebook per level, and this tokenizer has {kind}"):
            to_authors(MaskTokenizer(dataclasses.replace(PRESETS["micro"], quantizer=quantizer)))


@pytest.mark.slow
def test_the_published_folder_is_read_and_written_as_it_is(tmp_path: Path):
    folder, rng = build(tmp_path / "model"), np.random.default_rng(0)
    books = [rng.standard_normal((257, 256), dtype=np.float32) for _ in range(2)]
    torch.save(authors_state(books), folder / "mask_tokenizer_256x2.pth")
    torch.save(sam2_state(), folder / "sam2.1_hiera_large.pt")
    tokenizer = MaskTokenizer.from_pretrained(str(folder))
    sam2 = (folder / "sam2.1_hiera_large.pt").read_bytes()
    files = to_authors(tokenizer, sam2=sam2)
    assert list(files) == ["sam2.1_hiera_large.pt", "mask_tokenizer_256x2.pth", "mask_tokenizer.json"]
    assert files["sam2.1_hiera_large.pt"] == sam2
    written = torch.load(io.BytesIO(files["mask_tokenizer_256x2.pth"]), weights_only=True)
    assert {name: tuple(value.shape) for name, value in written.items()} == published_keys()
    for name, value in authors_state(books).items():
        if not name.startswith("quantizer."):
            assert torch.equal(written[name], value), name
        elif name.endswith(".weight"):
            assert torch.equal(written[name][:-1], value[:-1])
    with pytest.raises(CheckpointError, match="--sam2 is not the SAM2.1 whose size the mask tokenizer has"):
        to_authors(made(TINY), sam2=sam2)
