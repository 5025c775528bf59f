"""Judges behind servers: how they are asked, what becomes of faults, and runs that are killed."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import env
from pipelines.judging.config import JudgeConfig
from samtok.errors import ClusterError, ConfigError, DataError
from samtok.metrics.judged import Sampling
from tests.chat_servers import Said, chat_server, text
from tests.judgements import ask, asks, echo, lines_of, opened, scripted

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.STORAGE_RETRY_S, "5")
    monkeypatch.delenv(env.OPENAI_API_KEY, raising=False)


def test_a_server_is_asked_as_the_protocol_says_and_each_judgement_is_kept(tmp_path: Path):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    shown = ask(
        "seen",
        system="Be kind.",
        images=(image,),
        sampling=Sampling(temperature=0.7, top_p=0.9, max_tokens=9),
    )
    with chat_server(echo) as server, opened(server, tmp_path) as judge:
        assert judge.ask([ask("plain"), shown]) == {
            "plain": "reply to prompt of plain",
            "seen": "reply to prompt of seen",
        }
        summary = judge.summary()
    by_prompt = {json.dumps(body["messages"]): body for body in server.bodies}
    plain = by_prompt[json.dumps([{"role": "user", "content": "prompt of plain"}])]
    assert (plain["model"], plain["temperature"], plain["top_p"], plain["max_tokens"]) == ("judge", 0, 1, 16)
    (seen,) = [body for body in server.bodies if body is not plain]
    assert (seen["temperature"], seen["top_p"], seen["max_tokens"]) == (0.7, 0.9, 9)
    system, user = seen["messages"]
    assert system == {"role": "system", "content": "Be kind."}
    assert user["content"][0] == {"type": "text", "text": "prompt of seen"}
    kind, _, data = user["content"][1]["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == image).all()
    assert (summary["asked"], summary["answered"], summary["requests"]) == (2, 2, 3)  # one for the models
    assert (summary["prompt_tokens"], summary["completion_tokens"], summary["cut"]) == (20, 6, 0)
    kept = {line["name"]: line for line in lines_of(tmp_path)}
    assert kept["seen"]["options"] == {"temperature": 0.7, "top_p": 0.9, "max_tokens": 9}
    assert kept["seen"]["reply"] == "reply to prompt of seen" and len(kept["seen"]["images"][0]) == 64
    assert kept["plain"]["tokens"] == {"prompt": 10, "completion": 3} and kept["plain"]["judge"] == "judge"


def test_only_what_is_missing_is_asked_and_equal_asks_once(tmp_path: Path):
    with chat_server(echo) as server:
        with opened(server, tmp_path) as judge:
            judge.ask([*asks(3), ask("twin", prompt="prompt of s0")])
        with opened(server, tmp_path) as judge:
            found = judge.ask(asks(6))
            assert judge.ask(asks(6)) == found and len(found) == 6
            summary = judge.summary()
            with pytest.raises(ValueError, match="s0 is there twice"):
                judge.ask([ask("s0"), ask("s0")])
        assert set(server.asked.values()) == {1} and len(server.asked) == 6
    assert (summary["asked"], summary["replayed"], summary["answered"]) == (12, 9, 3)


def test_options_of_the_config_take_the_place_of_the_protocol(tmp_path: Path):
    with chat_server(echo) as server:
        with opened(server, tmp_path) as judge:
            judge.ask(asks(1))
        with opened(server, tmp_path, temperature=0.5, max_tokens=7) as judge:
            judge.ask(asks(1))
            summary = judge.summary()
    assert [(body["temperature"], body["max_tokens"]) for body in server.bodies] == [(0.0, 16), (0.5, 7)]
    assert (summary["temperature"], summary["max_tokens"], summary["replayed"]) == (0.5, 7, 0)


BUSY = {
    "busy": Said({"error": "slow down"}, 429, {"Retry-After": "0"}),
    "busy until a date": Said({"error": "slow down"}, 429, {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}),
    "broken": Said(b"Internal Server Error", 500),
    "a page in place of JSON": Said(b"<html>gateway</html>"),
    "cut off": Said({"x": 1}, 200, {"Content-Length": "900"}),
}


@pytest.mark.parametrize("fault", BUSY)
def test_a_fault_of_a_server_that_passes_costs_no_judgement(fault: str, tmp_path: Path):
    def script(prompt: str, before: int) -> Said:
        return BUSY[fault] if before == 0 else echo(prompt)

    with chat_server(script) as server, opened(server, tmp_path, answer_s=0.5) as judge:
        assert judge.ask(asks(2))["s1"] == "reply to prompt of s1"
        assert judge.summary()["requests"] == 5 and judge.summary()["failed"] == 0


def test_a_server_gets_the_pause_that_it_asks_for(tmp_path: Path):
    asked = list[float]()

    def script(prompt: str, before: int) -> Said:
        asked.append(time.monotonic())
        return Said(None, 429, {"Retry-After": "0.7"}) if before == 0 else echo(prompt)

    with chat_server(script) as server, opened(server, tmp_path) as judge:
        judge.ask(asks(1))
    assert asked[1] - asked[0] >= 0.7


def test_a_refusal_of_whoever_asks_ends_what_waits(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(env.STORAGE_RETRY_S, "60")
    waits = threading.Event()

    def script(prompt: str, _: int) -> Said:
        if prompt.endswith("s0"):
            waits.set()
            return Said(None, 503, {"Retry-After": "50"})
        waits.wait(10)
        return Said(None, 401)

    began = time.monotonic()
    with chat_server(script) as server, opened(server, tmp_path, concurrency=2) as judge:  # noqa: SIM117
        with pytest.raises(ConfigError, match="refuses /v1/chat/completions: 401"):
            judge.ask(asks(2))
    assert time.monotonic() - began < 30


FAILED = {
    "refused": Said({"error": "too long"}, 400),
    "malformed": Said({"choices": []}),
    "malformed ": Said([]),
    "malformed  ": Said({"choices": [{"message": {"content": [1]}}]}),
    "malformed   ": text(None),
    "filtered": text("I", finish="content_filter"),
}


@pytest.mark.parametrize("fault", FAILED)
def test_a_judgement_that_fails_is_none_and_told_and_asked_again_by_the_next_run(fault: str, tmp_path: Path):
    with chat_server(scripted(s1=FAILED[fault])) as server:
        with opened(server, tmp_path, max_failed=0.3) as judge:
            good = {name: f"reply to prompt of {name}" for name in ("s0", "s2")}
            assert judge.ask(asks(3)) == good | {"s1": None}
            assert judge.summary()["failures"] == {fault.strip(): 1}
            with pytest.raises(DataError, match=r"1 of 3 judgements failed \(33.3%: ") as caught:
                judge.check()
            assert "--judge.max-failed allows 30.0%" in str(caught.value) and caught.value.exit_code == 3
        server.script = echo
        with opened(server, tmp_path) as judge:
            assert judge.ask(asks(3))["s1"] == "reply to prompt of s1"
            judge.check()
        assert [server.asked[f"prompt of s{number}"] for number in range(3)] == [1, 2, 1]


def test_replies_that_were_cut_are_counted(tmp_path: Path):
    with chat_server(lambda *_: text("8 9", finish="length")) as server, opened(server, tmp_path) as judge:
        assert judge.ask(asks(1)) == {"s0": "8 9"}
        assert judge.summary()["cut"] == 1


def test_a_server_that_is_not_there_ends_the_run(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0")
    with chat_server(echo) as server:
        judge = opened(server, tmp_path, model="judge")
    with judge, pytest.raises(ClusterError, match=r"did not answer /v1/chat/.* for 0 s: ConnectionError"):
        judge.ask(asks(40))
    assert not lines_of(tmp_path)
    with pytest.raises(ClusterError, match="did not answer /v1/models"):
        opened(server, tmp_path)


def test_a_server_that_dies_ends_the_run_at_once_and_a_later_one_goes_on(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0.3")
    alive = {"s0", "s1", "s2"}
    with chat_server(lambda prompt, _: echo(prompt) if prompt[-2:] in alive else Said(b"", 503)) as server:
        began = time.monotonic()
        with opened(server, tmp_path, concurrency=1) as judge, pytest.raises(ClusterError, match="503"):
            judge.ask(asks(60))
        assert time.monotonic() - began < 10, "each of 57 would have been waited for"
        assert {line["name"] for line in lines_of(tmp_path)} == alive
        server.script = echo
        with opened(server, tmp_path) as judge:
            assert len(judge.ask(asks(60))) == 60
        assert all(server.answered[f"prompt of s{number}"] == 1 for number in range(60))


def test_an_answer_that_does_not_come_while_others_do_is_a_failure(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0")
    released = threading.Event()

    def script(prompt: str, _: int) -> Said:
        if prompt.endswith("s0"):
            released.wait(10)
        return echo(prompt)

    with chat_server(script) as server, opened(server, tmp_path, answer_s=0.5, concurrency=2) as judge:
        found = judge.ask(asks(4))
        released.set()
        assert found["s0"] is None and found["s3"] == "reply to prompt of s3"
        assert judge.summary()["failures"] == {"server": 1}
        with pytest.raises(ClusterError, match=r"1 of 4 judgements failed \(25.0%: server 1\).*ReadTimeout"):
            judge.check()


def test_the_key_is_sent_and_in_no_file_message_or_log(tmp_path: Path, monkeypatch, lines: list[str]):
    monkeypatch.setenv(env.OPENAI_API_KEY, "sk-not-for-files")
    said = {"error": "Incorrect API key provided: sk-not-for-files"}
    with chat_server(scripted(s1=Said(said, 400))) as server:
        with opened(server, tmp_path) as judge:
            judge.ask(asks(3))
            with pytest.raises(DataError, match=r"Incorrect API key provided: \*\*\*") as caught:
                judge.check()
            summary = json.dumps(judge.summary())
        server.script = lambda *_: Said(said, 401)
        with (
            opened(server, tmp_path) as judge,
            pytest.raises(ConfigError, match=r"refuses .*401.*\*\*\*") as other,
        ):
            judge.ask(asks(4))
        assert server.keys == {"Bearer sk-not-for-files"}
    kept = [(tmp_path / "judgements.jsonl").read_text(), *lines, summary, str(caught.value), str(other.value)]
    assert not [one for one in kept if "sk-not-for-files" in one]


def test_one_model_is_taken_and_several_are_named(tmp_path: Path):
    with chat_server(echo) as server:
        server.models = ["a", "b"]
        with pytest.raises(ConfigError, match=r"has a, b; name one with --model") as caught:
            opened(server, tmp_path)
        assert isinstance(caught.value.owner, JudgeConfig)
        with opened(server, tmp_path, model="b") as judge:
            judge.ask(asks(1))
        server.models = []
        with pytest.raises(ConfigError, match="serves no model"):
            opened(server, tmp_path)
    assert server.bodies[0]["model"] == "b"


CHILD = """
import sys
from pipelines.judging.config import JudgeConfig
from pipelines.judging.open_judge import open_judge
from samtok.metrics.judged import Ask, Sampling
url, record, count = sys.argv[1:]
sampling = Sampling(temperature=0.0, max_tokens=16)
asks = [Ask(name=f"s{n}", prompt=f"prompt of s{n}", sampling=sampling) for n in range(int(count))]
with open_judge(JudgeConfig(kind="http", url=url, concurrency=1), record=record) as judge:
    assert "torch" not in sys.modules, "judging by a server loads torch"
    judge.ask(asks)
"""


def test_a_run_that_is_killed_goes_on_and_has_each_judgement_made_once(tmp_path: Path):
    reached, released = threading.Event(), threading.Event()

    def script(prompt: str, before: int) -> Said:
        if prompt.endswith("s4") and before == 0:
            reached.set()
            released.wait(30)
            return Said(b"", 503)  # to nobody
        return echo(prompt)

    record = str(tmp_path / "judgements.jsonl")
    with chat_server(script) as server:
        command = [sys.executable, "-c", CHILD, server.url, record, "9"]
        child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            assert reached.wait(60), f"the child ended with {child.poll()}"
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            released.set()
        assert {line["name"] for line in lines_of(tmp_path)} == {"s0", "s1", "s2", "s3"}
        with opened(server, tmp_path) as judge:
            found = judge.ask(asks(9))
            assert (judge.summary()["replayed"], judge.summary()["answered"]) == (4, 5)
        assert found == {f"s{number}": f"reply to prompt of s{number}" for number in range(9)}
        assert {server.answered[f"prompt of s{number}"] for number in range(9)} == {1}
        assert [server.asked[f"prompt of s{number}"] for number in range(9)] == [1, 1, 1, 1, 2, 1, 1, 1, 1]
