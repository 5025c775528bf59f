"""Whether a folder holds this run, another one, or none yet. Loads no torch."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines import provenance, storage
from samtok.errors import ConfigError

FINGERPRINT_FILE = "fingerprint.json"
"""What decides the result of a run; written when it begins."""

RECORD_FILE = "record.json"
"""Written last: the run is complete."""

STATE_FILE = "state.json"
"""Written last of a checkpoint."""


def steps(out: str) -> list[int]:
    """Returns the steps of the checkpoints that are there, oldest first."""
    found = storage.list_files(storage.join(out, "checkpoints"), suffix=f"/{STATE_FILE}")
    return sorted(int(file.uri.split("/")[-2].removeprefix("step-")) for file in found)


def is_complete(out: str) -> bool:
    """Returns whether a folder holds a finished run."""
    return storage.exists(storage.join(out, RECORD_FILE))


def has_begun(out: str) -> bool:
    """Returns whether a folder holds a checkpoint or a finished run."""
    return bool(steps(out)) or is_complete(out)


def check_same(out: str, fingerprint: Mapping[str, Any]) -> None:
    """Makes sure that no other run has begun in a folder; writes nothing. Raises ConfigError, which names
    what differs from the run that is there."""
    where = storage.join(out, FINGERPRINT_FILE)
    if not has_begun(out) or not storage.exists(where):
        return
    if changed := provenance.differences(storage.read_json(where), fingerprint):
        raise ConfigError(
            f"{out} holds a run with other settings. Different: {changed}. Repeat the first settings to "
            "go on with it, or choose another --out."
        )


def claim(out: str, fingerprint: Mapping[str, Any]) -> None:
    """Makes a folder this run's, unless another run has begun in it; raises as ``check_same``."""
    check_same(out, fingerprint)
    body = json.dumps(fingerprint, indent=2, sort_keys=True)
    storage.write_bytes(storage.join(out, FINGERPRINT_FILE), body.encode())


def write_record(out: str, record: Mapping[str, Any]) -> None:
    """Writes what became of a run; it is the last file that training writes."""
    storage.write_bytes(storage.join(out, RECORD_FILE), (json.dumps(record, indent=2) + "\n").encode())
