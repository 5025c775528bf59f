"""Logging, set up in one place: readable lines on stderr, JSON lines in a file if one is given."""

import json
import logging
import sys
from pathlib import Path


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        body = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            body["error"] = self.formatException(record.exc_info)
        return json.dumps(body)


def setup(*, level: int = logging.INFO, jsonl: Path | None = None) -> None:
    """Sends our own log lines to stderr, and to ``jsonl`` as one JSON object a line."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    if jsonl is not None:
        jsonl.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(jsonl, encoding="utf-8"))
        handlers[1].setFormatter(_JsonLines())
    for name in ("pipelines", "samtok"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers[:] = handlers
