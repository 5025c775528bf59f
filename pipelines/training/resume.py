"""Whether a folder holds this run, another one, or none yet."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines import provenance, storage
from pipelines.training import checkpoints
from samtok.errors import ConfigError

FINGERPRINT_FILE = "fingerprint.json"
"""What decides the result of a run; written when it begins."""

RECORD_FILE = "record.json"
"""Written last: the run is complete."""


def has_begun(out: str) -> bool:
    """Returns whether a folder holds a checkpoint or a finished run."""
    return bool(checkpoints.steps(out)) or storage.exists(storage.join(out, RECORD_FILE))


def claim(out: str, fingerprint: Mapping[str, Any], *, dry_run: bool) -> None:
    """Makes a folder this run's, unless another run has begun in it.

    Args:
        out: Folder of the run.
        fingerprint: All that decides what is learnt, as JSON values.
        dry_run: Only look.

    Raises:
        ConfigError: Names what differs from the run that is there.
    """
    where = storage.join(out, FINGERPRINT_FILE)
    if has_begun(out) and storage.exists(where):
        if changed := provenance.differences(storage.read_json(where), fingerprint):
            raise ConfigError(
                f"{out} holds a run with other settings. Different: {changed}. Repeat the first settings to "
                "go on with it, or choose another --out."
            )
    elif not dry_run:
        storage.write_bytes(where, json.dumps(fingerprint, indent=2, sort_keys=True).encode())
