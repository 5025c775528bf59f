"""Weights of the responses in the loss of a whole optimizer step.

The loss is the sum over responses of their weight times the sum of their tokens' losses. Weights are computed
once, over all responses of all learners and before the first backward, so the loss and its gradient are the
same however the responses are spread over micro-batches and learners; gradients of learners are summed.
"""

from collections.abc import Callable, Sequence
from typing import Literal

Mean = Literal["token", "prompt", "sequence", "constant"]


def sequence_weights(
    lengths: Sequence[Sequence[int]],
    used: Sequence[Sequence[bool]],
    *,
    mean: Mean,
    max_tokens: int | None = None,
) -> list[list[float]]:
    """Returns the weight of every response, group by group; 0 for those that are not used.

    Args:
        lengths: Tokens of each response that have a loss.
        mean: "token": all tokens alike (DAPO, arXiv 2503.14476, section 3.3). "prompt": all groups alike,
            tokens alike within one. "sequence": all responses alike, tokens alike within one (GRPO, arXiv
            2402.03300, eq. 3). "constant": a token counts 1 / (responses * max_tokens) whatever the lengths
            are (Dr. GRPO, arXiv 2503.20783).
        max_tokens: Largest length that a response may have; read by "constant" only.

    Raises:
        ValueError: Shapes differ, a used response has no tokens, or "constant" lacks ``max_tokens``.
    """
    limit = max_tokens or 0
    if mean == "constant" and limit < 1:
        raise ValueError(f"the constant mean divides by max_tokens, which must be >= 1, got {max_tokens}.")
    shape, other = [len(group) for group in lengths], [len(group) for group in used]
    if shape != other:
        raise ValueError(f"lengths and used must have the same shape, got groups of {shape} and {other}.")
    for group, pair in enumerate(zip(lengths, used, strict=True)):
        for response, (length, use) in enumerate(zip(*pair, strict=True)):
            if use and length < 1:
                raise ValueError(
                    f"response {response} of group {group} is used but has {length} tokens with a loss; a "
                    "used response needs at least its end of turn."
                )
    learnt = [sum(group) for group in used]
    tokens = [sum(n for n, use in zip(*pair, strict=True) if use) for pair in zip(lengths, used, strict=True)]
    total, responses, prompts = sum(tokens), sum(learnt), sum(count > 0 for count in learnt)

    divisors: dict[Mean, Callable[[int, int], int]] = {
        "token": lambda group, length: total,
        "prompt": lambda group, length: prompts * tokens[group],
        "sequence": lambda group, length: responses * length,
        "constant": lambda group, length: responses * limit,
    }
    divisor = divisors[mean]
    return [
        [1 / divisor(group, length) if use else 0.0 for length, use in zip(*pair, strict=True)]
        for group, pair in enumerate(zip(lengths, used, strict=True))
    ]
