"""Checkpoints are written while training goes on: what they hold, what a failed write and a kill leave.

Several workers are in ``test_engine_deepspeed``.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines import storage
from pipelines.training import checkpoints, writing
from pipelines.training.config import OptimizerConfig
from pipelines.training.engine import Engine, PlainEngine
from pipelines.training.parts import EXTRA, Part, shared_out, wholes
from pipelines.training.steps import Steps
from pipelines.training.worker import load_state, save_state
from pipelines.training.writing import CheckpointWriter
from samtok.errors import CheckpointError, StorageError

CONFIG = OptimizerConfig()


@dataclass
class Taker:
    """What has steps and an engine, as trainers have."""

    engine: Engine
    steps: Steps = field(default_factory=Steps)


def net(width: int = 7) -> nn.Module:
    """Trained weights, frozen ones, and buffers of other types."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 3))
    module[2].requires_grad_(False)
    return module


def trained(steps: int, width: int = 7) -> Taker:
    module = net(width)
    taker = Taker(PlainEngine(module, CONFIG))
    learn(taker, steps)
    return taker


def learn(taker: Taker, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(taker.engine.steps_taken))
        taker.engine.backward(taker.engine.module(x).square().sum())
        taker.engine.step(1e-2)


def begin(writer: CheckpointWriter, taker: Taker, step: int, **more: Any) -> None:
    kept = taker.engine.untrained_state()
    save_state(writer, taker, {"step": step, "fingerprint": "net"}, seed=0, kept=kept, **more)


def state_of(taker: Taker) -> dict[str, Tensor]:
    parts = {part.key: part.values for part in taker.engine.parts()} | taker.engine.untrained_state()
    return {key: values.clone() for key, values in parts.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_run_goes_on_bit_for_bit_from_what_was_written_while_it_went_on(tmp_path: Path, steps, monkeypatch):
    monkeypatch.setattr(writing, "PIECE_BYTES", 100)
    whole, writer, told = trained(steps), CheckpointWriter(str(tmp_path), keep=1), []
    before = state_of(whole)
    begin(
        writer,
        whole,
        steps,
        extra={"z": torch.arange(3), "a": torch.ones(2, 0)},
        committed=lambda: told.append(1),
    )
    learn(whole, 2)
    writer.wait()
    assert told == [1]
    again = trained(5)
    saved = load_state(str(tmp_path), steps, "net", again, kept=again.engine.untrained_state())
    assert same(state_of(again), before)
    extra = saved.extra()
    assert list(extra) == ["a", "z"] and extra["a"].shape == (2, 0) and extra["z"].tolist() == [0, 1, 2]
    learn(again, 2)
    assert same(state_of(again), state_of(whole))
    pieces = list((tmp_path / "checkpoints").glob("*/*.bin"))
    assert len(pieces) > 3 and all(piece.stat().st_size <= 100 for piece in pieces)


SIZES = st.lists(st.integers(0, 9), max_size=6)


@settings(max_examples=30)
@given(sizes=SIZES, workers=st.integers(1, 4), piece=st.integers(8, 40))
def test_workers_shares_are_equal_and_pieces_hold_each_element_once(sizes, workers, piece):
    tensors = {f"{n}": torch.arange(size, dtype=torch.int64) for n, size in enumerate(sizes)}
    seen: dict[str, list[int]] = {name: [] for name in tensors}
    counts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "PIECE_BYTES", piece)
        patch.setattr("pipelines.training.world.size", lambda: workers)
        for rank in range(workers):
            patch.setattr("pipelines.training.world.rank", lambda rank=rank: rank)
            parts = list(shared_out(wholes(EXTRA, tensors)))
            counts.append(sum(len(part.values) for part in parts))
            for group in writing._pieces(parts):
                assert sum(part.values.nbytes for part in group) <= piece
                for part in group:
                    assert part.values.tolist() == list(range(part.start, part.start + len(part.values)))
                    seen[part.key.partition("/")[2]] += part.values.tolist()
    assert seen == {name: list(range(len(tensor))) for name, tensor in tensors.items()}
    assert max(counts) - min(counts) <= 1


