"""A real server of OpenAI's chat interface, which says what a test scripts."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """What a server answers: any JSON, or bytes as they are."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def text(words: str | None, finish: str = "stop", tokens: int = 3) -> Said:
    """A well-formed answer."""
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    choice = {"index": 0, "message": {"role": "assistant", "content": words}, "finish_reason": finish}
    return Said({"choices": [choice], "usage": usage})


Script = Callable[[str, int], Said]
"""From the prompt, and how often it was asked before, to the answer."""


class ChatStub(ThreadingHTTPServer):
    """Answers by a script."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.models = script, ["judge"]
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatStub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._say(Said({"data": [{"id": name} for name in self.server.models]}))

    def do_POST(self) -> None:
        stub, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else content[0]["text"]
        with stub.lock:
            before = stub.asked[prompt]
            stub.asked[prompt] += 1
            stub.bodies.append(body)
            stub.keys.add(self.headers["Authorization"])
        said = stub.script(prompt, before)
        with stub.lock:  # before the client goes on
            stub.answered[prompt] += said.status == 200
        self._say(said)

    def _say(self, said: Said) -> None:
        data = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
        self.send_response(said.status)
        for name, value in {"Content-Length": str(len(data)), **said.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


@contextmanager
def chat_server(script: Script) -> Iterator[ChatStub]:
    """Runs one."""
    stub = ChatStub(script)
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join()
