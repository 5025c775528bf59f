"""DLC-Bench: descriptions of regions, judged by multiple-choice questions about what they say.

Source: github.com/NVlabs/describe-anything, evaluation/eval_model_outputs.py. The judge of the published
numbers is Llama-3.1-8B-Instruct, which sees the description and no image. A judge that sees the image gives
much higher positive scores, so numbers of both are not comparable.

Of each mask question 0 is whether the description is of the right kind of object at all; if it is not, no
other score of the mask can be above 0. Modes differ in masks without a description: "official" leaves them
out, "strict" scores all their questions 0. (The public evaluator refuses to run then.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from samtok.errors import ConfigError, DataError
from samtok.metrics.judged import (
    Ask,
    Replies,
    Sampling,
    Wording,
    counts,
    filled,
    mean,
    reply_to,
    require_mode,
    require_unique,
)
from samtok.metrics.referring import Mode

SAMPLING = Sampling(temperature=0.0, max_tokens=300)

LETTERS = "abcde"
"""Of the choices, in their order; no question has more."""

_SINGULAR = ("bus",)
"""Names that inflect takes for plurals."""


@dataclass(frozen=True, kw_only=True)
class DlcWording(Wording):
    """``{question}`` is the question with its choices, each on a line such as ``A. Yes``; ``{name}`` the name
    of the class, with its article if it is a singular."""

    PLACES: ClassVar = {
        "prompt": ("caption", "question"),
        "recognition": ("name",),
        "recognition_plural": ("name",),
    }

    prompt: str = (
        "Below are the description of one object of an image and a question about this description, with the "
        "answers that you may choose from.\n"
        "- Reply with one of the answers as it is written, and with nothing else: no reasons, no "
        "corrections, not the question.\n"
        "- The description need not agree with an answer word for word. Take the closest answer.\n\n"
        "Description:\n{caption}\n\n"
        "Question:\n{question}\n"
    )
    recognition: str = (
        "Could the object in the description be {name}, or an object of a similar kind? It need not be an "
        "exact match."
    )
    recognition_plural: str = (
        "Could the objects in the description be {name}, or objects of a similar kind? It need not be an "
        "exact match."
    )


WORDING = DlcWording()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a description.

    Attributes:
        choices: Texts with their scores, which are of -1, 0, 0.5 and 1; those of a recognition are 1 for Yes
            and 0 for No, and tell whether the object was recognized.
    """

    text: str
    choices: tuple[tuple[str, float], ...]
    kind: Literal["recognition", "positive", "negative"]


@dataclass(frozen=True, kw_only=True)
class DlcMask:
    """A mask with its description; ``questions`` begin with the one recognition, and None is a model that
    gave no description."""

    mask_id: str
    questions: tuple[Question, ...]
    caption: str | None

    def __post_init__(self) -> None:
        """Raises ValueError unless the first question, and no other, is the recognition."""
        if [question.kind == "recognition" for question in self.questions] != [
            True,
            *[False] * (len(self.questions) - 1),
        ]:
            raise ValueError(f"the questions of mask {self.mask_id} must begin with its one recognition.")

    @classmethod
    def of_payload(
        cls, mask_id: str, payload: Mapping[str, Any], caption: str | None, wording: DlcWording = WORDING
    ) -> "DlcMask":
        """Makes one of the payload of an annotation: ``class_name``, and ``questions`` with ``question``,
        ``choices`` and ``type`` each.

        Raises:
            DataError: ``class_name`` without one; ``question`` for no question, or one of more choices than
                letters.
            ConfigError: inflect is not installed.
        """
        name, asked = payload.get("class_name"), payload.get("questions")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"mask {mask_id} has no class_name to be recognized", reason="class_name")
        if not asked or any(len(one["choices"]) > len(LETTERS) for one in asked):
            found = f"no question, or one of over {len(LETTERS)} choices"
            raise DataError(f"mask {mask_id} has {found}", reason="question")
        questions = [
            Question(
                text=one["question"],
                choices=tuple((str(text), float(score)) for text, score in one["choices"]),
                kind=one["type"],
            )
            for one in asked
        ]
        return cls(
            mask_id=mask_id, questions=(recognition(name.strip(), wording), *questions), caption=caption
        )

    def asks(self, wording: DlcWording = WORDING) -> list[Ask]:
        """Returns what the judge is asked about it: a call for each question, none without a description."""
        if self.caption is None:
            return []
        return [
            Ask(
                name=name,
                prompt=filled(wording.prompt, caption=self.caption, question=_shown(question)),
                sampling=SAMPLING,
            )
            for name, question in zip(self.names, self.questions, strict=True)
        ]

    @property
    def names(self) -> list[str]:
        """Names of the asks: ``MASK_ID/0`` for the recognition, then ``/1``."""
        return [f"{self.mask_id}/{number}" for number in range(len(self.questions))]


def recognition(name: str, wording: DlcWording = WORDING) -> Question:
    """Returns question 0 for a class of this name, in the plural if inflect takes it for one.

    Raises:
        ConfigError: inflect is not installed.
    """
    engine = _inflect()
    if name not in _SINGULAR and engine.singular_noun(name) is not False:
        text = filled(wording.recognition_plural, name=name)
    else:
        text = filled(wording.recognition, name=engine.a(name))
    return Question(text=text, choices=(("Yes", 1.0), ("No", 0.0)), kind="recognition")


