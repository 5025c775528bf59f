"""The steps of tokenizer training: plain torch, free of where it runs and what feeds it.

Until ``quantization_step`` the decoder reads z itself, so encoder and decoder first agree on embeddings. Then
k-means sets the codebooks on the latest embeddings, and every step quantizes with straight-through gradients
and moves the codebooks by averages (paper, section 2.1 and appendix B).

A step is the same whatever the number of workers and micro-batches: losses are means over the masks of the
whole step, embeddings reach the codebooks in the order of the masks, and every draw follows from the run's
seed and the step, so there is no state of a random generator to keep.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipelines.tokenizer_training.batch import Batch
from pipelines.tokenizer_training.config import LossConfig, TrainTokenizerConfig
from pipelines.tokenizer_training.trainee import Trainee
from pipelines.training import world
from pipelines.training.engine import Engine, autocast
from pipelines.training.steps import Steps, TrainingDiverged, learning_rate, mixed_seed
from samtok.losses import mask_losses
from samtok.model.backbone import normalize
from samtok.model.residual import ResidualQuantizer
from samtok.ranks import gather_rows, sum_over_ranks

MEANS = ("bce", "dice", "box", "commitment", "iou")


@dataclass(frozen=True)
class Forward:
    """What one forward pass gives. Means over its masks are losses, unweighted, by the names of
    ``LossConfig``'s weights, and the IoU at the size of the logits."""

    means: dict[str, Tensor]
    z: Float[Tensor, "mask dim"]  # embeddings before quantization
    codes: Int[Tensor, "mask level"] | None  # None before quantization begins


