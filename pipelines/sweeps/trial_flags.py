"""Errors of a trial name flags of a tokenizer training, which a sweep has under ``--train``."""

import contextlib
import re
from collections.abc import Iterator

from samtok.errors import ConfigError, SamtokError

_FLAG = re.compile(r"(?<![\w-])--(?=[a-z])")
_OWN = ("out", "tracking", "seed", "limit", "max-reject-rate", "train.", "scheduler.", "quantizers")
"""Flags that the sweep has itself, and sets in every trial."""


def of_trials(message: str) -> str:
    """Returns a message with the flags as the sweep has them; commands in it stay."""

    def prefixed(found: re.Match[str]) -> str:
        own = found.string[found.end() :].startswith(_OWN)
        return "--" if own else "--train."

    parts = message.split("`")  # every second one is a command
    return "`".join(part if i % 2 else _FLAG.sub(prefixed, part) for i, part in enumerate(parts))


@contextlib.contextmanager
def in_trials() -> Iterator[None]:
    """Within the block errors of our family come from a trial, or from the steps that trials share."""
    try:
        yield
    except ConfigError as error:  # its own flags get their place from its owner, such as --train.loss.
        error.message = of_trials(error.message)
        raise
    except SamtokError as error:
        error.args = (of_trials(str(error)), *error.args[1:])
        raise