def dlc(masks: Sequence[DlcMask], replies: Replies, *, mode: Mode = "strict") -> dict[str, Any]:
    """Scores DLC-Bench.

    An answer that none of the choices can be read from scores 0; a recognition that cannot be read is none.
    A failed judgement is left out of the mean of its mask, and a mask whose recognition failed has no score.

    Args:
        masks: Of the benchmark.
        replies: To all ``DlcMask.asks``.
        mode: See the module.

    Returns:
        ``pos`` and ``neg``, means over masks of the mean score of their positive and negative questions, in
        [-1, 1]; ``avg`` of both. ``recognized`` is a share of the masks whose recognition was judged, and
        ``misrecognized`` the number of others. ``masks`` there are, ``masks_pos`` and ``masks_neg`` count
        what the means are of; questions are counted as in ``samtok.metrics.judged.counts``.

    Raises:
        ValueError: A mask is there twice, or a reply is not there.
    """
    require_mode(mode)
    require_unique(mask.mask_id for mask in masks)
    described = [mask for mask in masks if mask.caption is not None]
    scored: list[Mapping[str, float]] = []
    known, unparsed = list[bool](), 0
    for mask in described:
        found = [reply_to(name, replies) for name in mask.names]
        chosen = [
            None if reply is None else parse(reply, [text for text, _ in question.choices])
            for question, reply in zip(mask.questions, found, strict=True)
        ]
        unparsed += sum(one is None and reply is not None for one, reply in zip(chosen, found, strict=True))
        if found[0] is not None:
            known.append(chosen[0] == 0)
            scored.append(_scores(mask, found, chosen, recognized=known[-1]))
    absent = [mask for mask in masks if mask.caption is None]
    if mode == "strict":
        scored += [{question.kind: 0.0 for question in mask.questions} for mask in absent]
    pos, neg = ([one[kind] for one in scored if kind in one] for kind in ("positive", "negative"))
    both = [one for one in (mean(pos), mean(neg)) if one is not None]
    return {
        "pos": mean(pos),
        "neg": mean(neg),
        "avg": mean(both) if len(both) == 2 else None,
        "recognized": mean([float(one) for one in known]),
        "misrecognized": known.count(False),
        "masks": len(masks),
        "masks_pos": len(pos),
        "masks_neg": len(neg),
        **counts(
            [name for mask in described for name in mask.names],
            replies,
            unparsed=unparsed,
            missing=sum(len(mask.questions) for mask in absent),
        ),
    }


def parse(reply: str, choices: Sequence[str]) -> int | None:
    """Returns which choice a reply means, None if none; the first of these rules decides.

    Texts are compared in lower case and without blanks around them. The reply is a choice, its letter, or
    both as in ``a. yes``; exactly one choice is inside the reply; the reply begins with a letter and a full
    stop; of several choices inside it the one that begins last, of those the longest; the reply is inside
    choices: the longest of them; it begins with a letter and a line break.

    Where the public evaluator stops with an IndexError this is None: an empty reply, a lone letter beyond the
    choices, and either rule of letters with one beyond them.
    """
    said = reply.strip().lower()
    texts = [choice.strip().lower() for choice in choices]
    inside: list[tuple[int, int, int]] = []  # begin, length, and which
    for number, (letter, text) in enumerate(zip(LETTERS, texts, strict=False)):
        if said in (text, f"{letter}. {text}", letter):
            return number
        if text in said:
            inside.append((said.index(text), len(text), -number))
    if len(inside) == 1:
        return -inside[0][2]
    if not said or (len(said) == 1 and said in LETTERS):
        return None
    lettered = LETTERS.find(said[0])
    if lettered >= 0 and said[1] == ".":
        return lettered if lettered < len(texts) else None
    if inside:
        return -max(inside)[2]
    around = [(len(text), -number) for number, text in enumerate(texts) if said in text]
    if around:
        return -max(around)[1]
    return lettered if said[1:2] == "\n" and 0 <= lettered < len(texts) else None


def _scores(
    mask: DlcMask, found: Sequence[str | None], chosen: Sequence[int | None], *, recognized: bool
) -> dict[str, float]:
    """Returns the mean score of each kind of questions of a mask that has any which were judged."""
    by_kind: dict[str, list[float]] = {}
    for question, reply, number in zip(mask.questions, found, chosen, strict=True):
        if reply is not None:
            score = 0.0 if number is None else question.choices[number][1]
            by_kind.setdefault(question.kind, []).append(score if recognized else min(0.0, score))
    return {kind: sum(scores) / len(scores) for kind, scores in by_kind.items()}


def _shown(question: Question) -> str:
    lettered = zip(LETTERS.upper(), question.choices, strict=False)
    lines = [question.text, *(f"{letter}. {text}" for letter, (text, _) in lettered)]
    return "\n".join(lines).strip()


@cache
def _inflect() -> Any:
    try:
        import inflect  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "DLC-Bench asks for its classes in the singular or plural, which takes inflect: "
            "pip install 'samtok[captions]'."
        ) from error
    return inflect.engine()
