"""Checkpoints of a run: complete, committed last, and free of how many workers made them.

A checkpoint is a folder of safetensors files and a ``state.json`` that names their SHA-256; it exists once
that last file does. Model and optimizer state are whole and by parameter name, so any engine and any number
of workers can go on from it. There is no state of a random generator: all draws follow from seed and step.

The loss curve is kept in segments beside the checkpoints. A segment is written before the checkpoint that
ends it, and counts only if a checkpoint names it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pipelines import storage
from pipelines.storage import NotFoundError
from pipelines.training.engine import OptimizerState
from pipelines.training.resume import STATE_FILE, steps
from samtok.errors import CheckpointError

FORMAT_VERSION = 2


@dataclass
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        extra: Other tensors that the kind of training needs; lists are keyed ``00000000`` and up.
        body: The rest, as JSON: ``step`` (steps done), ``draws`` (the sampler's cursor), ``seed``,
            ``bad_in_a_row``, ``skipped``, ``workers``, ``fingerprint``, ``lineage`` (with the MLflow
            run), and what was gathered so far: validations, rejects, times, the curve's segments.
    """

    model: dict[str, Tensor]  # state of what is trained, whole, by name
    optimizer: OptimizerState  # its optimizer's
    extra: dict[str, Tensor] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.body["step"]


def save(out: str, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; only one process does."""
    folder = _folder(out, checkpoint.step)
    moments = {
        f"{name}.{part}": moment
        for name, pair in checkpoint.optimizer.moments.items()
        for part, moment in zip(("exp_avg", "exp_avg_sq"), pair, strict=True)
    }
    files = {
        "model.safetensors": checkpoint.model,
        "optimizer.safetensors": moments,
        "extra.safetensors": checkpoint.extra,
    }
    digests = {}
    for name, tensors in files.items():
        data = save_safetensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        digests[name] = hashlib.sha256(data).hexdigest()
        storage.write_bytes(storage.join(folder, name), data)
    body = {
        **checkpoint.body,
        "format_version": FORMAT_VERSION,
        "optimizer_steps": checkpoint.optimizer.steps,
        "files": digests,
    }
    storage.write_bytes(storage.join(folder, STATE_FILE), json.dumps(body, indent=1).encode())


def load(out: str, step: int) -> Checkpoint:
    """Reads a checkpoint; raises CheckpointError if a file is missing, or not the one that was written."""
    folder = _folder(out, step)
    body = storage.read_json(storage.join(folder, STATE_FILE))
    if body.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {body.get('format_version')!r}, this release reads "
            f"{FORMAT_VERSION}. Go on with the release that wrote it, or choose another --out."
        )
    model, moments, extra = (
        _tensors(folder, name, body["files"][name])
        for name in ("model.safetensors", "optimizer.safetensors", "extra.safetensors")
    )
    names = [name.removesuffix(".exp_avg") for name in moments if name.endswith(".exp_avg")]
    pairs = {name: (moments[f"{name}.exp_avg"], moments[f"{name}.exp_avg_sq"]) for name in names}
    return Checkpoint(model, OptimizerState(body["optimizer_steps"], pairs), extra, body)


def _tensors(folder: str, name: str, digest: str) -> dict[str, Tensor]:
    uri = storage.join(folder, name)
    remedy = f"Delete {folder} to go on from the checkpoint before it, or choose another --out."
    try:
        data = storage.read_bytes(uri)
    except NotFoundError as error:
        raise CheckpointError(f"the checkpoint lacks {uri}. {remedy}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(
            f"{uri} is not the file that the checkpoint names ({len(data)} bytes). {remedy}"
        )
    return load_safetensors(data)


def drop_old(out: str, keep: int) -> None:
    """Deletes all but the newest checkpoints; the file that makes one valid goes first."""
    for step in steps(out)[:-keep]:
        folder = _folder(out, step)
        storage.delete(storage.join(folder, STATE_FILE))
        storage.delete_folder(folder)


# ---------------------------------------------------------------- the curve


def save_segment(out: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the metrics of consecutive steps as JSON lines and returns the segment's name."""
    name = f"history/{int(rows[0]['step']):08d}-{int(rows[-1]['step']) + 1:08d}.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_bytes(storage.join(out, name), text.encode())
    return name


def load_history(out: str, segments: Sequence[str]) -> list[dict[str, Any]]:
    """Reads the metrics of all steps in the segments that a checkpoint names."""
    texts = [storage.read_bytes(storage.join(out, name)).decode() for name in segments]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def _folder(out: str, step: int) -> str:
    return storage.join(out, "checkpoints", f"step-{step:08d}")
