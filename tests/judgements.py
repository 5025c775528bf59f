"""Judges of a server that a test scripts, what they are asked, and published judgements of DLC-Bench."""

import gzip
import json
from pathlib import Path
from typing import Any

from pipelines.judging.config import JudgeConfig
from pipelines.judging.judge import Judge
from pipelines.judging.open_judge import open_judge
from samtok.metrics.judged import Ask, Sampling
from samtok.metrics.judged_dlc import DlcMask, Question
from tests.chat_servers import ChatStub, Said, Script, text

FIXTURE = Path(__file__).parent / "fixtures/dlc_dam3b_judgements.json.gz"
"""What it is and where it is from is said beside it."""


SAMPLING = Sampling(temperature=0.0, max_tokens=16)


def ask(name: str, **own: Any) -> Ask:
    return Ask(**({"name": name, "prompt": f"prompt of {name}", "sampling": SAMPLING} | own))


def asks(count: int, start: int = 0) -> list[Ask]:
    return [ask(f"s{number}") for number in range(start, start + count)]


def echo(prompt: str, _before: int = 0) -> Said:
    return text(f"reply to {prompt}")


def scripted(**by_name: Said) -> Script:
    """Says something else to some."""
    return lambda prompt, _: by_name.get(prompt.split()[-1], echo(prompt))


def opened(server: ChatStub, folder: Path, **own: Any) -> Judge:
    settings: dict[str, Any] = {"kind": "http", "url": server.url, "concurrency": 4} | own
    judge = open_judge(JudgeConfig(**settings), record=str(folder / "judgements.jsonl"))
    assert judge is not None
    return judge


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "judgements.jsonl").read_text().splitlines()]


def published() -> tuple[dict[str, float], list[DlcMask], dict[str, str | None], dict[str, int]]:
    """What was printed; masks, replies, and which choices were read."""
    body = json.loads(gzip.decompress(FIXTURE.read_bytes()))
    masks, replies, chosen = list[DlcMask](), dict[str, str | None](), dict[str, int]()
    for mask_id, rows in body["masks"].items():
        questions = tuple(
            Question(
                text=f"Question {number} of {mask_id}?",
                choices=tuple((text, float(score)) for text, score in row["choices"]),
                kind=row["kind"],
            )
            for number, row in enumerate(rows)
        )
        masks.append(DlcMask(mask_id=mask_id, questions=questions, caption=f"Description of {mask_id}."))
        for name, row in zip(masks[-1].names, rows, strict=True):
            replies[name], chosen[name] = row["reply"], row["chosen"]
    return body["expected"], masks, replies, chosen