def test_another_model_is_refused_and_says_where_it_differs(tmp_path: Path):
    writer = CheckpointWriter(str(tmp_path), keep=1)
    begin(writer, trained(1), 1)
    writer.wait()
    wider = trained(1, width=9)
    with pytest.raises(
        CheckpointError, match=r"0.bias of the checkpoint is \(7,\), in the model it is \(9,\)"
    ):
        load_state(str(tmp_path), 1, "net", wider, kept=wider.engine.untrained_state())
    with pytest.raises(CheckpointError, match=r"weights/1.num_batches.* is \(\), in the model it is missing"):
        load_state(str(tmp_path), 1, "net", trained(1))
    with pytest.raises(CheckpointError, match="was made by a run with other settings"):
        load_state(str(tmp_path), 1, "another", trained(1))


@pytest.mark.parametrize("damage", ["missing", "changed", "unnamed"])
def test_a_checkpoint_that_lacks_something_is_refused(tmp_path: Path, damage: str):
    taker, writer = trained(1), CheckpointWriter(str(tmp_path), keep=1)
    begin(writer, taker, 1)
    writer.wait()
    (piece,) = (tmp_path / "checkpoints").glob("*/*.bin")
    if damage == "missing":
        piece.unlink()
    elif damage == "changed":
        piece.write_bytes(piece.read_bytes()[:-1] + b"\xff")
    else:
        body = storage.read_json(str(piece.parent / "state.json"))
        checkpoints.commit(str(piece.parent), {**body, "files": {}})
    said = {"missing": "lacks .*bin", "changed": "is not the file", "unnamed": r"lacks \d+ numbers"}[damage]
    with pytest.raises(CheckpointError, match=rf"{said}.*Delete .*step-00000001 to go on"):
        load_state(str(tmp_path), 1, "net", taker, kept=taker.engine.untrained_state())


def test_a_write_that_fails_is_an_error_of_the_next_step_and_of_the_next_save(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SAMTOK_STORAGE_RETRY_S", "0")
    taker, writer = trained(1), CheckpointWriter(str(tmp_path), keep=1)
    begin(writer, taker, 1)
    writer.wait()

    def parts() -> Iterator[Part]:
        yield from taker.engine.own_parts()
        (tmp_path / "checkpoints" / "step-00000002").write_text("in the way")

    writer.save(parts(), {"step": 2})
    writer.settle()
    for call in (writer.check, writer.wait, lambda: begin(writer, taker, 3)):
        with pytest.raises(StorageError, match="Cannot write .*step-00000002"):
            call()
    assert checkpoints.steps(str(tmp_path)) == [1]
    load_state(str(tmp_path), 1, "net", taker, kept=taker.engine.untrained_state())


def test_without_room_for_the_copy_the_save_says_where_room_is_needed(tmp_path: Path):
    writer = CheckpointWriter(str(tmp_path), keep=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing.tempfile, "TemporaryFile", lambda: Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115
        with pytest.raises(StorageError, match=r"No space left.*TMPDIR"):
            begin(writer, trained(1), 1)


def run_until_killed(out: str) -> None:
    """Writes one checkpoint after the other; the numbers of each are its step."""
    writer, step = CheckpointWriter(out, keep=1), 0
    while True:
        step += 1
        part = Part("weights/x", torch.Size([1000]), 0, torch.full((1000,), float(step)))
        writer.save([part], {"step": step})


def test_a_kill_during_the_write_leaves_the_last_committed_checkpoint(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(writing, "PIECE_BYTES", 1500)
    for number in range(3):
        out = str(tmp_path / str(number))
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                run_until_killed(out)
            os._exit(1)
        while not checkpoints.steps(out):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
        time.sleep(0.007 * number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = checkpoints.steps(out)[-1]
        found = torch.zeros(1000)
        checkpoints.load(out, newest).fill([Part("weights/x", torch.Size([1000]), 0, found)])
        assert found.unique().tolist() == [newest]
        left = CheckpointWriter(out, keep=1)  # the run goes on, and nothing of the killed one stays
        left.save([Part("weights/x", torch.Size([1000]), 0, found)], {"step": newest + 1})
        left.wait()
        assert checkpoints.steps(out) == [newest + 1]
