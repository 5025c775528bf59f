"""Tries rewards before anything is trained with them, on cheap ways to answer or on responses in a file.

    python -m pipelines.tools.reward_check --preset captions
    python -m pipelines.tools.reward_check --responses responses.jsonl --weights mask=1,format=0.1 --thinking
    python -m pipelines.tools.reward_check --responses r.jsonl --chats runs/chats --plug-ins my_rewards:short

Without ``--responses`` it prints what it earns to answer without looking, in a table for each kind of
question: of made-up ones, or with ``--chats`` of the first of each kind among its first samples. What earns
as much as the truth is marked as a hole.

Every line of a file is an object: ``{"truth": "the true answer", "response": "what a model wrote"}``, with
``"task": "gcg"`` for a caption, or with ``--chats`` ``{"sample_id": "...", "response": "..."}``, a response
in place of the sample's last answer. A reward of one's own is a function in a file of the working directory:

    def short(question, response):
        return {"short": float(len(response.text) < 200)}

Prints a row per line with all components and the total, their means, and counts. Token ids are empty here,
and what needs the image (``iou`` of a run) is not computed.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from pipelines import cli
from pipelines import job as runs
from pipelines.chats.corpus import ChatCorpus, load_chat_corpus, rows_of
from pipelines.chats.prompts import last_answer, prompt_of
from pipelines.config import AtLeast1, config
from pipelines.grpo.reward.components import CAPTION_WEIGHTS, Scored, ScoringConfig, rewards_of, score
from pipelines.grpo.reward.earnings import earnings, examples, first_of_each_kind
from pipelines.grpo.reward.policies import kind_of
from pipelines.ingestion import json_lines
from pipelines.schema import CHAT_TASKS
from samtok.errors import DataError
from samtok.rewards import Question, Response, Reward
from samtok.rewards.captions import COMPONENTS, is_caption
from samtok.words import parse_words


@config
class RewardCheckConfig(ScoringConfig):
    """Responses are scored and shown."""

    responses: str | None = None
    """JSONL file of responses, local or s3://; without one cheap ways to answer are scored."""
    chats: str | None = None
    """Corpus of chats (jobs/compose_dialogues.py) with the samples that lines name, or to take questions
    from."""
    thinking: bool = False
    """The prompts asked for a thought: answers stand between <answer> and </answer>."""
    num_codes: AtLeast1 = 256
    """Codes per level of the words; --chats knows its own."""
    num_levels: AtLeast1 = 2
    """Codes of a word; --chats knows its own."""


PRESETS = {
    "modern": RewardCheckConfig(),
    "captions": RewardCheckConfig(
        weights=CAPTION_WEIGHTS
    ),  # what jobs/grpo_gcg.py pays but in its preset paper
    "paper": RewardCheckConfig(true_positives="distinct", count_malformed=False),
}

PEEKED = 1000
"""Samples of ``--chats`` among which one of each kind is looked for."""


def reward_check(config: RewardCheckConfig) -> int:
    """Prints what cheap answers, or the responses of a file, are worth; returns the exit code.

    Raises:
        ConfigError: For a reward or weight that cannot be used.
        DataError: For a line that cannot, with its file and number.
    """
    rewards = rewards_of(config)
    if config.responses is None:
        tables = [policy_table(question, config, rewards) for question in _examples(config)]
        sys.stdout.write("\n\n".join("\n".join(table) for table in tables) + "\n")
        return 0
    lines = list(responses_of(config.responses))
    if not lines:
        raise DataError(f"{config.responses} has no responses.", reason="empty")
    questions = questions_of(lines, config)
    responses = [Response(text=body["response"]) for _, body in lines]
    scored = score(questions, responses, rewards=rewards, weights=config.weights)
    sys.stdout.write("\n".join(table_of([number for number, _ in lines], scored)) + "\n")
    return 0


def policy_table(question: Question, config: ScoringConfig, rewards: Mapping[str, Reward]) -> list[str]:
    """Returns the lines of the table of what policies earn on a question: ``mask``, components with a weight,
    those of captions for a caption, and the total; the truth comes first."""
    earned = earnings(question, rewards=rewards, weights=config.weights)
    shown = ["mask", *(COMPONENTS if is_caption(question) else ())]
    names = [*dict.fromkeys([*shown, *config.weights]), "total"]
    wide = max(len(one.policy.name) for one in earned)
    return [
        f"{kind_of(question)}: {question.text}",
        "  ".join([" " * wide, *(name.rjust(7) for name in names)]),
        *(
            _row(one.policy.name.ljust(wide), names, {**one.scored.components, "total": one.scored.total})
            + ("  a hole" if one.is_hole else "")
            for one in earned
        ),
    ]


def _examples(config: RewardCheckConfig) -> list[Question]:
    if config.chats is None:
        made = examples(config.num_codes, config.num_levels)
        return [dataclasses.replace(question, thinking=config.thinking) for question in made]
    corpus = load_chat_corpus(config.chats)
    sizes = {"num_codes": corpus.num_codes, "num_levels": corpus.num_levels}
    rows = itertools.islice(rows_of(corpus), PEEKED)
    asked = (row for row in rows if last_answer(row["messages"]) is not None)
    found = first_of_each_kind(prompt_of(row, thinking=config.thinking, **sizes).question for row in asked)
    if not found:
        raise DataError(
            f"none of the first {PEEKED} samples of {corpus.uri} asks for an answer.", reason="empty"
        )
    return found


