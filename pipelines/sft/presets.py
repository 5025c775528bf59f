"""Presets of ``jobs/train_mllm.py``."""

import dataclasses

import tyro

from pipelines.sft.config import SamplingConfig, TrainMllmConfig, ValidationConfig
from pipelines.training.config import (
    CheckpointsConfig,
    MllmEngineConfig,
    OptimizerConfig,
    TrainedConfig,
    TrainWorkerConfig,
)

_REQUIRED = tyro.MISSING

_SMOKE = TrainMllmConfig(
    out="runs/mllm-trained",
    model="tour-mllm",
    chats=("runs/embedded/gres-train/chats",),
    tokenizer="tour",
    sampling=SamplingConfig(samples_per_step=8, max_tokens=1024),
    steps=12,
    optimizer=OptimizerConfig(lr=1e-4, warmup_steps=3),
    validation=ValidationConfig(
        chats=("runs/embedded/gres-val/chats",), every=6, samples=16, generations=4, max_new_tokens=40
    ),
    checkpoints=CheckpointsConfig(every=6),
)

# Its vision encoder and projector know shapes and stay as they are. For a thousand steps the model learns
# where shapes can be, then, all at once, which of them is meant.
_TOUR = TrainMllmConfig(
    out="runs/tour/mllm",
    model="runs/tour/untrained",
    chats=("runs/tour/chats-train",),
    tokenizer="tour",
    train=TrainedConfig(projector=False),
    sampling=SamplingConfig(samples_per_step=48, max_tokens=1024),
    steps=4000,
    optimizer=OptimizerConfig(lr=3e-3, warmup_steps=20, final_lr_share=0.03),
    workers=2,
    validation=ValidationConfig(
        chats=("runs/tour/chats-val",), every=500, samples=200, generations=8, max_new_tokens=40
    ),
    checkpoints=CheckpointsConfig(every=500),
)

# The text tokenizer of the shipped model does not know the words of the request to think, which so has 300
# tokens, ten times those of a question; hence the small batches.
_TOUR_THINKING = dataclasses.replace(
    _TOUR,
    out="runs/tour-thinking/teacher",
    model="tour-mllm",
    chats=("runs/tour-thinking/thoughts-file",),
    sampling=SamplingConfig(samples_per_step=24, max_tokens=1024),
    micro_batch=12,
    steps=450,
    optimizer=OptimizerConfig(lr=1e-3, warmup_steps=10, final_lr_share=0.1),
    validation=ValidationConfig(),
    checkpoints=CheckpointsConfig(every=150),
)

PRESETS: dict[str, TrainMllmConfig] = {
    # A few steps of the shipped tiny model on synthetic questions; the numbers mean nothing.
    "smoke": _SMOKE,
    # Questions that masks answer beside some that words answer, half of these without an image; they are a
    # third of what is drawn. About 4 minutes; the held-out loss of words went from 11.8 to 0.65, of masks
    # from 0.06 to 0.13.
    "mixture": dataclasses.replace(
        _SMOKE,
        out="runs/mllm-mixture",
        chats=("uri=runs/embedded/gres-train/chats,weight=2", "uri=runs/embedded/vqa-train/chats,weight=1"),
        sampling=SamplingConfig(samples_per_step=16, max_tokens=1024),
        steps=240,
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=5),
        validation=dataclasses.replace(
            _SMOKE.validation,
            chats=("runs/embedded/gres-val/chats", "runs/embedded/vqa-val/chats"),
            every=80,
            samples=64,
        ),
        checkpoints=CheckpointsConfig(every=80),
    ),
    # The tiny model of `make tour`.
    "tour": _TOUR,
    # The tiny model of `make tour-tasks`, in the same way; passes have as many tokens and not as many chats,
    # since some tasks have ten times as many as others.
    "tour-tasks": dataclasses.replace(
        _TOUR,
        steps=1200,
        micro_batch_tokens=1024,
        out="runs/tour-tasks/mllm",
        model="runs/tour-tasks/untrained",
        chats=("runs/tour-tasks/chats-train",),
        validation=dataclasses.replace(_TOUR.validation, chats=("runs/tour-tasks/chats-val",)),
    ),
    # The shipped model of the tour learns to think, for `make tour-thinking`: first from the template.
    "tour-thinking-start": _TOUR_THINKING,
    # Then also from what that model thought and got right.
    "tour-thinking": dataclasses.replace(
        _TOUR_THINKING,
        out="runs/tour-thinking/mllm",
        model="runs/tour-thinking/teacher/final",
        chats=("runs/tour-thinking/thoughts-file", "runs/tour-thinking/thoughts-self"),
        steps=150,
        optimizer=OptimizerConfig(lr=5e-4, warmup_steps=10, final_lr_share=0.1),
    ),
    # Section 3.2 and appendix B: vision frozen, projector and language model trained, AdamW 2e-5, cosine,
    # global batch 256, one epoch. Warm-up and weight decay are of Qwen's recipe. Not run yet.
    "paper": TrainMllmConfig(
        out=_REQUIRED,
        model=_REQUIRED,
        chats=_REQUIRED,
        tokenizer=_REQUIRED,
        sampling=SamplingConfig(samples_per_step=256, max_tokens=8192),
        epochs=1.0,
        optimizer=OptimizerConfig(
            lr=2e-5, warmup_steps=100, final_lr_share=0.0, betas=(0.9, 0.999), weight_decay=0.01
        ),
        engine=MllmEngineConfig(deepspeed="infra/deepspeed/zero2.json", gradient_checkpointing=True),
        precision="bfloat16",
        micro_batch=4,
        workers=8,
        worker=TrainWorkerConfig(gpus=1, loaders=4),
        validation=ValidationConfig(every=500, samples=512, generations=16),
        checkpoints=CheckpointsConfig(every=500),
    ),
}
