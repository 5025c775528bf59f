"""Tries rewards on responses in a file, before anything is trained with them.

    python -m pipelines.tools.reward_check --responses responses.jsonl --weights mask=1,format=0.1 --thinking
    python -m pipelines.tools.reward_check --responses r.jsonl --chats runs/chats --plug-ins my_rewards:short

Every line of the file is an object: ``{"truth": "the true answer", "response": "what a model wrote"}``, or
with ``--chats`` ``{"sample_id": "...", "response": "..."}``, a response in place of the sample's last answer.
A reward of one's own is a function in a file of the working directory:

    def short(question, response):
        return {"short": float(len(response.text) < 200)}

Prints a row per line with all components and the total, their means, and counts. Token ids are empty here.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import tyro

from pipelines import cli
from pipelines import job as runs
from pipelines.chats.corpus import ChatCorpus, load_chat_corpus, rows_of
from pipelines.chats.prompts import prompt_of
from pipelines.config import AtLeast1, config
from pipelines.grpo.reward.components import Scored, ScoringConfig, rewards_of, score
from pipelines.ingestion import json_lines
from samtok.errors import DataError
from samtok.rewards import Question, Response
from samtok.words import parse_words


@config
class RewardCheckConfig(ScoringConfig):
    """Responses are scored and shown."""

    responses: str
    """JSONL file of responses, local or s3://."""
    chats: str | None = None
    """Corpus of chats (jobs/compose_dialogues.py) with the samples that lines name."""
    thinking: bool = False
    """The prompts asked for a thought: answers stand between <answer> and </answer>."""
    num_codes: AtLeast1 = 256
    """Codes per level of the words; --chats knows its own."""
    num_levels: AtLeast1 = 2
    """Codes of a word; --chats knows its own."""


PRESETS = {
    "modern": RewardCheckConfig(responses=tyro.MISSING),
    "paper": RewardCheckConfig(responses=tyro.MISSING, true_positives="distinct", count_malformed=False),
}


def reward_check(config: RewardCheckConfig) -> int:
    """Prints what the responses of a file are worth; returns the exit code.

    Raises:
        ConfigError: For a reward or weight that cannot be used.
        DataError: For a line that cannot, with its file and number.
    """
    rewards = rewards_of(config)
    lines = list(responses_of(config.responses))
    if not lines:
        raise DataError(f"{config.responses} has no responses.", reason="empty")
    questions = questions_of(lines, config)
    responses = [Response(text=body["response"]) for _, body in lines]
    scored = score(questions, responses, rewards=rewards, weights=config.weights)
    sys.stdout.write("\n".join(table_of([number for number, _ in lines], scored)) + "\n")
    return 0


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
        DataError: ``truth`` for a line that has neither, or whose words cannot be read; ``sample`` for a
            sample that the corpus does not have; those of ``prompt_of``.
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
            found.append(_of_truth(body.get("truth"), config, where))
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


def _of_truth(truth: Any, config: RewardCheckConfig, where: str) -> Question:
    if not isinstance(truth, str):
        raise DataError(
            f'{where}: expected the text "truth" or, with --chats, the text "sample_id".', reason="truth"
        )
    sizes: dict[str, Any] = {"num_codes": config.num_codes, "num_levels": config.num_levels}
    try:
        codes = parse_words(truth, **sizes)
    except DataError as error:
        raise DataError(f"{where}: its truth cannot be read: {error}", reason="truth") from error
    return Question(truth=tuple(codes), text=truth, thinking=config.thinking, **sizes)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    config = cli.parse(RewardCheckConfig, PRESETS, argv, doc=__doc__)
    return runs.guard(lambda: reward_check(config))


if __name__ == "__main__":
    raise SystemExit(main())
