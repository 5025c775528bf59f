"""Two drivers on one --out: real processes that run the frame of jobs, and holders on other machines.

Another machine is what its files say: its beats are written here as it would write them.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import env, storage
from pipelines.storage import lease
from samtok.errors import ConfigError, StorageError
from tests.faulty_store import FaultyStore
from tests.jobs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

DRIVER = """
import sys, time
from pathlib import Path
from pipelines import job, storage
from pipelines.config import RunConfig

class Waits(job.Job[RunConfig]):
    name = "waits"

    def prepare(self):
        pass

    def size(self):
        return "until it may end"

    def work(self, run):
        run.begin()
        out, lines = Path(self.config.out), 0
        while not (out / "may-end").exists():
            lines += 1
            storage.write_bytes(str(out / "rows"), str(lines).encode())
            time.sleep(0.01)
        return job.Closing()

sys.exit(job.run(Waits, RunConfig(out=sys.argv[1], tracking="off", dry_run="dry" in sys.argv)))
"""


@contextmanager
def driver(out: Path, *more: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", DRIVER, str(out), *more]
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background ignores
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_at_work(out: Path) -> bool:
    return (out / "rows").exists()


def holder(out: Path | str) -> dict:
    return storage.read_json(storage.join(str(out), lease.FILE))


def elsewhere(**more: object) -> dict:
    """Returns what a driver on another machine writes."""
    there = {"writer": "there", "host": "node-7", "pid": 1, "started": "5", "machine": "another boot"}
    return {**there, "since": "2026-01-01 00:00:00 UTC", "beats": 0, **more}


def write(out: Path | str, body: dict) -> None:
    storage.write_bytes(storage.join(str(out), lease.FILE), json.dumps(body).encode())


def test_a_second_driver_is_refused_and_the_first_ends_in_order(tmp_path: Path):
    out = tmp_path / "out"
    with driver(out) as first:
        until(lambda: is_at_work(out))
        with driver(out) as second, driver(out, "dry") as dry:
            _, said = second.communicate(timeout=60)
            assert second.returncode == 2
            host, since = holder(out)["host"], holder(out)["since"]
            assert f"process {first.pid} on {host} since {since}" in said and "--out" in said
            assert "Traceback" not in said and len(said.splitlines()) == 1
            dry.communicate(timeout=60)
            assert dry.returncode == 0
        (out / "may-end").touch()
        first.communicate(timeout=60)
        assert first.returncode == 0
    assert not list(out.glob("lease*"))


def test_a_killed_driver_on_the_same_machine_is_followed_at_once(tmp_path: Path):
    """Its parent has not waited for it, so that a zombie is left."""
    out = tmp_path / "out"
    with driver(out) as first:
        until(lambda: is_at_work(out))
        first.send_signal(signal.SIGKILL)
        until(lambda: "Z" in Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2])
        begun = time.monotonic()
        with lease.held(str(out)):
            assert holder(out)["pid"] == os.getpid()
        assert time.monotonic() - begun < lease.BEAT_S / 5


def test_the_folder_is_given_back_after_an_error_and_after_ctrl_c(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), lease.held(str(tmp_path)):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with driver(tmp_path) as running:
        until(lambda: is_at_work(tmp_path))
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
        assert running.returncode == 130
    assert not list(tmp_path.glob("lease*"))


def test_a_process_id_that_was_given_anew_is_another_process(tmp_path: Path):
    with lease.held(str(tmp_path)):
        mine = holder(tmp_path)
    write(tmp_path, mine)
    with pytest.raises(ConfigError, match=f"process {os.getpid()} "), lease.held(str(tmp_path)):
        pass
    write(tmp_path, {**mine, "started": "1"})
    with lease.held(str(tmp_path)):
        pass


def test_a_silent_holder_on_another_machine_is_followed_when_its_time_is_over(tmp_path: Path, lines):
    write(tmp_path, elsewhere())
    begun = time.monotonic()
    with lease.held(str(tmp_path), beat_s=0.05, stale_s=0.4):
        assert 0.4 <= time.monotonic() - begun < 5 and holder(tmp_path)["pid"] == os.getpid()
    assert re.search(r"held by process 1 on node-7 since 2026-01-01 .* waiting .* 0.4 s at most", lines[0])


def test_a_holder_on_another_machine_lives_while_its_beats_change(tmp_path: Path):
    """Whatever its clock says."""
    done = threading.Event()

    def beat() -> None:
        beats = 0
        while not done.wait(0.1):
            beats += 1
            write(tmp_path, elsewhere(beats=beats))

    write(tmp_path, elsewhere())
    with ThreadPoolExecutor(1) as threads:
        threads.submit(beat)
        try:
            with (
                pytest.raises(ConfigError, match="process 1 on node-7"),
                lease.held(str(tmp_path), beat_s=0.1, stale_s=2),
            ):
                pass
        finally:
            done.set()


TAKER = """
import os, sys, time
from pathlib import Path
from pipelines.storage import lease
from samtok.errors import ConfigError

out = Path(sys.argv[1])

def wait_for(name):
    while not (out / name).exists():
        time.sleep(0.005)

