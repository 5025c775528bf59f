"""The learning rate over a run, and seeds of its steps."""

import math

import numpy as np

from pipelines.training.config import OptimizerConfig


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Returns the rate of a step: it rises over the warm-up and falls along a cosine to the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


def mixed_seed(*numbers: int) -> int:
    """Returns a seed that differs wherever any of the numbers does."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
