"""How busy stages were: by a clock that stands where a test puts it."""

import json

import pytest

from pipelines.tokenization.stage_times import StageTimes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def filled(decode_s: float, tokenize_s: float, *, decoders: int = 2, workers: int = 1, chunks: int = 10):
    """Chunks of four images, one a second; the first says nothing of the others."""
    clock = Clock()
    times = StageTimes({"decode": decoders, "tokenize": workers, "commit": 4}, clock)
    for number in range(chunks + 1):
        clock.now = 100.0 + number
        times.add({"counts": json.dumps({"rows_in": 4}), "decode_s": decode_s, "tokenize_s": tokenize_s})
    return times


def test_a_stage_is_busy_for_the_time_that_its_processes_work():
    times = filled(0.5, 0.95)
    assert times.busy() == pytest.approx({"decode": 0.25, "tokenize": 0.95, "commit": 0.0})
    assert times.seconds_per_image() == {"decode": 0.125, "tokenize": 0.2375}
    assert times.images == 40
    times.committed(20.0)
    assert times.busy()["commit"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("decode_s", "tokenize_s", "bottleneck"),
    [(0.5, 0.95, "tokenize"), (1.9, 0.4, "decode"), (0.5, 0.5, None), (5.0, 0.1, "decode")],
)
def test_the_closing_table_names_the_bottleneck_if_a_stage_is_one(decode_s, tokenize_s, bottleneck):
    head, *lines = filled(decode_s, tokenize_s).table()
    assert head[:4] == ("stage", "processes", "s/image", "busy")
    assert [line[0] for line in lines if line[4]] == ([bottleneck] if bottleneck else [])
    assert all(0 <= int(line[3].rstrip("%")) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("decode_s", "tokenize_s", "workers", "decoders"),
    [(0.4, 0.4, 1, 2), (4.0, 0.4, 1, 13), (4.0, 0.4, 8, 100), (0.01, 1.0, 1, 1), (0.4, 0.0, 1, None)],
)
def test_decoders_are_as_many_as_keep_tokenizers_busy(decode_s, tokenize_s, workers, decoders):
    assert filled(decode_s, tokenize_s).decoders_for(workers) == decoders


def test_before_a_second_chunk_nothing_is_known():
    times = filled(0.5, 0.5, chunks=0)
    assert times.table() == [] and times.decoders_for(1) is None and times.metrics() == {}
