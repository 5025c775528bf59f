"""Training of a mask tokenizer: plain torch, free of where it runs, what feeds it and who listens.

Until ``quantization_step`` the decoder reads z itself, so encoder and decoder first agree on a language. Then
k-means sets the codebooks on the latest embeddings, and every step quantizes with straight-through gradients
and moves the codebooks by averages (paper, section 2.1 and appendix B).
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipelines.tokenizer_training.config import LossConfig, OptimizerConfig, TrainTokenizerConfig
from pipelines.tokenizer_training.data import Batch
from samtok.errors import SamtokError
from samtok.losses import mask_losses
from samtok.model.backbone import normalize
from samtok.model.tokenizer import MaskTokenizer

Report = Callable[[int, dict[str, float]], None]


class TrainingDiverged(SamtokError):
    """A loss that is no number."""


@dataclass
class TrainState:
    """All that changes while training.

    Attributes:
        model: The tokenizer.
        box_head: Reads the box from z; it is not part of the tokenizer and is thrown away.
        optimizer: Of both.
        generator: Draws points, k-means seeds and restarts; on the CPU.
        recent: Latest embeddings, for k-means.
    """

    model: MaskTokenizer
    box_head: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    recent: deque[Tensor] = field(default_factory=deque)


@dataclass(frozen=True)
class Forward:
    """What one forward pass gives.

    Attributes:
        losses: Unweighted, by the names of ``LossConfig``'s weights.
        z: Embeddings before quantization.
        codes: None before quantization begins.
        iou: Mean over masks at the size of the logits.
    """

    losses: dict[str, Tensor]
    z: Float[Tensor, "mask dim"]
    codes: Int[Tensor, "mask level"] | None
    iou: Float[Tensor, ""]


def start_training(model: MaskTokenizer, config: TrainTokenizerConfig) -> TrainState:
    """Puts optimizer, box head and generator beside a model."""
    dim = model.config.dim
    box_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4)).to(model.device)
    parameters = [p for module in (model, box_head) for p in module.parameters() if p.requires_grad]
    return TrainState(
        model=model.train(),
        box_head=box_head,
        optimizer=build_optimizer(parameters, config.optimizer),
        generator=torch.Generator().manual_seed(config.seed),
    )


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Builds AdamW; the learning rate is set at every step by ``learning_rate``."""
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Returns the rate of a step: it rises over the warm-up and falls along a cosine to the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


def forward(state: TrainState, batch: Batch, config: LossConfig, *, quantize: bool) -> Forward:
    """Encodes the masks of a batch, decodes them again, and compares."""
    model = state.model
    features = model.embed_images(normalize(batch.pixels)).of_masks(batch.image_index)
    z = model.embed_masks(features.coarse, batch.prompts, batch.boxes)
    quantized = model.quantizer(z) if quantize else None
    logits = model.decode_embeddings(features, z if quantized is None else quantized.embeddings)
    masks = mask_losses(
        logits,
        batch.targets,
        state.generator,
        num_points=config.num_points,
        oversample=config.oversample,
        importance=config.importance,
    )
    box = nn.functional.smooth_l1_loss(state.box_head(z), batch.boxes)
    losses = {"bce": masks.bce, "dice": masks.dice, "box": box}
    if quantized is not None:
        losses["commitment"] = quantized.commitment
    codes = None if quantized is None else quantized.codes
    return Forward(losses, z.detach(), codes, mean_iou(logits.detach(), batch.targets))


def mean_iou(
    logits: Float[Tensor, "mask size size"], targets: Float[Tensor, "mask size size"]
) -> Float[Tensor, ""]:
    """Returns the mean IoU of logits above 0 with soft targets of at least one half."""
    decoded, true = logits > 0, targets >= 0.5
    both = (decoded & true).sum(dim=(1, 2))
    either = (decoded | true).sum(dim=(1, 2))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0).mean()


def total_loss(losses: dict[str, Tensor], config: LossConfig) -> Float[Tensor, ""]:
    """Returns the weighted sum."""
    return torch.stack([getattr(config, name) * loss for name, loss in losses.items()]).sum()


def train_step(state: TrainState, batch: Batch, config: TrainTokenizerConfig, step: int) -> dict[str, float]:
    """Takes one optimizer step and moves the codebooks; returns the metrics of the step.

    Raises:
        TrainingDiverged: If the loss is not a number; weights are left as they were.
    """
    quantize = step >= config.quantization_step
    if step == config.quantization_step:
        state.model.quantizer.start(torch.cat(list(state.recent))[-config.kmeans_samples :], state.generator)
        state.recent.clear()
    out = forward(state, batch, config.loss, quantize=quantize)
    loss = total_loss(out.losses, config.loss)
    if not torch.isfinite(loss):
        parts = ", ".join(f"{name} {float(value.detach()):g}" for name, value in out.losses.items())
        raise TrainingDiverged(
            f"the loss is {float(loss.detach())} at step {step} ({parts}); expected a finite number. "
            "Lower --optimizer.lr or raise --optimizer.warmup-steps."
        )
    rate = learning_rate(step, config.steps, config.optimizer)
    norm = _descend(state.optimizer, loss, rate, config.optimizer.clip_norm)
    metrics = {f"loss_{name}": float(value.detach()) for name, value in out.losses.items()}
    metrics |= {"loss": float(loss.detach()), "iou": float(out.iou), "masks": len(batch)}
    metrics |= {"lr": rate, "gradient_norm": norm}
    if out.codes is None:
        _remember(state.recent, out.z, config.kmeans_samples)
    else:
        metrics["codes_restarted"] = state.model.quantizer.update(out.z, out.codes, state.generator)
        metrics |= _codebook_metrics(state.model.quantizer.cluster_size)
    return metrics


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip_norm: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    return float(norm)


def _remember(recent: deque[Tensor], z: Tensor, samples: int) -> None:
    recent.append(z)
    while sum(map(len, recent)) - len(recent[0]) >= samples:
        recent.popleft()


def _codebook_metrics(cluster_size: Float[Tensor, "level num_codes"]) -> dict[str, float]:
    """Returns the perplexity of the averaged use of every level."""
    share = cluster_size / cluster_size.sum(dim=1, keepdim=True)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(dim=1)
    return {f"perplexity_{level}": float(value.exp()) for level, value in enumerate(entropy)}


def train(
    state: TrainState, batch_of: Callable[[int], Batch], config: TrainTokenizerConfig, report: Report
) -> None:
    """Runs all steps.

    Args:
        state: From ``start_training``; it is changed.
        batch_of: Gives the batch of a step, on the model's device.
        config: The run.
        report: Hears the metrics of every step.
    """
    for step in range(config.steps):
        report(step, train_step(state, batch_of(step), config, step))
    state.model.eval()
