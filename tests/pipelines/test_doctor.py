"""The doctor: every state it can find, remedies, time limits, and that no secret is printed."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines import env
from pipelines.tools import doctor, health
from pipelines.tools.health import Check
from tests import corpora
from tests.ray_head import RayHead

RAY_NAMES = (env.RAY_ADDRESS, env.RAY_AUTH_MODE, env.RAY_AUTH_TOKEN, env.RAY_AUTH_TOKEN_PATH)


@contextmanager
def server(answers):
    """Serves texts by path on a free port; a number is an error status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path, 404)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            if isinstance(answer, str):
                self.wfile.write(answer.encode())

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def closed_port():
    with server({}) as uri:
        pass
    return uri


@pytest.fixture
def ray_settings(monkeypatch, tmp_path):
    """Sets Ray's variables and nothing but the given ones; the home folder is empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in RAY_NAMES:
        monkeypatch.delenv(name, raising=False)

    def look(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return list(health.check_ray_settings())

    return look


def only(checks):
    (check,) = checks
    return check


def test_a_healthy_machine_passes_and_prints_a_block_for_an_issue(tmp_path, capsys):
    code = doctor.main(["--storage", str(tmp_path / "new"), "--tracking", "off"])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert code == 0, out
    for name in (
        "versions",
        "machine",
        "disk, working folder",
        "Ray, here",
        "storage",
        "tracking",
        "tokenizer",
    ):
        assert any(line[6:].startswith(name) for line in lines), name
    assert lines[-1] == "```"
    assert "Paste from here into an issue:" in lines
    assert any(line.startswith("ok storage: ") for line in lines)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_failed_check_ends_with_one_and_a_remedy(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code = doctor.main(["--storage", str(tmp_path / "file" / "x"), "--tracking", "off"])
    lines = capsys.readouterr().out.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("FAIL  storage"))
    assert code == 1
    assert "-> Give --storage a folder that you can write to" in lines[place + 1]
    assert "1 failed" in "\n".join(lines)


def test_whatever_is_not_ok_has_a_remedy(tmp_path, closed_port):
    checks = [*doctor.examine("nothing://x", closed_port), *health.check_tracking(str(tmp_path))]
    assert {"FAIL", "WARN"} <= {check.state for check in checks}
    assert all(bool(check.remedy) == (check.state != "ok") for check in checks)


def test_no_secret_is_printed(monkeypatch, capsys, closed_port):
    secrets = {
        env.AWS_SECRET_ACCESS_KEY: "hunter2hunter2",
        env.AWS_ACCESS_KEY_ID: "AKIDEXAMPLE",
        env.AWS_ENDPOINT_URL: closed_port,
        env.AWS_REGION: "moon-west-7",
        env.AWS_SESSION_TOKEN: "session-token-x",
        env.RAY_AUTH_TOKEN: "ray-token-y",
        env.RAY_AUTH_MODE: "token",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0")
    code = doctor.main(["--storage", "s3://bucket/x", "--tracking", "http://me:hunter3@127.0.0.1:1/"])
    out = capsys.readouterr().out
    assert code == 1
    assert "FAIL  storage" in out
    shown = [value for name, value in secrets.items() if name != env.RAY_AUTH_MODE and value in out]
    assert not shown
    assert "hunter3" not in out
    assert "http://***@127.0.0.1:1" in out
    assert "AWS_SECRET_ACCESS_KEY=(set)" in out
    assert "AWS_REGION=(set)" in out
    assert "RAY_AUTH_MODE=token" in out


def test_the_block_names_what_is_set_and_not_what_doctor_sets_itself(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(env.STORAGE_RETRY_S, raising=False)
    monkeypatch.setenv(env.OMP_NUM_THREADS, "3")
    doctor.main(["--storage", str(tmp_path), "--tracking", "off"])
    out = capsys.readouterr().out
    assert "OMP_NUM_THREADS=3" in out
    assert env.STORAGE_RETRY_S not in out
    assert env.get(env.STORAGE_RETRY_S) is None


def test_a_check_that_breaks_is_a_failed_check():
    def broken():
        raise RuntimeError("boom")
        yield

    check = only(doctor.attempt("gears", broken))
    assert (check.state, check.text) == ("FAIL", "RuntimeError: boom")


def test_a_check_that_hangs_fails_after_its_time():
    release = threading.Event()

    def hanging():
        release.wait(60)
        yield Check("gears", "ok", "late")

    check = only(doctor.in_time("gears", hanging, 0.05))
    release.set()
    assert check.state == "FAIL"
    assert check.text.startswith("no answer in")


def test_a_missing_package_is_named():
    check = only(health.check_versions(["numpy", "no-such-package-xyz"]))
    assert check.state == "FAIL"
    assert "not installed: no-such-package-xyz" in check.text


@pytest.mark.parametrize(
    ("variables", "state", "text"),
    [
        ({}, "ok", "RAY_AUTH_MODE is unset, no token here"),
        ({env.RAY_AUTH_MODE: "disabled"}, "ok", "is disabled, no token"),
        ({env.RAY_AUTH_MODE: "token"}, "FAIL", "is token, no token"),
        ({env.RAY_AUTH_MODE: "token", env.RAY_AUTH_TOKEN: "abc"}, "ok", "is token, a token"),
        ({env.RAY_AUTH_TOKEN: "abc"}, "WARN", "is unset, a token"),
        ({env.RAY_AUTH_MODE: "on"}, "FAIL", "is on"),
        ({env.RAY_AUTH_MODE: "token", env.RAY_AUTH_TOKEN_PATH: "/no/such/file"}, "FAIL", "no token"),
    ],
)
def test_the_token_mode_here_is_judged(ray_settings, variables, state, text):
    here, address = ray_settings(**variables)
    assert here.state == state
    assert text in here.text
    assert "abc" not in here.text
    assert (address.state, address.name) == ("ok", "Ray, address")


def test_a_token_in_the_home_folder_counts(ray_settings, tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("abc")
    here, _ = ray_settings()
    assert here.state == "WARN"
    assert "export RAY_AUTH_MODE=token" in here.remedy


@pytest.mark.parametrize(
    ("there", "here", "state", "text"),
    [
        ("token", {}, "FAIL", "its token mode is token, here it is disabled"),
        ("token", {env.RAY_AUTH_TOKEN: "abc"}, "ok", "mode is token"),
        ("token", {env.RAY_AUTH_MODE: "disabled"}, "FAIL", "here it is disabled"),
        ("token", {env.RAY_AUTH_MODE: "token", env.RAY_AUTH_TOKEN: "abc"}, "ok", "mode is token"),
        ("disabled", {}, "ok", "mode is disabled"),
        ("disabled", {env.RAY_AUTH_MODE: "token", env.RAY_AUTH_TOKEN: "abc"}, "WARN", "here it is token"),
        (None, {}, "ok", "not told by"),
    ],
)
def test_the_token_mode_of_the_cluster_is_asked_and_compared(ray_settings, there, here, state, text):
    answers = (
        {} if there is None else {"/api/authentication_mode": json.dumps({"authentication_mode": there})}
    )
    with server(answers) as uri:
        _, address = ray_settings(**{env.RAY_ADDRESS: uri, **here})
    assert address.state == state
    assert text in address.text


@pytest.mark.parametrize("form", ["{uri}", "{host}", "ray://{host}"])
def test_a_cluster_that_does_not_answer_fails(ray_settings, closed_port, form):
    host = closed_port.removeprefix("http://")
    _, address = ray_settings(**{env.RAY_ADDRESS: form.format(uri=closed_port, host=host)})
    assert address.state == "FAIL"
    assert "does not answer" in address.text
    assert "ray start --head" in address.remedy


def test_an_address_that_is_none_fails(ray_settings):
    _, address = ray_settings(**{env.RAY_ADDRESS: "127.0.0.1:port"})
    assert address.state == "FAIL"


def test_tracking_that_is_off_or_not_made_yet_is_fine(tmp_path):
    assert only(health.check_tracking("off")).state == "ok"
    check = only(health.check_tracking(f"sqlite:///{tmp_path}/mlflow.db"))
    assert check.state == "ok"
    assert "the first run makes it" in check.text
    assert list(tmp_path.iterdir()) == []


def test_a_tracking_file_in_no_folder_fails(tmp_path):
    check = only(health.check_tracking(f"sqlite:///{tmp_path}/nowhere/mlflow.db"))
    assert (check.state, "cannot be made" in check.text) == ("FAIL", True)


def test_a_tracking_file_is_read_and_left_as_it_is(tmp_path):
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table runs (id text)")
        connection.execute("insert into runs values ('a')")
    connection.close()
    before = path.read_bytes()
    check = only(health.check_tracking(f"sqlite:///{path}"))
    assert check.state == "ok"
    assert "has 1 runs" in check.text
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"no database at all", b""])
def test_a_tracking_file_that_is_no_mlflow_database_fails(tmp_path, content):
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    check = only(health.check_tracking(f"sqlite:///{path}"))
    assert check.state == "FAIL"
    assert "no MLflow database" in check.text


@pytest.mark.parametrize(
    ("answers", "state", "text"),
    [
        ({"/version": health.version("mlflow")}, "ok", "answers, MLflow"),
        ({"/version": "1.30.0"}, "WARN", "MLflow 1.30.0; here"),
        ({"/version": 403}, "FAIL", "answers with 403"),
    ],
)
def test_a_tracking_server_is_asked_for_its_version(answers, state, text):
    with server(answers) as uri:
        check = only(health.check_tracking(uri + "/"))
    assert check.state == state
    assert text in check.text


def test_a_tracking_server_that_is_down_fails(closed_port):
    check = only(health.check_tracking(closed_port))
    assert check.state == "FAIL"
    assert "mlflow server" in check.remedy


def test_a_tokenizer_is_tried(tmp_path):
    good = only(health.check_tokenizer(corpora.save_micro_tokenizer(tmp_path / "micro")))
    assert good.state == "ok"
    assert "equal codes twice" in good.text
    (tmp_path / "micro" / "model.safetensors").write_bytes(b"cut")
    assert only(health.check_tokenizer(str(tmp_path / "micro"))).state == "FAIL"
    assert only(health.check_tokenizer(str(tmp_path / "nowhere"))).state == "FAIL"


@pytest.mark.slow
def test_the_storage_check_works_in_s3(bucket):
    check = only(health.check_storage(f"{bucket}/prefix"))
    assert check.state == "ok", check.text


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_every_node_of_ray_writes_to_the_storage_with_its_own_credentials(bucket, s3, tmp_path):
    """One node has credentials of its own that are wrong; the driver's are right."""
    command = [sys.executable, "-m", "pipelines.tools.doctor"]
    command += ["--ray", "--storage", f"{bucket}/prefix", "--tracking", "off"]
    with RayHead(tmp_path, env={**s3.env, "AWS_SECRET_ACCESS_KEY": "wrong"}) as head:
        head.env |= s3.env
        head.add_node()
        address = {"RAY_ADDRESS": f"127.0.0.1:{head.ports[0]}", "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(
            command, env={**os.environ, **address}, capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    states = re.findall(r"^(ok|FAIL) {2,}storage, ", done.stdout, re.M)
    assert sorted(states) == ["FAIL", "ok"], done.stdout
    assert "ok    storage  " in done.stdout
