"""A judge behind a server of OpenAI's chat interface. Loads no torch."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from pipelines.generation.chat_server import ChatServer, image_part
from pipelines.judging.judge import SERVER, Keep
from pipelines.judging.record import Judgement
from samtok.errors import ClusterError, ConfigError, DataError
from samtok.metrics.judged import Ask

_FILTERED = "content_filter"


class ServedJudge:
    """Asks a server, with several requests at once.

    Args:
        model: Its name there; None takes the only one.

    Raises:
        ConfigError: There is no model, or several and none is named.
        ClusterError: The server does not answer.
    """

    sees_images = True  # the model may not; the server refuses them then

    def __init__(self, url: str, model: str | None, *, concurrency: int, answer_s: float) -> None:
        self.server, self.concurrency = ChatServer(url, answer_s=answer_s), concurrency
        self.name = model if model is not None else self._only_model()

    @property
    def requests(self) -> int:
        """How many were sent, repeated ones too."""
        return self.server.requests

    def answer(self, asks: Sequence[Ask], keep: Keep) -> None:
        """As ``Backend.answer``. A judgement fails if the server refuses its prompt, answers without a text,
        or does not answer while it answers others."""

        def judge(place: int) -> None:
            keep(place, self._judged(asks[place]))

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            for done in as_completed([pool.submit(judge, place) for place in range(len(asks))]):
                done.result()
        except BaseException:
            self.server.stop()  # else threads that wait for it would hold this process
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _only_model(self) -> str:
        served = [str(one.get("id")) for one in self.server.models()]
        if len(served) > 1:
            names = ", ".join(served[:8])
            raise ConfigError(f"the server at {self.server.url} has {names}; name one with --.model.")
        return served[0]

    def _judged(self, ask: Ask) -> Judgement:
        began = time.monotonic()
        try:
            said = self.server.call("POST", "/v1/chat/completions", self._body(ask))
            return _read(said, time.monotonic() - began)
        except ClusterError as error:
            answered = self.server.answered_at
            if answered is None or answered < began:
                raise
            reason, message = SERVER, str(error)
        except DataError as error:
            reason, message = error.reason, str(error)
        return Judgement(failed=reason, message=message, seconds=time.monotonic() - began)

    def _body(self, ask: Ask) -> dict[str, Any]:
        content: Any = ask.prompt
        if ask.images:
            images = [image_part(image, detail="high") for image in ask.images]
            content = [{"type": "text", "text": ask.prompt}, *images]
        system = [] if ask.system is None else [{"role": "system", "content": ask.system}]
        return {
            "model": self.name,
            "messages": [*system, {"role": "user", "content": content}],
            "temperature": ask.sampling.temperature,
            "top_p": ask.sampling.top_p,
            "max_tokens": ask.sampling.max_tokens,
        }


def _read(said: Any, seconds: float) -> Judgement:
    """Reads an answer; raises DataError ``malformed`` if it has no text, ``filtered`` if it was withheld."""
    try:
        choice = said["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise DataError(f"the judge's answer has no choice: {said!r:.200}.", reason="malformed") from None
    if finish == _FILTERED:
        raise DataError("the server's filter withheld the judge's answer.", reason="filtered")
    if not isinstance(text, str):
        raise DataError(f"the judge's answer has no text: {said!r:.200}.", reason="malformed")
    usage = said.get("usage")
    told = {name: usage.get(f"{name}_tokens") for name in ("prompt", "completion")} if usage else {}
    tokens = {name: count for name, count in told.items() if type(count) is int}
    finish = finish if isinstance(finish, str) else None
    return Judgement(reply=text, finish=finish, seconds=seconds, tokens=tokens or None)