(out / f"ready-{os.getpid()}").touch()
wait_for("go")
try:
    with lease.held(str(out), beat_s=0.05, stale_s=0.3):
        wait_for("end")
        print("held")
except ConfigError:
    print("refused")
"""


def test_of_processes_that_take_a_folder_over_one_wins(tmp_path: Path):
    write(tmp_path, elsewhere())
    command = [sys.executable, "-c", TAKER, str(tmp_path)]
    takers = [subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) for _ in range(3)]
    until(lambda: len(list(tmp_path.glob("ready-*"))) == 3)
    (tmp_path / "go").touch()
    until(lambda: sum(taker.poll() is not None for taker in takers) == 2)
    (tmp_path / "end").touch()
    answers = sorted(taker.communicate(timeout=30)[0] for taker in takers)
    assert answers == ["held\n", "refused\n", "refused\n"]
    assert not list(tmp_path.glob("lease*"))


def test_a_driver_killed_while_it_took_over_is_followed_too(tmp_path: Path):
    gone = {**elsewhere(), "writer": "gone"}
    with lease.held(str(tmp_path)):
        gone |= {"machine": holder(tmp_path)["machine"], "pid": 2**22 + 1}  # more than Linux has
    write(tmp_path, elsewhere())
    storage.write_bytes(str(tmp_path / "lease-there.json"), json.dumps(gone).encode())
    with lease.held(str(tmp_path)):
        assert [path.name for path in tmp_path.glob("lease*")] == [lease.FILE]


def test_a_copy_of_a_folder_in_use_is_free_when_no_beats_are_seen_there(tmp_path: Path):
    with lease.held(str(tmp_path / "run")):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with lease.held(str(tmp_path / "copy"), beat_s=0.05, stale_s=0.2):
            pass


@pytest.mark.parametrize("found", [b'{"writer": "th', b"[1]", b"{}"])
def test_half_a_lease_is_waited_for_and_taken_over(tmp_path: Path, found: bytes):
    storage.write_bytes(str(tmp_path / lease.FILE), found)
    with lease.held(str(tmp_path), beat_s=0.05, stale_s=0.2):
        assert holder(tmp_path)["pid"] == os.getpid()


def test_who_is_patient_waits_for_a_holder_that_lives(tmp_path: Path):
    def wait_for_it() -> str:
        with lease.held(str(tmp_path), patient=True, beat_s=0.05):
            return holder(tmp_path)["writer"]

    with ThreadPoolExecutor(1) as threads:
        with lease.held(str(tmp_path)):
            other, first = threads.submit(wait_for_it), holder(tmp_path)["writer"]
            time.sleep(0.2)
            assert not other.done()
        assert other.result(30) != first


LOSER = """
import signal, sys, time
from pathlib import Path
from pipelines.storage import lease
from samtok.errors import StorageError
out = Path(sys.argv[1])
if sys.argv[2] == "nohup":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    with lease.held(str(out), beat_s=0.1):
        while True:
            (out / "rows").write_text(str(time.monotonic()))
            time.sleep(0.005)
except StorageError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("how", ["in a shell", "nohup"])
def test_a_driver_whose_folder_was_taken_over_ends_with_an_error(tmp_path: Path, how: str):
    command = [sys.executable, "-c", LOSER, str(tmp_path), how]
    loser = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until(lambda: is_at_work(tmp_path))
    write(tmp_path, elsewhere())
    _, said = loser.communicate(timeout=30)
    assert loser.returncode == StorageError.exit_code
    assert "taken over by process 1 on node-7" in said and "Traceback" not in said
    assert holder(tmp_path) == elsewhere()


# ---------------------------------------------------------------- on S3


OUT, PLACE = "s3://b/run", f"/b/run/{lease.FILE}"


def beats_on(store: FaultyStore) -> int:
    return json.loads(store.objects[PLACE][0])["beats"]


def test_an_outage_of_the_store_ends_no_run(store: FaultyStore, monkeypatch: pytest.MonkeyPatch):
    store.faults = ["ok", "lost"]  # the answer to who made the file
    with lease.held(OUT, beat_s=0.05):
        monkeypatch.setenv(env.STORAGE_RETRY_S, "0")
        until(lambda: beats_on(store) > 1)
        store.faults = ["503", "reset", "503", "reset"]
        before = beats_on(store)
        until(lambda: not store.faults and beats_on(store) > before + 1)
        with pytest.raises(ConfigError, match=f"process {os.getpid()} "), lease.held(OUT):
            pass
    assert PLACE not in store.objects


def test_an_outage_is_no_silence_of_the_holder(store: FaultyStore):
    def hold() -> None:
        with lease.held(OUT, beat_s=0.2, stale_s=0.6):
            pass

    store.objects[PLACE] = (json.dumps(elsewhere()).encode(), "")
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(hold)
        until(lambda: len(store.requests) > 4)
        store.faults = ["503"] * 4
        until(lambda: not store.faults)
        time.sleep(0.3)
        assert not other.done()
        store.objects[PLACE] = (json.dumps(elsewhere(beats=1)).encode(), "")
        with pytest.raises(ConfigError, match="process 1 on node-7"):
            other.result(30)
