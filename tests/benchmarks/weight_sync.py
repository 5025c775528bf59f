"""How long new weights take from a learner to samplers through Ray's object store, and its share of a step.

    python -m tests.benchmarks.weight_sync
    python -m tests.benchmarks.weight_sync --megabytes 500 2000 --samplers 1 2 4

One process publishes, others on the same node fetch and load, as learners and samplers do: with weights of
the shapes of a language model, with checksums and without. A time is on the clock from the first call until
the last sampler has the weights; MB/s are the weights' bytes by that time, whatever the number of samplers.
``put``, ``fetch`` and ``load`` are its parts, of the slowest sampler for the last two. The share of a step is
that of the loop itself on Ray, with the tiny model of ``grpo.py``.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.chats.prompt_selection import load_prompts
from pipelines.chats.prompts import PromptsConfig
from pipelines.cluster import session
from pipelines.grpo.transport import Weights, WeightTransport
from tests.benchmarks import grpo_parts as parts
from tests.benchmarks.measuring import machine

MB = 2**20
DIM, INNER, ROWS = 1024, 2816, 32_768
"""Width, inner width and vocabulary of the language model whose shapes the weights have."""


class Took(NamedTuple):
    """Seconds of one way of the weights."""

    whole_s: float
    put_s: float
    fetch_s: float
    load_s: float


def shapes(megabytes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields names and shapes of float32 weights: embeddings, and layers until there are so many MB."""
    left = megabytes * MB // 4 - ROWS * DIM
    yield "embed_tokens.weight", (ROWS, DIM)
    layer = 0
    while left > 0:
        for name, shape in (
            *((f"self_attn.{one}_proj.weight", (DIM, DIM)) for one in "qkvo"),
            *((f"mlp.{one}_proj.weight", (INNER, DIM)) for one in ("gate", "up")),
            ("mlp.down_proj.weight", (DIM, INNER)),
            ("input_layernorm.weight", (DIM,)),
        ):
            yield f"layers.{layer}.{name}", shape
            left -= torch.Size(shape).numel()
        layer += 1


def _weights(megabytes: int, *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes(megabytes)}


class _End:
    """A learner or a sampler: some weights, and a transport."""

    def __init__(self, megabytes: int, checksum: bool, bucket_mb: int) -> None:
        import ray

        torch.set_num_threads(1)
        self.state = _weights(megabytes, seed=0)
        self.transport = WeightTransport(ray.put, ray.get, piece_bytes=bucket_mb * MB, checksum=checksum)

    def nbytes(self) -> int:
        """Returns the bytes of the weights."""
        return sum(value.nbytes for value in self.state.values())

    def publish(self, version: int) -> tuple[Weights, float]:
        """Publishes the weights; returns where they are, and the seconds it took."""
        started = time.perf_counter()
        weights = self.transport.publish(self.state.items(), version)
        return weights, time.perf_counter() - started

    def sync(self, weights: Weights) -> tuple[float, float]:
        """Fetches and loads weights as ``HfEngine`` does; returns the seconds of both."""
        started = time.perf_counter()
        fetched = self.transport.fetch(weights)
        arrived = time.perf_counter()
        for name, value in fetched:
            self.state[name].copy_(value)
        return arrived - started, time.perf_counter() - arrived


def main() -> int:
    """Measures, prints tables and saves the figures as JSON."""
    options = _options()
    rows, loop = [], None
    with session(num_cpus=max(options.samplers) + 1, at_least_cpus=max(options.samplers) + 1):
        print("MB | samplers | checksum | seconds | MB/s | put, fetch and load")
        for megabytes in options.megabytes:
            for samplers in options.samplers:
                for checksum in (True, False):
                    rows.append(_row(megabytes, samplers, checksum, options))
                    _print(rows[-1])
    if options.loop:
        loop = _share_of_a_step(options)
        print(
            f"tiny model, loop on Ray: sync {loop['sync_s'] * 1000:.0f} ms of a step of "
            f"{loop['step_s'] * 1000:.0f} ms, {loop['share']:.1%}"
        )
    body = {"machine": machine(), "options": vars(options), "rows": rows, "loop": loop}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=2, default=str) + "\n")
    print(f"saved {options.out}")
    return 0


def _row(megabytes: int, samplers: int, checksum: bool, options: argparse.Namespace) -> dict[str, Any]:
    import ray  # not before the session has chosen how processes know each other

    start: Any = ray.remote(num_cpus=1)(_End).remote
    learner, *others = [start(megabytes, checksum, options.bucket_mb) for _ in range(samplers + 1)]
    size = ray.get(learner.nbytes.remote())
    ray.get([other.nbytes.remote() for other in others])  # all are up
    took = [_way(learner, others, version) for version in range(options.repeats + 1)][
        1:
    ]  # the first warms up
    for actor in (learner, *others):
        ray.kill(actor)
    middle = Took(*(statistics.median(part) for part in zip(*took, strict=True)))
    row = {"megabytes": size / MB, "samplers": samplers, "checksum": checksum, **middle._asdict()}
    return {**row, "mb_per_s": size / MB / middle.whole_s, "all": took}


def _way(learner: Any, others: list[Any], version: int) -> Took:
    import ray

    started = time.perf_counter()
    weights, put_s = ray.get(learner.publish.remote(version))
    parts_s = ray.get([other.sync.remote(weights) for other in others])
    whole_s = time.perf_counter() - started
    return Took(whole_s, put_s, max(one[0] for one in parts_s), max(one[1] for one in parts_s))


def _print(row: dict[str, Any]) -> None:
    head = f"{row['megabytes']:.0f} | {row['samplers']} | {'yes' if row['checksum'] else 'no'}"
    split = ", ".join(f"{row[name]:.2f}" for name in ("put_s", "fetch_s", "load_s"))
    print(f"{head} | {row['whole_s']:.2f} | {row['mb_per_s']:.0f} | {split}", flush=True)


def _share_of_a_step(options: argparse.Namespace) -> dict[str, float]:
    options = argparse.Namespace(
        prompts=8, group=8, new_tokens=32, threads=1, steps=4, repeats=options.repeats
    )
    with tempfile.TemporaryDirectory() as home:
        place = parts.make_place(Path(home), parts.MODELS["tiny"], options)
        rows = parts.loop_steps(place, load_prompts([place.corpus], PromptsConfig(), seed=0), 0)
    sync_s, step_s = (statistics.median(row[name] for row in rows) for name in ("s_sync", "s_step"))
    return {"sync_s": sync_s, "step_s": step_s, "share": sync_s / step_s}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="+", default=[500], help="sizes of the weights")
    parser.add_argument("--samplers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bucket-mb", type=int, default=256, help="as --sync.bucket-mb of the jobs")
    parser.add_argument("--repeats", type=int, default=5, help="ways of the weights, whose median counts")
    parser.add_argument("--no-loop", dest="loop", action="store_false", help="leave the share of a step out")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/weight_sync.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