class Trainer:
    """Takes steps.

    ``recent`` has the embeddings of the latest steps before quantization began, this worker's, each with the
    number of masks on all workers.

    Args:
        trainee: On its device; all workers start with equal weights.
    """

    def __init__(self, trainee: Trainee, engine: Engine, config: TrainTokenizerConfig) -> None:
        self.trainee, self.engine, self.config = trainee, engine, config
        self.quantizer = trainee.tokenizer.quantizer
        if isinstance(self.quantizer, ResidualQuantizer):
            self.quantizer.decay, self.quantizer.dead_below = (
                config.codebooks.decay,
                config.codebooks.dead_below,
            )
        self.steps = Steps()
        self.recent: deque[tuple[Tensor, int]] = deque()

    @property
    def quantizes(self) -> bool:
        """Whether the codebooks are in use."""
        first = self.config.quantization_step
        return first == 0 or self.steps.done > first

    def take_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Takes one step over the micro-batches of this worker; collective. Returns the step's metrics.

        A step whose gradient is NaN or infinite is skipped on all workers; weights and codebooks stay. Raises
        TrainingDiverged if too many steps in a row were skipped.
        """
        step, device = self.steps.done, self.trainee.tokenizer.device
        generator = torch.Generator().manual_seed(mixed_seed(self.config.seed, step))
        torch.manual_seed(mixed_seed(self.config.seed, step, world.rank()))  # a model may have dropout
        if step == self.config.quantization_step > 0:
            self._start_quantizer(generator)
        total = int(sum_over_ranks(torch.tensor(sum(map(len, batches)), device=device)))
        passes = [self._pass(batch.to(device), total) for batch in batches]
        rate = learning_rate(step, self.config.steps, self.config.optimizer)
        norm = self.engine.step(rate)
        metrics = self._means(passes, [len(batch) for batch in batches])
        metrics |= {"step": step, "masks": total, "lr": rate, "gradient_norm": norm}
        good = self.steps.count(norm, metrics, self.config.max_bad_steps)
        if good:
            metrics |= self._follow(passes, total, generator)
        return metrics | {"skipped": float(not good)}

    def _pass(self, batch: Batch, total: int) -> Forward:
        quantize = self.steps.done >= self.config.quantization_step
        with autocast(self.trainee, self.config.precision):
            out = forward(self.trainee, batch, self.config.loss, quantize=quantize)
        self.engine.backward(total_loss(out.means, self.config.loss) * (len(batch) / total))
        return Forward({name: mean.detach() for name, mean in out.means.items()}, out.z, out.codes)

    def _means(self, passes: Sequence[Forward], sizes: Sequence[int]) -> dict[str, float]:
        """Returns means over the masks of all workers, and their weighted sum."""
        names = [name for name in MEANS if name in passes[0].means]
        sums = torch.stack([torch.stack([out.means[name] for name in names]).double() * size
                            for out, size in zip(passes, sizes, strict=True)]).sum(dim=0)  # fmt: skip
        sums = torch.cat([sums, sums.new_tensor([sum(sizes)])])
        *values, count = sum_over_ranks(sums).tolist()
        means = {name: value / count for name, value in zip(names, values, strict=True)}
        loss = sum(getattr(self.config.loss, name) * mean for name, mean in means.items() if name != "iou")
        return {"loss": loss, "iou": means.pop("iou")} | {f"loss_{name}": v for name, v in means.items()}

    def _follow(self, passes: Sequence[Forward], total: int, generator: torch.Generator) -> dict[str, float]:
        """Moves the codebooks after a good step, or keeps embeddings for their start."""
        z = torch.cat([out.z for out in passes])
        codes = [out.codes for out in passes if out.codes is not None]
        if not codes:
            self._remember(z, total)
            return {}
        restarted = self.quantizer.update(z, torch.cat(codes), generator)
        return {"codes_restarted": restarted, **perplexities(self.quantizer.cluster_size)}

    def _remember(self, z: Tensor, total: int) -> None:
        self.recent.append((z, total))
        while sum(count for _, count in self.recent) - self.recent[0][1] >= self.config.kmeans_samples:
            self.recent.popleft()

    def _start_quantizer(self, generator: torch.Generator) -> None:
        """Fits the quantizer to the latest embeddings in the order of steps and masks; raises
        TrainingDiverged if so many steps were skipped that there are too few."""
        steps = [gather_rows(z) for z, _ in self.recent]  # so their order is that of one worker
        rows = torch.cat(steps or [self.quantizer.cluster_size[:0]])[-self.config.kmeans_samples :]
        self.recent.clear()
        if self.config.codebooks.start == "random":
            return
        try:
            self.quantizer.start(rows if world.rank() == 0 else rows[:0], generator)
        except ValueError as error:
            raise TrainingDiverged(
                f"quantization cannot begin at step {self.steps.done}: {error} Raise --quantize-from "
                "with another --out, or see why steps before it were skipped."
            ) from error

    def gathered_recent(self) -> list[tuple[Tensor, int]]:
        """Returns the kept embeddings of all workers, step by step, on the CPU; collective."""
        return [(gather_rows(z).cpu(), count) for z, count in self.recent]

    def restore_recent(self, steps: Sequence[tuple[Tensor, int]]) -> None:
        """Takes in what ``gathered_recent`` gave; the first worker keeps it for all."""
        device, first = self.trainee.tokenizer.device, world.rank() == 0
        kept = [(z.to(device) if first else z[:0].to(device), count) for z, count in steps]
        self.recent = deque(kept)


def forward(trainee: Trainee, batch: Batch, config: LossConfig, *, quantize: bool) -> Forward:
    """Encodes the masks of a batch, decodes them again, and compares."""
    model = trainee.tokenizer
    features = model.embed_images(normalize(batch.pixels)).of_masks(batch.image_index)
    z = model.embed_masks(features.coarse, batch.prompts, batch.boxes).float()
    quantized = model.quantizer(z) if quantize else None
    logits = model.decode_embeddings(features, z if quantized is None else quantized.embeddings).float()
    with torch.autocast(logits.device.type, enabled=False):
        masks = mask_losses(
            logits,
            batch.targets,
            batch.keys,
            num_points=config.num_points,
            oversample=config.oversample,
            importance=config.importance,
        )
        means = {"bce": masks.bce, "dice": masks.dice}
        if trainee.box_head is not None:
            means["box"] = nn.functional.smooth_l1_loss(trainee.box_head(z), batch.boxes)
    if quantized is not None:
        means["commitment"] = quantized.commitment
    means["iou"] = mean_iou(logits.detach(), batch.targets)
    return Forward(means, z.detach(), None if quantized is None else quantized.codes)


def total_loss(means: dict[str, Tensor], config: LossConfig) -> Float[Tensor, ""]:
    """Returns the weighted sum of the losses."""
    parts = [getattr(config, name) * mean for name, mean in means.items() if name != "iou"]
    return torch.stack(parts).sum()


def mean_iou(
    logits: Float[Tensor, "mask size size"], targets: Float[Tensor, "mask size size"]
) -> Float[Tensor, ""]:
    """Returns the mean IoU of logits above 0 with soft targets of at least one half."""
    decoded, true = logits > 0, targets >= 0.5
    both = (decoded & true).sum(dim=(1, 2))
    either = (decoded | true).sum(dim=(1, 2))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0).mean()


def perplexities(cluster_size: Float[Tensor, "book num_codes"]) -> dict[str, float]:
    """Returns the perplexity of the averaged use of every codebook."""
    share = cluster_size / cluster_size.sum(dim=1, keepdim=True)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(dim=1)
    return {f"perplexity_{book}": float(value.exp()) for book, value in enumerate(entropy)}
