"""Makes the vision encoder that tiny models begin with; it ships with the package.

    python -m pipelines.extension.pretrain_vision --out samtok/weights/tiny-vision

Minutes on one core. ``record.json`` says how it was made and what it reads off held-out scenes.
"""

import json
import logging
import shlex
import sys
import time
from dataclasses import asdict

import torch
from safetensors.torch import save

from pipelines import cli, provenance, storage
from pipelines import job as runs
from pipelines.config import Place, config
from samtok.mllm.tiny.config import TinyConfig
from samtok.mllm.tiny.vision import RECORD_FILE, WEIGHTS_FILE, VisionTraining, pretrain, sizes_of
from samtok.shapes import TOUR_WORLD, WorldConfig

log = logging.getLogger("pipelines.extension.pretrain_vision")  # __name__ is __main__ here


@config
class PretrainVisionConfig:
    """A vision encoder learns kinds, colours and places of shapes."""

    out: Place
    """Folder or s3:// prefix of the weights."""
    numbers: TinyConfig = TinyConfig()
    """Sizes of the model that it is for."""
    world: WorldConfig = WorldConfig()
    """What scenes look like."""
    training: VisionTraining = VisionTraining()
    """How long, and so on."""


PRESETS = {
    # The shipped one. Two minutes on one core.
    "tour": PretrainVisionConfig(
        out="samtok/weights/tiny-vision",
        world=TOUR_WORLD,
        training=VisionTraining(steps=1500, scenes=12_000, evals=3),
    )
}


def pretrain_vision(settings: PretrainVisionConfig) -> int:
    """Trains and writes weights and record; returns the exit code."""
    from samtok.mllm.tiny.models import vision_of

    torch.set_num_threads(1)
    visual, processor = vision_of(settings.numbers, seed=settings.training.seed)
    started = time.process_time()

    def callback(step: int, found: object) -> None:
        assert isinstance(found, dict)
        shown = " ".join(f"{name} {value:.4f}" for name, value in found.items())
        log.info("step %d/%d %s", step, settings.training.steps, shown)

    found = pretrain(visual, processor, settings.world, settings.training, callback)
    record = {
        "command": "python -m pipelines.extension.pretrain_vision " + shlex.join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "sizes": sizes_of(settings.numbers),
        "held_out": {name: round(value, 4) for name, value in found.items()},
        "cpu_s": round(time.process_time() - started),
        "training": asdict(settings.training),
        "world": asdict(settings.world),
        "versions": provenance.versions(),
    }
    weights = {name: tensor.contiguous() for name, tensor in visual.state_dict().items()}
    storage.write_bytes(storage.join(settings.out, WEIGHTS_FILE), save(weights))
    storage.write_bytes(
        storage.join(settings.out, RECORD_FILE), (json.dumps(record, indent=2) + "\n").encode()
    )
    return 0


def main() -> int:
    settings = cli.parse(PretrainVisionConfig, PRESETS, None, doc=__doc__)
    return runs.guard(lambda: pretrain_vision(settings))


if __name__ == "__main__":
    raise SystemExit(main())
