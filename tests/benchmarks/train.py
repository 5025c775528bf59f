"""How many masks a second are trained: many masks per encoded image against one, measured in one run.

    python -m tests.benchmarks.train                                        # tiny, from random weights
    python -m tests.benchmarks.train --model sam2.1-large --masks 32 --steps 1 --freeze
    python -m tests.benchmarks.train --model sam2.1-large --freeze --device cuda --precision bfloat16

One mask per encoded image is how the authors' code trains. Both sides take the same steps of the same loop
(forward, losses, backward, AdamW, codebooks) on the same synthetic masks; making the images is left out.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from pipelines.tokenizer_training.architecture import architecture_of
from pipelines.tokenizer_training.batch import Batch, build_batch
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.data import mask_keys
from pipelines.tokenizer_training.loop import Trainer
from pipelines.tokenizer_training.trainee import build_trainee
from pipelines.training.engine import PlainEngine
from samtok.masks import RunMask
from tests.benchmarks.measuring import machine, seconds


def main() -> int:
    """Measures, prints a table and saves the figures as JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    config = TrainTokenizerConfig(
        out="",
        model=options.model,
        freeze=options.freeze,
        steps=10**6,
        precision=options.precision,
    )
    trainee = build_trainee(config).to(options.device)
    trainer = Trainer(trainee, PlainEngine(trainee, config.optimizer), config)
    sides = {count: _batch(config, count, options) for count in (1, options.masks)}
    rates: dict[int, list[float]] = {count: [] for count in sides}
    for repeat in range(options.repeats + 1):  # in turns, so that a drift of the machine meets both
        for count, batch in sides.items():
            rate = _masks_per_s(trainer, batch, options)
            if repeat or options.repeats == 1:  # the first round warms up
                rates[count].append(rate)
    medians = {count: statistics.median(values) for count, values in rates.items()}
    ratio = medians[options.masks] / medians[1]
    print(f"{options.model}, {options.device}, {options.precision}, freeze {options.freeze}")
    print("masks per image | masks/s")
    for count, rate in medians.items():
        print(f"{count:15d} | {rate:.3g}")
    print(f"ratio {ratio:.1f}")
    body = {"options": vars(options), "machine": machine(options.device)}
    body |= {"masks_per_s": medians, "ratio": ratio}
    if options.device == "cuda":
        body["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(f"{body['machine']['gpu']}, peak {body['peak_gib']:.1f} GiB")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=2, default=str))
    return 0


def _batch(config: TrainTokenizerConfig, masks_per_image: int, options: argparse.Namespace) -> Batch:
    """Makes random pictures with random boxes as masks; as many images as the memory is meant to hold."""
    architecture = architecture_of(config)
    side, rng = architecture.image_size, np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(options.images)]
    owners = [i for i in range(options.images) for _ in range(masks_per_image)]
    masks = []
    for _ in owners:
        mask = np.zeros((side, side), dtype=bool)
        y, x = rng.integers(0, side // 2, 2)
        mask[y : y + side // 3, x : x + side // 4] = True
        masks.append(RunMask.of_dense(mask))
    keys = mask_keys(0, 0, len(masks))
    return build_batch(images, masks, owners, architecture, keys=keys).to(options.device)


def _masks_per_s(trainer: Trainer, batch: Batch, options: argparse.Namespace) -> float:
    took = seconds(lambda: [trainer.take_step([batch]) for _ in range(options.steps)])
    return options.steps * len(batch) / took


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--masks", type=int, default=32, help="masks per encoded image, against 1")
    parser.add_argument("--images", type=int, default=1, help="images per step")
    parser.add_argument("--steps", type=int, default=10, help="steps per measurement")
    parser.add_argument(
        "--repeats", type=int, default=5, help="measurements of each side, whose median counts"
    )
    parser.add_argument("--freeze", action="store_true", help="as when starting from SAM2 (appendix B)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/train.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
