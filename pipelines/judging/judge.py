"""A judge with a record: what is on record is replayed, the rest is asked, every reply is kept as it comes.

Replies go by the names of the asks; None is a judgement that failed, which no benchmark scores. How many did
is in ``Judge.summary``, and ``Judge.check`` ends a run in which they are too many.
``pipelines.judging.open_judge`` makes a judge of a config.
"""

import dataclasses
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipelines.judging.config import JudgeConfig
from pipelines.judging.record import Judgement, Record
from pipelines.shards import digest
from samtok.errors import ClusterError, ConfigError, DataError
from samtok.metrics.judged import Ask, require_unique

log = logging.getLogger(__name__)

SERVER = "server"
"""Reason of a judgement that failed because the server did not answer; all others are of what was asked."""

_SHOW_EVERY = 100

Keep = Callable[[int, Judgement], None]
"""Takes what became of the ask at a place; may be called from several threads."""


class Backend(Protocol):
    """Who answers.

    Attributes:
        name: Of the judge; by another one no judgement is the same.
        sees_images: Whether asks may have any.
    """

    name: str
    sees_images: bool

    @property
    def requests(self) -> int:
        """How many were made, repeated ones too."""
        ...

    def answer(self, asks: Sequence[Ask], keep: Keep) -> None:
        """Keeps what becomes of each ask as soon as it is known, before it goes on to the next.

        Raises:
            ClusterError: No more would be answered.
            ConfigError: The server refuses whoever asks.
        """
        ...


class Judge:
    """Judges, and keeps what it judged. Close it, or use it as a context.

    Args:
        backend: Who is asked; None replays only.
        record: Where judgements are; the judge closes it.
        name: Of the judge.
    """

    def __init__(self, config: JudgeConfig, backend: Backend | None, record: Record, *, name: str) -> None:
        self.config, self.backend, self.record, self.name = config, backend, record, name
        self._used: list[tuple[Judgement, bool]] = []  # by each ask, and whether it was on record

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the record."""
        self.record.close()

    def ask(self, asks: Sequence[Ask]) -> dict[str, str | None]:
        """Returns the replies by the names of the asks, None for those that failed. Equal asks are one.

        Raises:
            DataError: ``judgement_missing``, in a replay, for an ask that is not on record.
            ClusterError: The server is gone; what it answered before is on record.
            ConfigError: Images for a judge that sees none; or as ``Backend.answer``.
            ValueError: A name is there twice.
        """
        require_unique(ask.name for ask in asks)
        keyed = [(self.key(ask), ask) for ask in map(self._effective, asks)]
        wanted = {key: ask for key, ask in keyed if not self._is_known(key)}
        if wanted:
            self._fetch(wanted, len(asks))
        found = [(self.record.known[key], key not in wanted) for key, _ in keyed]
        self._used += found
        return {ask.name: judgement.reply for ask, (judgement, _) in zip(asks, found, strict=True)}

    def key(self, ask: Ask) -> str:
        """Returns the name under which a judgement is kept: a hash of the judge's name, the options, the
        texts and the images."""
        return digest([self.name, _told(ask)])

    def check(self) -> None:
        """Makes sure that few judgements failed; to be called when the results are written.

        Raises:
            ClusterError: More failed than ``--.max-failed``, most of them because of the server.
            DataError: ``judgements_failed``: so they did because of what was asked.
        """
        failed, asked = self._failures(), len(self._used)
        lost = failed.total()
        if lost <= self.config.max_failed * asked:
            return
        reasons = ", ".join(f"{reason} {count}" for reason, count in failed.most_common())
        message = next(one.message for one, _ in self._used if one.failed is not None)
        text = (
            f"{lost} of {asked} judgements failed ({lost / asked:.1%}: {reasons}); --judge.max-failed allows "
            f"{self.config.max_failed:.1%}. One of them: {message} The same command asks for those again."
        )
        raise ClusterError(text) if 2 * failed[SERVER] > lost else DataError(text, reason="judgements_failed")

    def summary(self) -> dict[str, Any]:
        """Returns who judged, and what it took.

        Returns:
            ``asked = replayed + answered + failed``, and ``failures`` by their reasons; ``cut`` replies that
            ended at the limit of tokens; ``requests`` of this run, repeated ones too; tokens and seconds of
            all that was asked, in earlier runs too, as far as the judge told them.
        """
        failed, told = self._failures(), [one for one, _ in self._used]
        replayed = sum(known and one.failed is None for one, known in self._used)
        tokens = Counter[str]()
        for one in told:
            tokens.update(one.tokens or {})
        return {
            "judge": self.name,
            "kind": self.config.kind,
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
            "asked": len(told),
            "replayed": replayed,
            "answered": len(told) - replayed - failed.total(),
            "failed": failed.total(),
            "failures": dict(failed),
            "cut": sum(one.finish == "length" for one in told),
            "requests": self.backend.requests if self.backend else 0,
            "prompt_tokens": tokens["prompt"],
            "completion_tokens": tokens["completion"],
            "seconds": round(sum(one.seconds for one in told), 3),
        }

    def _effective(self, ask: Ask) -> Ask:
        """Returns an ask with the options of the config in place of the protocol's."""
        given = {"temperature": self.config.temperature, "max_tokens": self.config.max_tokens}
        changed = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(ask, sampling=dataclasses.replace(ask.sampling, **changed))

    def _is_known(self, key: str) -> bool:
        """Whether a judgement is not asked for: failed ones are, where there is someone to ask."""
        found = self.record.known.get(key)
        return found is not None and (found.reply is not None or self.backend is None)

    def _fetch(self, wanted: Mapping[str, Ask], total: int) -> None:
        keys, asks = list(wanted), list(wanted.values())
        if self.backend is None:
            raise self._missing(asks, total)
        if not self.backend.sees_images and any(ask.images for ask in asks):
            fault = f"--.kind {self.config.kind} judges texts alone, and this benchmark shows images."
            raise ConfigError(f"{fault} Use --.kind http with a model that sees.", owner=self.config)
        log.info("asking %s for %d judgements, the others are in %s", self.name, len(asks), self.record.uri)
        one_at_a_time, done = threading.Lock(), 0

        def keep(place: int, judgement: Judgement) -> None:
            nonlocal done
            asked = {"name": asks[place].name, "judge": self.name, **_told(asks[place])}
            with one_at_a_time:
                self.record.add(keys[place], asked, judgement)
                done += 1
                if done % _SHOW_EVERY == 0:
                    log.info("%d of %d judgements", done, len(asks))

        try:
            self.backend.answer(asks, keep)
        finally:
            self.record.flush()

    def _missing(self, asks: Sequence[Ask], total: int) -> DataError:
        others = f" and of {len(asks) - 1} more of {total}" if len(asks) > 1 else ""
        return DataError(
            f"{self.record.uri} has no judgement of {asks[0].name}{others} by {self.name}: texts, wording, "
            "options or judge are not those that were recorded. Let a judge add them: --judge.kind http or "
            "hf with the same --judge.record.",
            reason="judgement_missing",
        )

    def _failures(self) -> Counter[str]:
        return Counter(one.failed for one, _ in self._used if one.failed is not None)


def _told(ask: Ask) -> dict[str, Any]:
    """Returns all that a judge is told, with a hash in place of the pixels of each image."""
    images = [hashlib.sha256(repr(one.shape).encode() + one.tobytes()).hexdigest() for one in ask.images]
    options = dataclasses.asdict(ask.sampling)
    return {"options": options, "system": ask.system, "prompt": ask.prompt, "images": images}
