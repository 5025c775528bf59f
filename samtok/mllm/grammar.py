"""Grammar of mask words: which tokens a model may generate next, for sampling and for learning from samples.

Text and words alternate freely: ``text* (start code_0 ... code_n end text*)*``. Codes and the end are allowed
inside a word only, each in its place, and nothing else is allowed there, the end of the text included. The
state follows from the last ``num_levels + 1`` tokens alone, so nothing is stored between steps.

Two things stay with others. A limit of tokens can cut the last word; ``samtok.words.parse_words_lenient``
counts those. And a model could spell a word letter by letter, in ordinary tokens; this does not prevent it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessor

from samtok.mllm.vocab import WordIds


class SuppressTokens(LogitsProcessor):
    """Suppresses some tokens, and tokens that the tokenizer does not know.

    Reinforcement learning uses this alone: pads of images are never allowed, while a malformed word must be
    possible so that it gets a low reward.

    Args:
        vocab_size: Tokens that the tokenizer knows. Logits can be wider; what is beyond is suppressed.
        suppressed_ids: Tokens that are never generated, such as pads of images.

    Raises:
        ValueError: For an id outside ``[0, vocab_size)``.
    """

    supports_continuous_batching = True

    def __init__(self, vocab_size: int, suppressed_ids: Sequence[int] = ()) -> None:
        _require_known(suppressed_ids, vocab_size)
        self.vocab_size = vocab_size
        self.suppressed_ids = tuple(suppressed_ids)
        self._penalties: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def __call__(
        self, input_ids: Int[Tensor, "batch token"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Returns scores of the next token: minus infinity if it is not allowed, else untouched."""
        return self.restrict(scores, self.states(input_ids)[:, -1])

    def states(self, token_ids: Int[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
        """Returns the state after each token: 0 everywhere."""
        return torch.zeros_like(token_ids)

    def restrict(
        self, scores: Float[Tensor, "*position vocab"], states: Int[Tensor, "*position"]
    ) -> Float[Tensor, "*position vocab"]:
        """Returns scores, minus infinity for what is not allowed in these states; takes gradients.

        A learner whose samples were drawn under the grammar needs it for whole texts, with their ``states``:
        the samples come from the distribution over allowed tokens, and the end of a word had probability 1.
        Scores at position ``t`` are those of token ``t + 1``, as models return them.

        Raises:
            ValueError: For scores narrower than the vocabulary.
        """
        kind = scores.shape[-1], scores.dtype, scores.device
        if kind not in self._penalties:
            forbidden = self._forbidden(scores.shape[-1]).to(scores.device)
            self._penalties[kind] = scores.new_zeros(forbidden.shape).masked_fill(forbidden, -torch.inf)
        # Adding takes less than half the time of filling by a mask on a CPU, and one copy of the logits.
        return self._penalties[kind].index_select(0, states.flatten()).view_as(scores).add_(scores)

    def _forbidden(self, width: int) -> Bool[Tensor, "state vocab"]:
        """Builds the table of what is not allowed in each state, for logits of this width."""
        if width < self.vocab_size:
            raise ValueError(
                f"the model scores {width} tokens, its tokenizer knows {self.vocab_size}; "
                "extend the model by its mask words first (jobs/extend_mllm.py)."
            )
        table = torch.zeros(1, width, dtype=torch.bool)
        table[:, list(self.suppressed_ids)] = True
        table[:, self.vocab_size :] = True
        return table


class MaskWordGrammar(SuppressTokens):
    """Restricts a model to whole mask words, of any number of levels.

    For ``generate(logits_processor=[...])``; prompts may be padded on the left and may hold words. Rows of a
    batch do not see each other.

    Raises:
        ValueError: For an id outside ``[0, vocab_size)``, or one with two meanings.
    """

    supports_continuous_batching = False  # there a processor sees the newest tokens only

    def __init__(self, word_ids: WordIds, vocab_size: int, suppressed_ids: Sequence[int] = ()) -> None:
        super().__init__(vocab_size, suppressed_ids)
        ids = word_ids.all
        _require_known(ids, vocab_size)
        if len({*ids, *suppressed_ids}) < len(ids) + len(set(suppressed_ids)):
            raise ValueError("a token is two mask words, or a mask word that is suppressed.")
        self.word_ids = word_ids
        self.num_levels = len(word_ids.codes)
        self._roles = {torch.device("cpu"): self._role_of_token()}

    def __call__(
        self, input_ids: Int[Tensor, "batch token"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        return super().__call__(input_ids[:, -(self.num_levels + 1) :], scores)

    def states(self, token_ids: Int[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
        """Returns the state after each token.

        0 is outside of words; ``k`` is inside, after the start and ``k - 1`` codes. A broken word in a prompt
        counts as text. There is no loop over tokens, so it also works on whole texts.
        """
        if token_ids.device not in self._roles:
            self._roles[token_ids.device] = self._roles[torch.device("cpu")].to(token_ids.device)
        roles = self._roles[token_ids.device][token_ids]
        behind = torch.arange(self.num_levels, -1, -1, device=roles.device)
        recent = functional.pad(roles, (self.num_levels, 0)).unfold(-1, self.num_levels + 1, 1)
        newest = roles.unsqueeze(-1)
        unbroken = (recent + behind == newest) | (behind >= newest)  # from its start up to here
        return roles * unbroken.all(dim=-1)

    def _role_of_token(self) -> Int[Tensor, " vocab"]:
        """The state that a token leads to if all before it is right: 0 for text and for the end of a word."""
        roles = torch.zeros(self.vocab_size, dtype=torch.long)
        roles[self.word_ids.start] = 1
        for level, codes in enumerate(self.word_ids.codes):
            roles[list(codes)] = level + 2
        return roles

    def _forbidden(self, width: int) -> Bool[Tensor, "state vocab"]:
        outside = super()._forbidden(width)
        inside = torch.ones(self.num_levels + 1, width, dtype=torch.bool)
        for state, ids in enumerate((*self.word_ids.codes, (self.word_ids.end,))):
            outside[:, list(ids)] = True
            inside[state, list(ids)] = False
        return torch.cat([outside, inside])


def _require_known(ids: Sequence[int], vocab_size: int) -> None:
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:
        raise ValueError(f"token {wrong[0]} is not in the vocabulary: expected ids in [0, {vocab_size}).")
