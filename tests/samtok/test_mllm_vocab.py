"""Mask words as tokens and rows of an MLLM."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AddedToken, AutoModelForImageTextToText, AutoTokenizer, Qwen2Tokenizer
from transformers.utils import is_timm_available

from samtok.config import PRESETS
from samtok.errors import CheckpointError
from samtok.mllm.adapters import adapter_for, load_adapter, save_pretrained
from samtok.mllm.folder import MllmFolder, read_folder
from samtok.mllm.pretrained import load_processor
from samtok.mllm.registry import family_of
from samtok.mllm.rows import check_rows, extend
from samtok.mllm.vocab import MaskVocabulary
from tests.tiny_mllm import EACH_FAMILY, VOCABULARY, build, chat, mask, picture

LARGE = MaskVocabulary(256, 2)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A checkpoint without mask words, with 50 rows more than tokens."""
    return build(tmp_path_factory.mktemp("bare"), words=False, padded_rows=50)


@pytest.fixture
def tokenizer(bare: Path):
    return AutoTokenizer.from_pretrained(bare)


@pytest.fixture
def model(bare: Path):
    return AutoModelForImageTextToText.from_pretrained(bare)


def test_the_vocabulary_of_a_tokenizer_has_its_levels_and_codes():
    assert MaskVocabulary.of(PRESETS["sam2.1-large"]) == LARGE
    assert (LARGE.words[0], LARGE.words[1], LARGE.words[-2]) == (
        "<|mt_start|>",
        "<|mt_0000|>",
        "<|mt_0511|>",
    )
    assert len(LARGE.words) == 514


def test_words_are_added_once_and_keep_their_order(tokenizer):
    before = len(tokenizer)
    assert VOCABULARY.add_to(tokenizer) == 34
    assert VOCABULARY.add_to(tokenizer) == 0
    ids = VOCABULARY.check(tokenizer)
    assert ids.all == tuple(range(before, before + 34))
    assert ids.codes[1][5] == tokenizer("<|mt_0021|>")["input_ids"][0]


def test_words_of_another_size_are_refused_both_ways(tokenizer):
    VOCABULARY.add_to(tokenizer)
    with pytest.raises(CheckpointError, match="34 mask words .* of 2 levels of 256 codes has 514"):
        LARGE.add_to(tokenizer)
    with pytest.raises(CheckpointError, match="18 of its own are foreign"):
        MaskVocabulary(14, 1).check(tokenizer)


def test_a_tokenizer_without_words_is_refused(tokenizer):
    with pytest.raises(CheckpointError, match="has no mask words.*extend_mllm"):
        VOCABULARY.check(tokenizer)


def test_words_that_are_tokens_only_alone_are_refused(tokenizer):
    VOCABULARY.add_to(tokenizer)
    tokenizer.add_tokens([AddedToken("<|mt_start|><|mt_0000|>", normalized=False)])
    with pytest.raises(CheckpointError, match="one token each alone, but not where one follows another"):
        VOCABULARY.check(tokenizer)


def test_a_word_that_is_an_entry_but_not_a_token_is_refused(tokenizer):
    entries = {name: i for i, name in enumerate([*tokenizer.get_vocab(), *VOCABULARY.words])}
    with pytest.raises(CheckpointError, match=r"<\|mt_start\|> must be one token, .* splits it into \["):
        VOCABULARY.check(Qwen2Tokenizer(vocab=entries, merges=[]))


def test_words_survive_decoding_without_special_tokens(tokenizer):
    VOCABULARY.add_to(tokenizer)
    text = f"It is here: {mask(3, 9)}."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_checkpoint_with_words_as_special_tokens_loads_and_is_read(tmp_path, family):
    folder = build(tmp_path / "bare", family, words=False)
    processor = load_processor(folder)
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([AddedToken(w, special=True) for w in VOCABULARY.words], special_tokens=True)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    extend(model, tokenizer, VOCABULARY, seed=0)
    model.save_pretrained(tmp_path / "special")
    processor.save_pretrained(tmp_path / "special")
    adapter = load_adapter(tmp_path / "special")  # no samtok.json, as the authors' checkpoints
    assert adapter.vocabulary == VOCABULARY
    adapter.load_model(tmp_path / "special")
    text = f"It is here: {mask(3, 9)}"
    ids = adapter.encode(chat(answer=text), [picture()]).labels
    learnt = ids[ids >= 0].tolist()
    assert mask(3, 9) not in adapter.tokenizer.decode(learnt, skip_special_tokens=True)
    assert adapter.text_of(learnt) == text


def test_new_rows_are_spread_like_old_ones(model, tokenizer):
    known = len(tokenizer)
    old = model.get_input_embeddings().weight[:known].detach().clone()
    extend(model, tokenizer, LARGE, seed=0)
    new = model.get_input_embeddings().weight[known : known + 514].detach()
    assert torch.equal(model.get_input_embeddings().weight[:known], old)
    error = old.std(0) / 514**0.5
    assert ((new.mean(0) - old.mean(0)).abs() < 5 * error).all()
    assert (new.std(0) / old.std(0) - 1).abs().max() < 0.2
    assert torch.pdist(new).min() > old.std()  # no two words begin as one


