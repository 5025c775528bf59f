"""A server of OpenAI's chat interface: requests with a key, retries, images as data URIs. Loads no torch."""

import base64
import io
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import requests
from PIL import Image

from pipelines import env
from samtok.errors import ClusterError, ConfigError, DataError

log = logging.getLogger(__name__)

ANSWER_S = 600.0
"""Longest wait for one answer."""

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_OF_PROMPT = {400, 413, 422}
"""What a server says to a prompt that it cannot take."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_LONGEST_ASKED_FOR_S = 60.0
"""Most of the pause that a server asks for which it gets."""


class ChatServer:
    """One server; may be asked from several threads. Its key is from ``OPENAI_API_KEY``, and in no message.

    Args:
        url: With or without ``/v1`` at its end.
        answer_s: Longest wait for one answer.

    Attributes:
        requests: How many were sent.
        answered_at: When it answered last, as ``time.monotonic`` has it; None before that.
    """

    def __init__(self, url: str, *, answer_s: float = ANSWER_S) -> None:
        self.url, self.answer_s = url.rstrip("/").removesuffix("/v1"), answer_s
        self.requests = 0
        self.answered_at: float | None = None
        self._session = requests.Session()
        self._stopped = threading.Event()
        self._counting = threading.Lock()
        self._key = env.get(env.OPENAI_API_KEY)
        if self._key:
            self._session.headers["Authorization"] = f"Bearer {self._key}"

    def models(self) -> list[dict[str, Any]]:
        """Returns what it serves, each with an ``id``.

        Raises:
            ConfigError: It serves no model, or refuses to say.
            ClusterError: It does not answer.
        """
        served = self.call("GET", "/v1/models", None)
        listed = served.get("data") if isinstance(served, dict) else None
        if not listed:
            raise ConfigError(f"the server at {self.url} serves no model.")
        return listed

    def call(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        """Asks once, and again while the server is away or busy; returns what its JSON says.

        Raises:
            DataError: ``refused`` for a body that it cannot take.
            ConfigError: It refuses for another reason, such as the key.
            ClusterError: It does not answer.
        """
        began, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            asked_for_s = 0.0
            try:
                with self._counting:
                    self.requests += 1
                said = self._session.request(method, self.url + path, json=body, timeout=self.answer_s)
                if said.ok:
                    found = said.json()
                    self.answered_at = time.monotonic()
                    return found
                why = f"{said.status_code} {self._shown(said.text)}"
                if body is not None and said.status_code in _OF_PROMPT:
                    self.answered_at = time.monotonic()
                    raise DataError(f"the server at {self.url} refuses the prompt: {why}", reason="refused")
                if said.status_code not in _AGAIN:
                    raise ConfigError(f"the server at {self.url} refuses {path}: {why}")
                asked_for_s = _seconds(said.headers.get("Retry-After"))
            except requests.RequestException as error:  # no JSON is one too
                why = f"{type(error).__name__}: {self._shown(str(error))}"
            left_s = began + env.storage_retry_s() - time.monotonic()
            if left_s <= 0 or self._stopped.wait(min(max(pause_s, asked_for_s), left_s)):
                raise ClusterError(
                    f"the server at {self.url} did not answer {path} for {env.storage_retry_s():g} s: "
                    f"{why}. Start it; the same command goes on. {env.STORAGE_RETRY_S} is how long it is "
                    "waited for."
                )
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def stop(self) -> None:
        """Ends all waiting: whoever would ask again gets the ClusterError now."""
        self._stopped.set()

    def _shown(self, text: str) -> str:
        """Returns the beginning of what a server or library says, without the key, which some repeat."""
        return (text.replace(self._key, "***") if self._key else text)[:300]


def image_part(image: np.ndarray, **own: Any) -> dict[str, Any]:
    """Returns an image, H x W x 3 uint8 RGB, as a part of a message, as a PNG in a data URI; ``own`` goes
    beside the URI."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    uri = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": uri, **own}}


def _seconds(text: str | None) -> float:
    """Returns the pause that a server asks for, 0 for none, or for a date."""
    try:
        return min(max(0.0, float(text or 0)), _LONGEST_ASKED_FOR_S)
    except ValueError:
        return 0.0
