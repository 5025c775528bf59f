"""Rows of Parquet files that EasyR1 and verl train on.

    EasyR1   images: [{bytes, path}], problem: text or [text], answer: text; the authors' files add masks
             (RLEs in the order of the answer's words, none is "no target") and source
             (hiyouga/EasyR1, verl/utils/dataset.py)
    verl     data_source, prompt: [{role, content}], images: [{bytes, path}], ability,
             reward_model: {style, ground_truth}, extra_info
             (verl-project/verl, docs/preparation/prepare_data.rst); ours have masks in extra_info

``<image>`` in a text is where an image is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.ingestion import records
from samtok.errors import DataError

COLUMNS = {
    "easyr1": ("problem", "answer", "masks", "source"),
    "verl": ("prompt", "reward_model", "extra_info", "data_source"),
}
"""Columns of each layout besides ``images``."""

REQUIRED = {"easyr1": ("images", "problem"), "verl": ("images", "prompt", "reward_model")}
"""Columns that tell a layout."""


PLACEHOLDER = "<image>"
"""Where a text shows an image."""


@dataclass(frozen=True)
class EasyR1Row:
    """A row but for its images. ``problem`` may be anything where it should be a text."""

    problem: Any
    answer: str | None
    masks: list[Any]
    source: str | None


def layout_of(columns: Sequence[str]) -> str | None:
    """Returns ``easyr1`` or ``verl``, by the columns of a file; None for neither."""
    return next((name for name, needed in REQUIRED.items() if set(needed) <= set(columns)), None)


def of_easyr1(values: Mapping[str, Any]) -> EasyR1Row:
    """Reads a row of EasyR1; raises DataError ``parquet_value`` or ``json`` for masks that are none."""
    problem = values["problem"]
    text = problem[0] if isinstance(problem, list) and len(problem) == 1 else problem
    rles = [rle_of(one) for one in listed(values.get("masks"), "masks")]
    return EasyR1Row(text, _text(values.get("answer")), rles, _text(values.get("source")))


def record_of(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any] | None]:
    """Returns a row of either layout as ms-swift's ``messages``, without images, and its RLEs if it has a
    list of them; raises DataError ``parquet_value`` for what is no chat."""
    if "problem" in values:
        row = of_easyr1(values)
        if not isinstance(row.problem, str) or row.answer is None:
            raise _fault(f"problem {row.problem!r:.80} and answer {values.get('answer')!r:.80}, not texts")
        messages = [{"role": "user", "content": row.problem}, {"role": "assistant", "content": row.answer}]
        return {"messages": messages}, None if values.get("masks") is None else row.masks
    prompt, rewarded, more = (values.get(name) for name in ("prompt", "reward_model", "extra_info"))
    truth = rewarded.get("ground_truth") if isinstance(rewarded, Mapping) else None
    if not isinstance(prompt, list) or not all(isinstance(turn, Mapping) for turn in prompt):
        raise _fault(f"the prompt {prompt!r:.80}, not a list of messages")
    if not isinstance(truth, str):
        raise _fault(f"the ground truth {truth!r:.80}, not a text")
    messages = [{"role": turn.get("role"), "content": turn.get("content")} for turn in prompt]
    rles = more.get("masks") if isinstance(more, Mapping) else None
    found = None if rles is None else [rle_of(one) for one in listed(rles, "masks")]
    return {"messages": [*messages, {"role": "assistant", "content": truth}]}, found


def shown(record: Mapping[str, Any], num_images: int) -> dict[str, Any]:
    """Returns ``messages`` whose first question shows all images, if none of its texts shows one."""
    messages = [dict(message) for message in record["messages"]]
    texts = [message["content"] for message in messages if isinstance(message["content"], str)]
    if num_images and not any(PLACEHOLDER in text for text in texts):
        for message in messages:
            if message["role"] == "user" and isinstance(message["content"], str):
                message["content"] = PLACEHOLDER * num_images + message["content"]
                break
    return {"messages": messages}


def listed(value: Any, what: str) -> list[Any]:
    """Returns a list; nothing is an empty one. Raises DataError ``parquet_value`` for anything else."""
    if value is not None and not isinstance(value, list):
        raise DataError(f"{what} is a {type(value).__name__}, expected a list", reason="parquet_value")
    return value or []


def rle_of(value: Any) -> Any:
    """Returns a mask as JSON has it: RLEs may be JSON texts, and their counts bytes."""
    if isinstance(value, str):
        value = records.parse_json(value.encode(errors="replace"), "a mask")
    if isinstance(value, dict) and isinstance(value.get("counts"), bytes):
        value = {**value, "counts": value["counts"].decode("ascii", errors="replace")}
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _fault(got: str) -> DataError:
    return DataError(f"the row has {got}", reason="parquet_value")