def test_rows_of_a_padded_vocabulary_are_used_and_drawn(model, tokenizer):
    known, rows = len(tokenizer), model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[known:] = 1000.0
    extend(model, tokenizer, VOCABULARY, seed=0)
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == rows == model.config.text_config.vocab_size == known + 50
    assert weight[: known + 34].abs().max() < 10
    assert (weight[known + 34 :] == 1000).all()


def test_a_grown_model_is_padded_on_request_and_all_its_new_rows_are_drawn(model, tokenizer):
    extend(model, tokenizer, LARGE, seed=0, pad_to_multiple_of=128)
    weight = model.get_input_embeddings().weight.detach()
    assert weight.shape[0] == -(-len(tokenizer) // 128) * 128 == model.config.text_config.vocab_size
    assert 0.5 < weight[len(tokenizer) :].std() / weight[:300].std() < 2


def test_equal_seeds_draw_equal_rows(bare, tokenizer):
    def rows(seed: int) -> torch.Tensor:
        model = AutoModelForImageTextToText.from_pretrained(bare)
        extend(model, AutoTokenizer.from_pretrained(bare), VOCABULARY, seed=seed)
        return model.get_input_embeddings().weight.detach()

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))


def test_words_that_are_there_already_keep_their_rows(model, tokenizer):
    extend(model, tokenizer, VOCABULARY, seed=0)
    before = model.get_input_embeddings().weight.detach().clone()
    extend(model, tokenizer, VOCABULARY, seed=1)
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_stay_tied_or_apart_through_extension_and_saving(tmp_path, tied):
    folder = build(tmp_path / "bare", words=False, tied=tied)
    processor = load_processor(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    extend(model, processor.tokenizer, LARGE, seed=0)
    save_pretrained(model, adapter_for("qwen2_5_vl", processor, LARGE), tmp_path / "out")
    again = load_adapter(tmp_path / "out").load_model(tmp_path / "out")
    for one in (model, again):
        first, last = one.get_input_embeddings().weight, one.get_output_embeddings().weight
        assert (first is last) == tied == one.config.tie_word_embeddings
        assert torch.equal(first, last) == tied
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_with_fewer_rows_than_tokens_is_refused(tmp_path):
    folder = build(tmp_path, words=False)
    processor = load_processor(folder)
    VOCABULARY.add_to(processor.tokenizer)
    processor.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="embedding rows and its text tokenizer .* not extended"):
        load_adapter(folder).load_model(folder)


def test_a_lost_tie_is_refused(model, tokenizer):
    extend(model, tokenizer, VOCABULARY, seed=0)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with pytest.raises(CheckpointError, match="tie_word_embeddings = true, but .* are two tensors"):
        check_rows(model, len(tokenizer))


def test_the_folder_says_what_its_words_mean(tmp_path):
    folder = build(tmp_path)
    stated = json.loads((folder / "samtok.json").read_text())
    assert (stated["num_codes"], stated["num_levels"], stated["tokenizer_sha256"]) == (16, 2, None)
    (folder / "samtok.json").write_text(json.dumps({**stated, "num_codes": 8, "num_levels": 3}))
    with pytest.raises(CheckpointError, match="3 levels of 8 codes has 26"):
        load_adapter(folder)
    (folder / "samtok.json").write_text(json.dumps({**stated, "format_version": 9}))
    with pytest.raises(CheckpointError, match="version 9"):
        load_adapter(folder)
    (folder / "samtok.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_adapter(folder)


@pytest.mark.parametrize("stated", [True, False])
def test_a_folder_is_read_without_its_processor_from_any_store(tmp_path, stated):
    folder = build(tmp_path)
    (folder / "samtok.json").rename(folder / ("samtok.json" if stated else "other.json"))
    adapter = load_adapter(folder)
    store = {f"s3://b/model/{file.name}": file.read_bytes() for file in folder.glob("*.json")}

    def read(uri: str) -> bytes:
        if uri not in store:
            raise FileNotFoundError(uri)
        return store[uri]

    found = read_folder("s3://b/model/", read=read)
    assert found == MllmFolder(adapter.family, adapter.vocabulary, adapter.tokenizer_sha256)


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_each_known_family_has_an_adapter_of_its_name(name):
    family = family_of(name)
    assert family.load("adapter").family == family.name == name and callable(family.load("tiny"))


def test_a_mixture_of_experts_is_refused_with_what_is_supported_of_its_family(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_5_moe"}')
    with pytest.raises(CheckpointError, match="qwen3_5_moe is a mixture of experts.*give a dense qwen3_5"):
        load_adapter(tmp_path)


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.skipif(is_timm_available(), reason="with timm the model is built")
def test_a_released_perception_lm_without_timm_names_what_to_install(tmp_path):
    folder = build(tmp_path, "perception_lm")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {"model_type": "timm_wrapper", "num_classes": 8, "model_args": {"embed_dim": 8}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"requires the timm library.*samtok\[perception-lm\]"):
        load_adapter(folder).load_model(folder)


def test_other_folders_are_refused(tmp_path, bare):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_adapter(tmp_path)
    with pytest.raises(CheckpointError, match=r"has 0 mask words and no samtok\.json"):
        load_adapter(bare)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="no adapter for 'llama'; known families are qwen2_5_vl"):
        load_adapter(tmp_path)
