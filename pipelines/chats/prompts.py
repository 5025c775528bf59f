"""Prompts of reinforcement learning: questions of chat corpora, read at random by whoever rolls out.

The driver decides once which samples are asked (``prompt_selection.load_prompts``) and hands the source to
its actors, which read rows and images themselves. A draw's number decides its prompt, so a run resumes
at any number and any actor can take any part. Loads torch with the first row only, since flags are read here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Interval

from pipelines import shards
from pipelines.chats import corpus as chats
from pipelines.config import AtLeast1, Place, config
from pipelines.schema import CHAT_TASKS
from pipelines.training.mixture import Mixture
from samtok.errors import ConfigError, DataError
from samtok.mllm.thinking import split_thinking
from samtok.rewards.response import Question

if TYPE_CHECKING:
    from pipelines.chats.source import ChatSource
    from samtok.mllm.chat import Encoded, Turn
    from samtok.mllm.family import Adapter

THINKING_SUFFIX = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
    "assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> "
    "tags, respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>"
)
"""What follows a question that is to be thought about, after one space (DeepSeek-R1's wording)."""

Row = dict[str, Any]


@config
class PromptsConfig:
    """Which questions of the chats are asked, and how."""

    thinking: bool = False
    """Ask for a thought before the answer; only the answer is rewarded."""
    tasks: tuple[str, ...] = ()
    """Tasks of chat rows that are asked; by default all."""
    failures: Place | None = None
    """Finished --out of jobs/evaluate_mllm.py: ask only what was answered there and not exactly right."""
    none_share: Annotated[float, Interval(ge=0, lt=1)] | None = None
    """Most that prompts without a target may be of all; what is too much of them is left out at random. By
    default they are as they come. "No target." is always one word away, so with too many of them it pays to
    answer nothing else."""
    max_prompt_tokens: AtLeast1 = 2048
    """Prompts with more tokens, image tokens included, are left out and counted; nothing is ever cut."""

    def check(self) -> None:
        """Refuses tasks that no chat has."""
        for task in self.tasks:
            if task not in CHAT_TASKS:
                raise ConfigError(f"--.tasks must be some of {', '.join(CHAT_TASKS)}, got {task!r}.")


@dataclass(frozen=True)
class Prompt:
    """One question, the dialogue up to its answer (the last turn is the user's), and its ``CHAT_ROW``."""

    question: Question
    turns: "tuple[Turn, ...]"
    row: Row


@dataclass
class PromptSource:
    """Random access to prompts, and their order. Picklable; what it has read stays behind.

    ``counts`` says what became of all samples of the corpora: ``rows``, ``prompts``, of them ``none`` without
    a target, and the rest by why they are left out.
    """

    sources: "tuple[ChatSource, ...]"
    kept: tuple[np.ndarray, ...]  # per corpus, which of its samples are asked, ascending
    weights: tuple[float | None, ...]  # of the corpora in the mixture, or None for all of them
    thinking: bool
    seed: int  # of the order
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *map(len, self.kept)])
        self._mixture = Mixture([len(kept) for kept in self.kept], self.weights, self.seed)

    def __getstate__(self) -> dict[str, Any]:  # without the order of an epoch
        fresh = Mixture([len(kept) for kept in self.kept], self.weights, self.seed)
        return {**self.__dict__, "_mixture": fresh}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def digest(self) -> str:
        """Hash of which prompts there are, wherever their corpora lie; the order's seed is not in it."""
        parts = [
            [source.corpus.digest, hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest(), weight]
            for source, kept, weight in zip(self.sources, self.kept, self.weights, strict=True)
        ]
        return shards.digest([parts, self.thinking])

    def prompt(self, index: int) -> Prompt:
        """Reads the prompt ``index`` of ``[0, len(self))``.

        Raises:
            DataError: With a reason, if the sample cannot be asked.
            IndexError: There is no such prompt.
        """
        row, corpus = self._row(index)
        sizes = {"num_codes": corpus.num_codes, "num_levels": corpus.num_levels}
        return prompt_of(row, thinking=self.thinking, **sizes)

    def row(self, index: int) -> Row:
        """Reads the sample of a prompt as it is, to name what could not be asked."""
        return self._row(index)[0]

    def draws(self, start: int, count: int) -> list[int]:
        """Returns the prompts of the draws ``start`` to ``start + count - 1``.

        Draws are numbered from 0 over all epochs; the number of the next draw is the whole state.
        """
        return [int(self._starts[number]) + i for number, i in self._mixture.draws(start, count)]

    def _row(self, index: int) -> tuple[Row, chats.ChatCorpus]:
        if not 0 <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = self.kept[number][index - int(self._starts[number])]
        return self.sources[number].row(int(place)), self.sources[number].corpus


def prompt_of(row: Row, *, thinking: bool, num_codes: int, num_levels: int) -> Prompt:
    """Makes the prompt of one sample: its last answer is the truth, earlier turns are given as they are.

    Raises:
        DataError: ``no_answer`` if no user's message stands before a last answer, ``thought`` if the true
            answer itself has a thought, ``missing_mask`` if it names a mask that is not there.
    """
    messages = row["messages"]
    last = last_answer(messages)
    if last is None:
        raise DataError(
            f"sample {row['sample_id']!r} has no answer right after a user's message to ask for.",
            reason="no_answer",
        )
    text = chats.text_of(messages[last])
    if split_thinking(text).answer is not None:
        raise DataError(
            f"the answer of sample {row['sample_id']!r} has a thought in it, whose words would count as true "
            "ones. Take prompts from the corpus that the thoughts were written for.",
            reason="thought",
        )
    truth = tuple(chats.answer_words({**row, "messages": messages[: last + 1]})[-1])
    asked = ask_to_think(messages[:last]) if thinking else messages[:last]
    question = Question(
        truth=truth, text=text, thinking=thinking, num_codes=num_codes, num_levels=num_levels, record=row
    )
    return Prompt(question, tuple(chats.turns_of({"messages": asked})), row)


def last_answer(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the place of the last answer; None if there is none, or no user's message right before it."""
    places = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    return places[-1] if places and places[-1] and messages[places[-1] - 1]["role"] == "user" else None


def ask_to_think(messages: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Returns messages that end with a user's, whose question is followed by ``THINKING_SUFFIX``."""
    *earlier, last = (dict(message) for message in messages)
    *parts, end = last["content"]
    if end["text"] is None:
        parts, end = [*parts, end], {"text": "", "image": None}
    text = f"{end['text'].rstrip()} {THINKING_SUFFIX}"
    return [*earlier, {**last, "content": [*parts, {"text": text, "image": None}]}]


def encode_prompt(
    adapter: "Adapter", prompt: Prompt, max_prompt_tokens: int, images: "Sequence[np.ndarray]"
) -> "Encoded":
    """Encodes a prompt with its images (``source.load_images``) up to where the answer begins.

    Raises:
        DataError: With a reason, if an image or the text cannot be used; ``too_long`` beyond
            ``max_prompt_tokens``.
    """
    encoded = adapter.encode_prompt(prompt.turns, images)
    if len(encoded) > max_prompt_tokens:
        raise DataError(
            f"the prompt has {len(encoded)} tokens and at most {max_prompt_tokens} are taken "
            "(--prompts.max-prompt-tokens); it is left out, since a cut could split an image or a mask word. "
            "Raise the limit, or give the model smaller images (jobs/extend_mllm.py --image.max-pixels).",
            reason="too_long",
        )
    return encoded
