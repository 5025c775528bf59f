"""An object store for transport faults: a tiny HTTP server that misbehaves exactly as told.

A real server (``s3_server.py``) cannot be told to lose one answer or to stop in the middle of one body. This
one can, over real sockets. It checks no signatures, and knows only PUT, GET, HEAD and DELETE of whole keys.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyStore(ThreadingHTTPServer):
    """Serves keys from memory, after the planned faults are used up.

    Attributes:
        faults: What happens to the next requests, first to last: ``503``, ``slow`` (SlowDown), ``403``,
            ``reset`` (the connection is reset before the request is done), ``lost`` (done, then reset without
            an answer), ``cut`` (half of the body of an answer), ``ok``.
        requests: Method and path of each request so far.
        refused: Paths that are answered with 403 AccessDenied, always.
        ignores_conditions: Overwrites although the writer said not to, as some stores do.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.refused: set[str] = set()
        self.objects: dict[str, tuple[bytes, str]] = {}  # path -> content, writer
        self.ignores_conditions = False
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyStore

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _begin(self) -> tuple[str, bytes]:
        """Reads the whole request; returns the fault planned for it and its body."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append(f"{self.command} {self.path}")
            fault = self.server.faults.pop(0) if self.server.faults else "ok"
            if self.path in self.server.refused:
                fault = "403"
        return fault, body

    def _reset(self) -> None:
        """Sends RST, as a killed process or a broken router does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, body: bytes = b"", *, send: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])
        if send is not None:
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>planned</Message></Error>".encode())

    def _faulty(self, fault: str) -> bool:
        """Plays a fault that comes instead of the request; returns whether it did."""
        if fault == "reset":
            self._reset()
        elif fault in ("503", "slow"):
            self._refuse(503, "ServiceUnavailable" if fault == "503" else "SlowDown")
        elif fault == "403":
            self._refuse(403, "AccessDenied")
        else:
            return False
        return True

    def do_PUT(self) -> None:
        fault, body = self._begin()
        if self._faulty(fault):
            return
        with self.server.lock:
            conditional = self.headers.get("If-None-Match") == "*" and not self.server.ignores_conditions
            refused = conditional and self.path in self.server.objects
            if not refused:
                self.server.objects[self.path] = (body, self.headers.get("x-amz-meta-samtok-writer", ""))
        if fault == "lost":
            self._reset()
        elif refused:
            self._refuse(412, "PreconditionFailed")
        else:
            self._answer(200, ETag='"e"')

    def do_GET(self) -> None:
        fault, _ = self._begin()
        if self._faulty(fault):
            return
        if self.path not in self.server.objects:
            self._refuse(404, "NoSuchKey")
            return
        body, writer = self.server.objects[self.path]
        status = 200
        if bounds := self.headers.get("Range"):
            start, _, last = bounds.removeprefix("bytes=").partition("-")
            body, status = body[int(start) : int(last) + 1 if last else None], 206
        send = len(body) // 2 if fault == "cut" else None
        self._answer(status, body, send=send, ETag='"e"', x_amz_meta_samtok_writer=writer)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        fault, _ = self._begin()
        if not self._faulty(fault):
            self.server.objects.pop(self.path, None)
            self._answer(204)

    def log_message(self, *_: object) -> None:
        """Says nothing on stderr."""


@contextlib.contextmanager
def faulty_store() -> Iterator[FaultyStore]:
    """Runs a store in a thread of this process."""
    with FaultyStore() as store:
        thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield store
        store.shutdown()
        thread.join()
