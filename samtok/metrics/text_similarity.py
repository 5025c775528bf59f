"""How alike two phrases are, by a text model: what published recalls of grounded captions use.

As in the public evaluator (github.com/mbzuai-oryx/groundingLMM, eval/gcg/evaluate.py) a phrase is the mean of
the last hidden states of all its tokens, the two special ones included, in ``bert-base-uncased``, and two are
as alike as the cosine of these. transformers and torch load with the model.
"""

from collections.abc import Callable

from samtok.errors import CheckpointError

MODEL = "bert-base-uncased"
"""Of the public evaluator; a name of the Hugging Face hub."""

MAX_TOKENS = 512
"""Longer phrases are cut, as there."""


def load_bert(model: str = MODEL, *, device: str = "cpu") -> Callable[[str, str], float]:
    """Loads a text model; returns the similarity of two phrases, in [-1, 1].

    Each phrase goes through the model once, alone and in float32, so results do not depend on the others.

    Args:
        model: A folder with a model and its tokenizer as transformers saves them, or a name of the hub.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        network = AutoModel.from_pretrained(model, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"the text model {model} cannot be loaded: {type(error).__name__}: {said[:300]}. "
            f"Give a folder with {MODEL} as transformers saves it, or a name of the hub that can be reached."
        ) from error
    network = network.to(device).eval()
    known: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def embed(text: str) -> torch.Tensor:
        if text not in known:
            tokens = tokenizer(text, return_tensors="pt", max_length=MAX_TOKENS, truncation=True).to(device)
            known[text] = network(**tokens).last_hidden_state[0].mean(dim=0)
        return known[text]

    def similarity(first: str, second: str) -> float:
        return float(torch.nn.functional.cosine_similarity(embed(first), embed(second), dim=0))

    return similarity
