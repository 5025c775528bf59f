"""The similarity of phrases is the cosine of mean hidden states of a BERT; a tiny one stands for it."""

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from samtok.errors import CheckpointError
from samtok.metrics.grounded_captions import recall
from samtok.metrics.text_similarity import load_bert
from tests.samtok.test_metrics_grounded_captions import PREDICTED, TRUTH

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "cat", "road", "sky", "car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a tiny BERT as transformers saves it."""
    path = tmp_path_factory.mktemp("bert")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(path)
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return str(path)


def test_similarity_is_the_cosine_of_means_over_all_tokens(folder):
    similarity, model = load_bert(folder), BertModel.from_pretrained(folder).eval()
    ids = [[WORDS.index(word) for word in f"[CLS] {text} [SEP]".split()] for text in ("the dog", "a cat")]
    with torch.no_grad():
        first, second = (model(torch.tensor([one])).last_hidden_state[0].mean(0) for one in ids)
    expected = torch.dot(first, second) / first.norm() / second.norm()
    assert similarity("the dog", "a cat") == pytest.approx(float(expected), abs=1e-6)
    assert similarity("The DOG", "the dog") == pytest.approx(1, abs=1e-6)
    assert similarity("a cat", "the dog") == similarity("the dog", "a cat") < 0.999


def test_long_phrases_are_cut_and_empty_ones_are_read(folder):
    similarity = load_bert(folder)
    assert similarity("dog " * 600, "dog " * 510) == pytest.approx(1, abs=1e-6)
    assert -1 <= similarity("", "dog") <= 1


def test_recall_takes_it(folder):
    assert recall(TRUTH, PREDICTED, similarity=load_bert(folder)) in (0.25, 0.5, 0.75)


def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"text model .* cannot be loaded: .* Give a folder with bert"):
        load_bert(str(tmp_path))
