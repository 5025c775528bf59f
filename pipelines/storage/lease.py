"""One driver at a time writes into a folder: it holds ``OUT/lease.json`` while it runs.

The file names the holder and counts its beats. Who finds that the holder does not live follows it: it makes
``lease-WRITER.json``, which a store lets only one do, looks again, and puts itself into ``lease.json``. A
holder that finds another's name there ends.

On the same machine a holder lives while its process does. On another one it lives while its beats are seen
to change: clocks of two machines are never compared.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.storage import NotFoundError
from samtok.errors import ConfigError, DataError, StorageError

log = logging.getLogger(__name__)

FILE = "lease.json"

BEAT_S = 10.0
STALE_S = 60.0
"""Seconds between beats, and without one until a holder counts as dead: enough for a machine that is short of
memory, or a store that restarts."""

_END_S = 30.0
"""Seconds that a job has to end in order once another driver has its folder, and to give it back."""

_Holder = Mapping[str, Any]


@contextlib.contextmanager
def held(
    out: str, *, patient: bool = False, beat_s: float = BEAT_S, stale_s: float = STALE_S
) -> Iterator[None]:
    """Holds a folder for the time of the block, which is interrupted if another driver takes the folder over.

    Args:
        patient: Waits until another holder has ended, in the place of an error.

    Raises:
        ConfigError: If another holder lives.
        StorageError: If another driver took the folder over.
    """
    beats = _Beats(out, _take(out, patient=patient, beat_s=beat_s, stale_s=stale_s), beat_s)
    beats.start()
    try:
        yield
    except BaseException as error:
        if beats.lost is None:
            raise
        raise StorageError(beats.lost) from error
    finally:
        beats.end()
    if beats.lost is not None:
        raise StorageError(beats.lost)


# ---------------------------------------------------------------- to take it


def _take(out: str, *, patient: bool, beat_s: float, stale_s: float) -> _Holder:
    mine = _this_process(out)
    seen: list[_Holder] | None = None
    since = looked = 0.0
    while True:
        chain, now = _chain(out), time.monotonic()
        lives = _lives(chain[-1], out) if chain else False
        if lives is None and seen is not None:
            lives = True if chain != seen else None if now - since < stale_s else False
        if lives is False:
            if _follow(out, chain, mine):
                return mine
            continue
        if lives and not patient:
            raise ConfigError(
                f"{out} is being written by {_name(chain[-1])}, which is at work. Wait until it has ended "
                f"({stale_s:g} s more if its machine is lost), or choose another --out."
            )
        if seen is None:
            until = "it ends" if lives else f"it shows that it is at work, {stale_s:g} s at most"
            log.warning("%s is held by %s; waiting until %s", out, _name(chain[-1]), until)
        if chain != seen or now - looked > beat_s:  # after an outage of the store, time counts anew
            since = now
        seen, looked = chain, now
        time.sleep(beat_s / 5)


def _chain(out: str) -> list[_Holder]:
    """Returns the holder, and who is about to follow whom."""
    found: list[_Holder] = []
    while (one := _read(_places(out, found)[-1])) is not None:
        found.append(one)
    return found


def _read(place: str) -> _Holder | None:
    try:
        found = storage.read_json(place)
    except NotFoundError:
        return None
    except DataError:  # a part, by a driver that was killed on a disk without links
        found = None
    known = isinstance(found, dict) and "writer" in found
    return found if known else {"writer": f"unknown-{place.rpartition('/')[2]}"}


def _places(out: str, chain: Sequence[_Holder]) -> list[str]:
    """Returns where each of a chain is, and who follows would be."""
    return [storage.join(out, name) for name in (FILE, *(f"lease-{one['writer']}.json" for one in chain))]


def _follow(out: str, chain: Sequence[_Holder], mine: _Holder) -> bool:
    """Takes the folder over from the last of a chain; returns whether this process was the one to do it."""
    first, *others = places = _places(out, chain)
    if not storage.put_if_absent(places[-1], _bytes(mine)):
        return False
    if _chain(out) != [*chain, mine]:  # another was faster and has cleared up, or the holder lives after all
        storage.delete(places[-1])
        return False
    if chain:
        log.info("%s is taken over from %s, which has ended", out, _name(chain[-1]))
        storage.write_bytes(first, _bytes(mine))
        for place in others:
            storage.delete(place)
    return True


# ---------------------------------------------------------------- to keep it


class _Beats(threading.Thread):
    """Shows that the holder lives, until the folder is given back or lost."""

    def __init__(self, out: str, mine: _Holder, every_s: float) -> None:
        super().__init__(name="lease", daemon=True)
        self.out, self.mine, self.every_s = out, mine, every_s
        self.lost: str | None = None
        self._done = threading.Event()
        in_main = threading.current_thread() is threading.main_thread()
        self._can_interrupt = in_main and callable(signal.getsignal(signal.SIGINT))  # not under nohup

    def run(self) -> None:
        told = False
        while not self._done.wait(self.every_s) and self.lost is None:
            try:
                self._beat()
            except StorageError as error:  # whoever waits for a beat cannot look either
                if not told:
                    log.warning("%s", error)
                told = True
        with contextlib.suppress(StorageError):
            if self._other() is None:
                storage.delete(storage.join(self.out, FILE))

    def _beat(self) -> None:
        other = self._other()
        if other is None:
            self.mine = {**self.mine, "beats": self.mine["beats"] + 1}
            storage.write_bytes(storage.join(self.out, FILE), _bytes(self.mine))
            return
        self.lost = (
            f"{self.out} was taken over by {other}, since this driver had given no sign of life. Was "
            "this machine paused, or the store out of reach? The run goes on there, and ends here."
        )
        self._interrupt()

    def _other(self) -> str | None:
        """Returns who holds the folder now; None if it is this process."""
        holder = _read(storage.join(self.out, FILE))
        if holder is None:
            return "nobody known, who deleted the lease"
        return None if holder["writer"] == self.mine["writer"] else _name(holder)

    def _interrupt(self) -> None:
        if self._done.is_set():
            return
        main = threading.main_thread().ident
        if self._can_interrupt and main is not None:
            signal.pthread_kill(main, signal.SIGINT)
        if not self._done.wait(_END_S if self._can_interrupt else 0):
            log.error("StorageError: %s", self.lost)
            os._exit(StorageError.exit_code)

    def end(self) -> None:
        """Gives the folder back; waits no longer for a store that is down."""
        self._done.set()
        self.join(timeout=_END_S)


# ---------------------------------------------------------------- who holds it


def _this_process(out: str) -> _Holder:
    return {
        "out": out,
        "writer": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "machine": _machine(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "beats": 0,
    }


def _machine() -> str | None:
    """Names what process ids are unique in: a boot of a machine, which copies of its disk share but not its
    name, and a container in it. None if the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Returns when a process began, in clock ticks since the machine did; None if there is no such process,
    or only what is left of it until its parent looks."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _lives(holder: _Holder, out: str) -> bool | None:
    """Returns whether a holder lives, by its process; None if that does not tell: it is another machine's, or
    holds a folder of which this one may be a copy."""
    if holder.get("machine") is None or holder["machine"] != _machine():
        return None
    if _started(holder["pid"]) != holder["started"] and not _is_hidden(holder["pid"]):
        return False
    return True if holder["out"] == out else None


def _is_hidden(pid: int) -> bool:
    """Returns whether there is a process of another user, of which some systems tell no more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    return False


def _name(holder: _Holder) -> str:
    if "pid" not in holder:
        return "a driver that did not get to say its name"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _bytes(holder: _Holder) -> bytes:
    return (json.dumps(holder, indent=1) + "\n").encode()
