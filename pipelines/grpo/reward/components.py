"""Rewards by name, checked results, and their weighted sum. Loads neither Ray nor torch.

The standard reward (``samtok.rewards.TextReward``) is always there; a plug-in ``module:function`` adds
components beside its own. A component without a weight is logged and not learnt from.

    rewards = rewards_of(ScoringConfig(plug_ins=("my_rewards:short",), partial=0.2))
    score(questions, responses, rewards=rewards, weights={"mask": 1.0, "short": 0.1})
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from operator import attrgetter
from typing import Annotated, Any, cast

from tyro.constructors import PrimitiveConstructorSpec

from pipelines.config import Share, config, format_pairs, parse_pairs
from samtok.errors import ConfigError
from samtok.rewards import Question, Response, Reward, TextReward
from samtok.rewards.mask_words import TruePositives

STANDARD = "the standard reward"
"""Name of ``TextReward`` among the rewards."""

CAPTION_WEIGHTS = {
    "mask": 0.35,
    "phrase_structure": 0.35,
    "caption_overlap": 0.15,
    "caption_length": 0.1,
    "caption_repetition": 0.05,
}
"""For grounded captions, 1 in all. Half of what words earn they earn only behind the right phrases, so true
words alone earn 0.40, in gibberish 0.50, and behind each other's phrases 0.65 and what the phrases have in
common (tests/pipelines/test_grpo_policies.py). Chosen for that and not tuned by a run."""


@dataclass(frozen=True)
class Scored:
    """What one response is worth: every component, and their weighted sum."""

    components: Mapping[str, float]
    total: float


def parse_weights(text: str) -> dict[str, float]:
    """Reads ``mask=1,format=0.1``; raises ConfigError for a part of another form, or a name that is there
    twice."""
    weights = {}
    for name, value in parse_pairs(text, flag="weights").items():
        try:
            weights[name] = float(value)
        except ValueError as error:
            raise ConfigError(f"--weights {text}: {name} must be a number, got {value}.") from error
    return weights


def format_weights(weights: Mapping[str, float]) -> str:
    """Returns the text that ``parse_weights`` reads."""
    return format_pairs({name: f"{weight:g}" for name, weight in weights.items()})


_WEIGHTS: PrimitiveConstructorSpec[dict[str, float]] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="NAME=NUMBER,...",
    instance_from_str=lambda words: parse_weights(words[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda weights: [format_weights(weights)],
)
"""Lets one flag name components of plug-ins, which no flag of their own could be made for."""


@config
class ScoringConfig:
    """What a response is worth: the weighted sum of its components."""

    weights: Annotated[dict[str, float], _WEIGHTS] = field(default_factory=lambda: {"mask": 1.0})
    """Weight of each component, as mask=1,format=0.1; all components are logged, also those without."""
    true_positives: TruePositives = "multiset"
    """Two instances of one word in the truth: both count (multiset), or one (distinct, the paper's Eq. 5)."""
    count_malformed: bool = True
    """Count every stretch of mask tokens that is not exactly a word as wrong predictions; the paper does not,
    so codes outside of words and broken words cost nothing."""
    partial: Share = 0.0
    """Credit for a word whose first code is right and whose second is not; the paper gives none."""
    plug_ins: tuple[str, ...] = ()
    """Further rewards, each as module:function (samtok.rewards.response.Reward)."""

    def check(self) -> None:
        """Refuses weights from which nothing can be learnt."""
        check_weights(self.weights)


def rewards_of(scoring: ScoringConfig) -> dict[str, Reward]:
    """Returns the standard reward with its options, and the plug-ins, by their names.

    Raises:
        ConfigError: From ``resolve``.
    """
    standard = TextReward(
        tp=scoring.true_positives, count_malformed=scoring.count_malformed, partial=scoring.partial
    )
    return {STANDARD: standard, **{name: resolve(name) for name in scoring.plug_ins}}


def resolve(name: str) -> Reward:
    """Imports a reward from its name, as ``package.module:function``; any callable of a module will do.

    Raises:
        ConfigError: If the name has another form, or there is no such module, nothing of this name in it,
            or nothing that can be called.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ConfigError(
            f"the reward {name!r} must be given as module:function, as my_rewards:short_answers."
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(_import_failed(name, module_name, error)) from error
    try:
        found = attrgetter(path)(module)
    except AttributeError as error:
        public = ", ".join(each for each in vars(module) if not each.startswith("_")) or "nothing"
        raise ConfigError(
            f"the reward {name!r}: {module_name} ({getattr(module, '__file__', None)}) has no {path!r}; it "
            f"has {public[:500]}."
        ) from error
    if not callable(found):
        raise ConfigError(
            f"the reward {name!r} is a {type(found).__name__}, expected a function of (Question, Response)."
        )
    return cast(Reward, found)


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuses weights from which nothing can be learnt; raises ConfigError if one is not finite, or all are
    0."""
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ConfigError(f"the weight of the reward component {name!r} must be finite, got {weight}.")
    if not any(weights.values()):
        raise ConfigError(
            f"every reward would be 0: the weights are {dict(weights)}. Give a component one, as mask=1."
        )


def combine(components: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Returns the weighted sum of components; those without a weight count nothing.

    Raises:
        ConfigError: If a weight is for a component that is not there, or the sum is not finite.
    """
    unknown = [name for name in weights if name not in components]
    if unknown:
        raise ConfigError(
            f"there is a weight for the reward component {unknown[0]!r}, which no reward gives; known ones "
            f"are {', '.join(components) or 'none'}."
        )
    total = sum(weight * components[name] for name, weight in weights.items())
    if not math.isfinite(total):
        raise ConfigError(
            f"the weighted sum of {dict(components)} by {dict(weights)} is {total}, not finite."
        )
    return float(total)


def score(
    questions: Sequence[Question],
    responses: Sequence[Response],
    *,
    rewards: Mapping[str, Reward],
    weights: Mapping[str, float],
    extra: Sequence[Mapping[str, float]] | None = None,
) -> list[Scored]:
    """Scores every response with all rewards.

    Args:
        weights: By component; one that is not named has weight 0.
        extra: Components of each response that were computed elsewhere, such as those of
            ``samtok.rewards.iou``; checked like the others.

    Raises:
        ConfigError: If a reward fails, gives something else than named finite numbers, or a component that
            another one gives too; names it and the sample. If a weight has no component.
        ValueError: If the lengths differ.
    """
    beside = [{}] * len(responses) if extra is None else extra
    scored = []
    for number, (question, response, known) in enumerate(zip(questions, responses, beside, strict=True)):
        sample = question.record.get("sample_id")
        where = f"response {number}" + ("" if sample is None else f", to the sample {sample!r}")
        components = _checked("extra components", known, where)
        for name, reward in rewards.items():
            more = _call(name, reward, question, response, where)
            if twice := [key for key in more if key in components]:
                raise ConfigError(
                    f"{name} gives the component {twice[0]!r} on {where}, which another reward gives too; "
                    "rename it."
                )
            components |= more
        scored.append(Scored(components, combine(components, weights)))
    return scored


def check_rewards(
    rewards: Mapping[str, Reward],
    weights: Mapping[str, float],
    question: Question,
    *,
    elsewhere: Sequence[str] = (),
) -> Scored:
    """Scores the true answer to a question before anything is spent, so that bad rewards fail at once.

    Args:
        question: Any one that will be asked.
        elsewhere: Names of the components that are computed elsewhere (``extra`` of ``score``).

    Raises:
        ConfigError: From ``score``.
    """
    extra = [dict.fromkeys(elsewhere, 1.0)]
    return score([question], [true_response(question)], rewards=rewards, weights=weights, extra=extra)[0]


def true_response(question: Question) -> Response:
    """Returns the true answer as a model would write it, after an empty thought where one is wanted."""
    text = f"<think></think><answer>{question.text}</answer>" if question.thinking else question.text
    return Response(text=text)


def _import_failed(name: str, module: str, error: Exception) -> str:
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and (module == missing or module.startswith(f"{missing}.")):
        return (
            f"the reward {name!r}: there is no module {missing!r}. Put its file into the folder that is "
            "submitted as the working directory, or install its package on every node."
        )
    return f"the reward {name!r}: importing {module} fails with {type(error).__name__}: {error}."


def _call(name: str, reward: Reward, question: Question, response: Response, where: str) -> dict[str, float]:
    try:
        found = reward(question, response)
    except Exception as error:
        raise ConfigError(f"{name} fails on {where}: {type(error).__name__}: {error}.") from error
    return _checked(name, found, where)


def _checked(name: str, found: Any, where: str) -> dict[str, float]:
    """Returns the components as floats, if they are named finite numbers."""
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"{name} gives a {type(found).__name__} on {where}, expected a dict of component to number."
        )
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Real) or not math.isfinite(value):
            raise ConfigError(
                f"{name} gives {key!r}: {value!r} on {where}, expected a name with a finite number."
            )
    return {key: float(value) for key, value in found.items()}
