"""Presets of ``jobs/train_tokenizer.py``."""

import dataclasses

import tyro

from pipelines.tokenizer_training.config import (
    CodebooksConfig,
    LossConfig,
    QuantizerFlags,
    SamplingConfig,
    StartConfig,
    TrainTokenizerConfig,
    ValidationConfig,
)
from pipelines.training.config import CheckpointsConfig, EngineConfig, OptimizerConfig, TrainWorkerConfig
from samtok.shapes import TOUR_WORLD, WorldConfig

# From SAM2 weights (paper, section 2.1 and appendix B): AdamW at 4e-5, 1024 masks a step, losses 1:1. An
# image gives up to 32 of its masks, so 32 images of SA-1B make the 1024; take more where they have fewer.
# Steps, warm-up, decay, betas and the start of quantization are ours. Not run at its size yet.
_PAPER = TrainTokenizerConfig(
    out=tyro.MISSING,
    model="sam2.1-large",
    start=StartConfig(sam2=tyro.MISSING),
    corpora=tyro.MISSING,
    sampling=SamplingConfig(images_per_step=32, masks_per_image=32),
    steps=200_000,
    quantize_from=0.005,
    kmeans_samples=65_536,
    loss=LossConfig(bce=1.0, dice=1.0, commitment=1.0, box=0.0),
    optimizer=OptimizerConfig(lr=4e-5, warmup_steps=1000, betas=(0.9, 0.999), weight_decay=0.05),
    engine=EngineConfig(deepspeed="infra/deepspeed/zero1.json"),
    precision="bfloat16",
    micro_batch=2,
    workers=8,
    worker=TrainWorkerConfig(gpus=1, cpus=12, threads=4, loaders=8),
    validation=ValidationConfig(corpora=tyro.MISSING, every=2000, images=500, final_images=2000),
    checkpoints=CheckpointsConfig(every=1000),
)

_MICRO = TrainTokenizerConfig(
    model="micro",
    out="runs/tokenizer-micro",
    world=WorldConfig.square(64, small_radius=(0.12, 0.18), large_radius=(0.22, 0.32)),
    steps=600,
    kmeans_samples=2000,
    validation=ValidationConfig(every=200, images=50, final_images=100),
    checkpoints=CheckpointsConfig(every=200),
)

PRESETS: dict[str, TrainTokenizerConfig] = {
    # A few steps of the smallest one on synthetic scenes; the numbers mean nothing.
    "smoke": dataclasses.replace(
        _MICRO,
        out="runs/tokenizer",
        steps=60,
        quantize_from=0.5,
        kmeans_samples=500,
        optimizer=OptimizerConfig(warmup_steps=10),
        validation=ValidationConfig(every=30, images=20, final_images=40),
        checkpoints=CheckpointsConfig(every=30),
    ),
    # The tokenizer that ships with the package, from random weights; about 8 minutes on one core.
    "tiny": TrainTokenizerConfig(model="tiny", out="runs/tokenizer-tiny", steps=6000),
    # A smaller one in under a minute of training.
    "micro": _MICRO,
    # The shipped one gets few codes for the few places of `make tour`, and little for them to disagree on.
    "tour": TrainTokenizerConfig(
        model="tiny",
        quantizer=QuantizerFlags(num_codes=8),
        start=StartConfig(tokenizer="tiny"),
        out="runs/tour/tokenizer",
        world=TOUR_WORLD,
        steps=400,
        quantize_from=0.25,
        optimizer=OptimizerConfig(lr=5e-4, warmup_steps=20),
        validation=ValidationConfig(every=200, images=100, final_images=200),
    ),
    "paper": _PAPER,
    # The same as the authors' config has it: loss weights and targets, one mask of each of 1024 images,
    # warm-up and cosine, random codebooks from the first step, of which a code begins anew below a moving
    # count of 1 (an even share is 1024 / 256 = 4). Not run at its size yet.
    "authors": dataclasses.replace(
        _PAPER,
        loss=dataclasses.replace(_PAPER.loss, bce=2.0, dice=0.5, targets="nearest"),
        sampling=dataclasses.replace(_PAPER.sampling, images_per_step=1024, masks_per_image=1),
        optimizer=dataclasses.replace(
            _PAPER.optimizer, warmup_steps=0, warmup_share=0.05, final_lr_share=0.0
        ),
        quantize_from=0.0,
        codebooks=CodebooksConfig(start="random", dead_below=0.25),
    ),
}
