"""The mask-word reward (paper, Eq. 5), partial credit by level, and the graded variant of a follow-up.

Words are compared by their codes and never decoded. The order of masks is free.
"""

from collections import Counter
from typing import Literal, get_args

from samtok.rewards.answer import Answer
from samtok.rewards.response import Codes, Question

TruePositives = Literal["multiset", "distinct"]
"""How often a word can be true: as often as the truth has it, or once, as in the paper."""

_SAME_FIRST_CODE = 0.4  # of the follow-up's graded reward


def mask_reward(
    question: Question,
    answer: Answer,
    *,
    tp: TruePositives = "multiset",
    count_malformed: bool = True,
    partial: float = 0.0,
) -> float:
    """Returns N_TP / max(N_pred, N_gt), in [0, 1]: 1 exactly if all masks are named and nothing else.

    N_pred counts every word of the answer, so that naming many or one many times costs, and every stretch of
    mask tokens that is not exactly a word. So 1 means that every reading of the answer finds the true words,
    the authors' included, which makes masks of codes without a word around them. Nothing predicted where
    nothing is true gives 1. An answer that cannot be found gives 0.

    With ``partial`` a word earns something for the first codes that it shares with a true one. Equal words
    are matched first, then those that share all codes but the last, and so on; a word is matched once at
    most, on both sides. Of ``L`` levels, ``k`` shared codes earn ``partial * k / (L - 1)``.

    Args:
        question: Its ``truth`` are the true masks.
        answer: From ``samtok.rewards.answer.read`` with the same question.
        tp: "multiset" matches two equal words with two equal true masks; "distinct" counts equal words once
            in N_TP, as the paper does, so that a perfect copy of a truth with repeats earns less than 1.
        count_malformed: Add what is malformed to N_pred (``Answer.num_broken``). The paper adds words with
            codes of wrong levels only, so all else is free there.
        partial: Credit for all codes but the last one, in [0, 1]; 0 is the paper's.

    Raises:
        ValueError: For an option out of its range.
    """
    check_options(tp, partial)
    num_broken = answer.num_broken if count_malformed else answer.num_misplaced
    most = max(len(answer.words) + num_broken, len(question.truth))
    if answer.text is None:
        return 0.0
    if not most:
        return 1.0
    kept = set if tp == "distinct" else list
    predicted, truth = Counter(kept(answer.words)), Counter(kept(question.truth))
    return _credit(predicted, truth, question.num_levels, partial) / most


def graded_reward(question: Question, answer: Answer) -> float:
    """Returns the follow-up's reward, in [0, 1]: 1 for a true word and 0.4 for one with a true first code.

    Each different word counts once, by its best match, and several may match the same true mask; the
    divisor is the paper's max(N_pred, N_gt), where broken words are free.
    """
    most = max(len(answer.words) + answer.num_misplaced, len(question.truth))
    if answer.text is None:
        return 0.0
    if not most:
        return 1.0
    truth, first_codes = set(question.truth), {codes[0] for codes in question.truth}
    others = set(answer.words) - truth
    exact = len(set(answer.words) & truth)
    return (exact + _SAME_FIRST_CODE * sum(codes[0] in first_codes for codes in others)) / most


def check_options(tp: str, partial: float) -> None:
    """Raises a ValueError for options that ``mask_reward`` does not know."""
    if tp not in get_args(TruePositives):
        raise ValueError(f"tp must be one of {', '.join(get_args(TruePositives))}, got {tp!r}.")
    if not 0 <= partial <= 1:
        raise ValueError(f"partial must be in [0, 1], where 1 is what a true word earns, got {partial}.")


def _credit(predicted: Counter[Codes], truth: Counter[Codes], num_levels: int, partial: float) -> float:
    """Matches by the longest common prefix; which of two equal prefixes is matched makes no difference."""
    credit = 0.0
    for length in range(num_levels, 0, -1):
        worth = 1.0 if length == num_levels else partial * length / (num_levels - 1)
        if not worth:
            break
        predicted, truth = (
            Counter(codes[:length] for codes in pool.elements()) for pool in (predicted, truth)
        )
        matched = predicted & truth
        credit += worth * matched.total()
        predicted, truth = predicted - matched, truth - matched
    return credit