def responses_of(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the lines of a file of responses, each with its number.

    Raises:
        ConfigError: For a file that is no JSON lines.
        DataError: For a line that is no object with the text ``response``.
    """
    for line in json_lines.read_lines(uri, flag="--responses"):
        yield line.number, _body(line.raw, f"{uri}, line {line.number}")


def questions_of(lines: Sequence[tuple[int, dict[str, Any]]], config: RewardCheckConfig) -> list[Question]:
    """Returns the question of each line, from its own truth or from the chat that it names.

    Raises:
        DataError: ``truth`` for a line that has neither, or whose words cannot be read; ``task`` for one that
            no chat has; ``sample`` for a sample that the corpus does not have; those of ``prompt_of``.
    """
    rows, corpus = {}, None
    if config.chats is not None:
        corpus = load_chat_corpus(config.chats)
        named = {body["sample_id"] for _, body in lines if _names_sample(body)}
        rows = {row["sample_id"]: row for row in rows_of(corpus) if row["sample_id"] in named}
    found = []
    for number, body in lines:
        where = f"{config.responses}, line {number}"
        if corpus is not None and _names_sample(body):
            found.append(_of_sample(body["sample_id"], rows, corpus, config.thinking, where))
        else:
            found.append(_of_truth(body, config, where))
    return found


def table_of(numbers: Sequence[int], scored: Sequence[Scored]) -> list[str]:
    """Returns the lines of the table, the means and the counts; a dash where a response lacks a component."""
    names = list(dict.fromkeys(name for one in scored for name in one.components))
    rows = [{**one.components, "total": one.total} for one in scored]
    names.append("total")
    means = {name: fmean(row[name] for row in rows if name in row) for name in names}
    totals = [one.total for one in scored]
    return [
        "  ".join(["line".ljust(6), *(name.rjust(7) for name in names)]),
        *(_row(str(number), names, row) for number, row in zip(numbers, rows, strict=True)),
        _row("mean", names, means),
        f"responses {len(totals)}, total between {min(totals):.4f} and {max(totals):.4f}, deviation "
        f"{pstdev(totals):.4f}; zero {totals.count(0.0)}, below zero {sum(total < 0 for total in totals)}, "
        f"different totals {len(set(totals))}",
    ]


def _row(first: str, names: Sequence[str], values: Mapping[str, float]) -> str:
    cells = ((f"{values[name]:.4f}" if name in values else "-").rjust(max(7, len(name))) for name in names)
    return "  ".join([first.ljust(6), *cells])


def _body(raw: bytes, where: str) -> dict[str, Any]:
    body = json_lines.parse_line(raw, where)
    if isinstance(body, dict) and "reply" in body:  # the key of earlier versions
        body = {"response": body["reply"], **body}
    if not isinstance(body, dict) or not isinstance(body.get("response"), str):
        raise DataError(f'{where}: expected an object with the text "response".', reason="response")
    return body


def _names_sample(body: Mapping[str, Any]) -> bool:
    return isinstance(body.get("sample_id"), str)


def _of_sample(
    sample_id: str, rows: Mapping[str, dict[str, Any]], corpus: ChatCorpus, thinking: bool, where: str
) -> Question:
    if sample_id not in rows:
        raise DataError(f"{where}: {corpus.uri} has no sample {sample_id!r}.", reason="sample")
    sizes = {"num_codes": corpus.num_codes, "num_levels": corpus.num_levels}
    try:
        return prompt_of(rows[sample_id], thinking=thinking, **sizes).question
    except DataError as error:
        raise DataError(f"{where}: {error}", reason=error.reason) from error


def _of_truth(body: Mapping[str, Any], config: RewardCheckConfig, where: str) -> Question:
    truth, task = body.get("truth"), body.get("task")
    if task is not None and task not in CHAT_TASKS:
        raise DataError(f"{where}: task must be one of {', '.join(CHAT_TASKS)}, got {task!r}.", reason="task")
    if not isinstance(truth, str):
        raise DataError(
            f'{where}: expected the text "truth" or, with --chats, the text "sample_id".', reason="truth"
        )
    sizes: dict[str, Any] = {"num_codes": config.num_codes, "num_levels": config.num_levels}
    try:
        codes = parse_words(truth, **sizes)
    except DataError as error:
        raise DataError(f"{where}: its truth cannot be read: {error}", reason="truth") from error
    record = {} if task is None else {"task": task}
    return Question(truth=tuple(codes), text=truth, thinking=config.thinking, record=record, **sizes)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    config = cli.parse(RewardCheckConfig, PRESETS, argv, doc=__doc__)
    return runs.guard(lambda: reward_check(config))


if __name__ == "__main__":
    raise SystemExit(main())
