"""What the paper's runs need, by arithmetic: memory of GPUs, time, storage.

    python -m tests.benchmarks.paper_runs
    python -m tests.benchmarks.paper_runs --gpus 16 --peak-tflops 312 --words runs/quickstart/words

Parameters are counted on models without memory that have the numbers of the released configs. Memory is what
weights, gradients and optimizer take; activations and logits come on top and depend on the lengths (the GPU
check measures them). Time is floating point operations over what the GPUs do of them. Storage is the bytes of
a corpus of words that is at hand, per mask.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from pipelines.grpo.presets import GRES
from pipelines.sft.presets import PRESETS as SFT
from pipelines.tokenizer_training.presets import PRESETS as TOKENIZER
from samtok.config import PRESETS
from samtok.model.tokenizer import MaskTokenizer
from tests.benchmarks.gpu.sft import TEXT, VISION

_QWEN3_TEXT = {
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


@dataclass(frozen=True)
class Mllm:
    """Parameters of a model."""

    name: str
    total: int
    vision: int

    @property
    def trained(self) -> int:
        """With the vision encoder frozen, as in the preset ``paper``."""
        return self.total - self.vision


def mllms() -> Iterator[Mllm]:
    """Yields the models of the paper's sizes."""
    two, three = transformers.Qwen2_5_VLConfig, transformers.Qwen3VLConfig
    large = {
        **{"vocab_size": 152064, "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944},
        **{"num_attention_heads": 28, "num_key_value_heads": 4},
    }
    yield _counted(
        "Qwen2.5-VL-3B",
        two(
            tie_word_embeddings=True,
            text_config={**TEXT, "vocab_size": 151936, "num_hidden_layers": 36},
            vision_config=VISION,
        ),
    )
    yield _counted(
        "Qwen2.5-VL-7B",
        two(
            tie_word_embeddings=False,
            text_config={**TEXT, **large},
            vision_config={**VISION, "out_hidden_size": 3584},
        ),
    )
    yield _counted(
        "Qwen3-VL-4B",
        three(
            tie_word_embeddings=True,
            text_config={**_QWEN3_TEXT, "hidden_size": 2560, "intermediate_size": 9728},
            vision_config={
                **{"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16},
                **{"out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17]},
            },
        ),
    )
    yield _counted(
        "Qwen3-VL-8B",
        three(
            tie_word_embeddings=False,
            text_config={**_QWEN3_TEXT, "hidden_size": 4096, "intermediate_size": 12288},
            vision_config={
                **{"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16},
                **{"out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]},
            },
        ),
    )


def _counted(name: str, config: Any) -> Mllm:
    with torch.device("meta"):
        model: Any = transformers.AutoModelForImageTextToText.from_config(config)
    total = sum(weight.numel() for weight in model.parameters())
    return Mllm(name, total, sum(weight.numel() for weight in model.model.visual.parameters()))


def bytes_held(model: Mllm, stage: int | None, workers: int) -> float:
    """Returns bytes of weights, gradients and optimizer that one of several workers holds in training.

    Weights are in float32. ZeRO-1 and 2 keep a further float32 copy of a worker's share of the trained ones;
    ZeRO-3 has shares alone, of frozen weights too.

    Args:
        stage: Of ZeRO; None is the plain engine.
    """
    trained, frozen = model.trained, model.vision
    moments, share = 8 * trained, 1 / workers
    if stage is None:
        return 4 * frozen + 8 * trained + moments
    if stage == 3:
        return share * (4 * frozen + (4 + 4 + 4) * trained + moments)
    gradients = 4 * trained * (1 if stage == 1 else share)
    return 4 * frozen + 4 * trained + gradients + share * (4 * trained + moments)


def memory(workers: int) -> Iterator[dict[str, str]]:
    """Yields a row per model: GB of one worker by engine, and what GRPO holds besides."""
    for model in mllms():
        row = {"model": model.name, "parameters": f"{model.total / 1e9:.2f} B"}
        for name, stage in (("plain", None), ("ZeRO-1", 1), ("ZeRO-2", 2), ("ZeRO-3", 3)):
            row[name] = _gb(bytes_held(model, stage, workers))
        adapters = Mllm(model.name, model.total, model.total)  # nothing but adapters is trained
        row["LoRA, plain"] = _gb(bytes_held(adapters, None, workers))
        row["reference (KL)"] = _gb(4 * model.trained)
        row["sampler, bfloat16"] = _gb(2 * model.total)
        row["checkpoint"] = _gb(12 * model.trained)
        row["export"] = _gb(2 * model.total)
        yield row


def hours(gpus: int, peak_tflops: float, share: float, tokens: int, chats: int) -> Iterator[dict[str, str]]:
    """Yields a row per run."""
    rate = gpus * peak_tflops * 1e12 * share
    image, masks = _tokenizer_flops()
    paper = TOKENIZER["paper"]
    sampling = paper.sampling
    step = sampling.images_per_step * (image + 3 * sampling.masks_per_image * masks)
    yield {
        "run": f"tokenizer, {paper.steps:,} steps of {sampling.images_per_step} images",
        "PFLOP": f"{paper.steps * step / 1e15:,.0f}",
        "hours": f"{paper.steps * step / rate / 3600:.1f}",
    }
    corpus = 200_000_000 / 100 * image + 200_000_000 * masks
    yield {
        "run": "words of 200 M masks, 100 an image",
        "PFLOP": f"{corpus / 1e15:,.0f}",
        "hours": f"{corpus / rate / 3600:.1f}",
    }
    grpo = GRES["paper"]
    replies = grpo.steps * grpo.prompts_per_step * grpo.rollout.group_size
    for model in mllms():
        read = chats * tokens
        work = (8 * model.trained + 2 * model.vision) * read  # activations are computed twice
        yield {
            "run": f"fine-tuning of {model.name}, {chats / 1e6:g} M chats of {tokens} tokens",
            "PFLOP": f"{work / 1e15:,.0f}",
            "hours": f"{work / rate / 3600:.1f}",
        }
        # besides, a forward pass of the reference and one of the learner before the inner steps
        learn = (8 + 2 + 2) * model.trained * replies * tokens
        yield {
            "run": f"learning of {model.name} by GRPO, {grpo.steps} steps, sampling not counted",
            "PFLOP": f"{learn / 1e15:,.0f}",
            "hours": f"{learn / rate / 3600:.1f}",
        }


def _tokenizer_flops() -> tuple[float, float]:
    """Returns FLOPs of encoding an image, and of encoding and decoding one mask of it, at SAM2.1-large."""
    model = MaskTokenizer(PRESETS["sam2.1-large"]).to("meta")
    side, size = model.config.image_size, model.config.mask_size
    with FlopCounterMode(display=False) as of_image, torch.no_grad():
        features = model.embed_images(torch.empty(1, 3, side, side, device="meta"))
    with FlopCounterMode(display=False) as of_mask, torch.no_grad():
        one = features.of_masks(torch.zeros(1, dtype=torch.long, device="meta"))
        prompt, box = torch.empty(1, 1, size, size, device="meta"), torch.empty(1, 4, device="meta")
        model.decode_embeddings(one, model.embed_masks(one.coarse, prompt, box))
    return of_image.get_total_flops(), of_mask.get_total_flops()


def storage(words: Path) -> Iterator[dict[str, str]]:
    """Yields a row for a corpus of words: its bytes per mask, and those of 200 M masks."""
    import pyarrow.parquet as pq

    files = sorted((words / "data").glob("*.parquet"))
    masks = sum(len(row) for file in files for row in pq.read_table(file, columns=["masks"])["masks"])
    size = sum(file.stat().st_size for file in files)
    yield {
        "corpus": str(words),
        "masks": f"{masks:,}",
        "bytes a mask": f"{size / masks:.0f}",
        "200 M masks": _gb(200e6 * size / masks),
    }


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _print(title: str, rows: Iterator[dict[str, str]]) -> None:
    found = list(rows)
    print(f"\n## {title}\n")
    print("| " + " | ".join(found[0]) + " |")
    print("|" + "---|" * len(found[0]))
    for row in found:
        print("| " + " | ".join(row.values()) + " |")


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=SFT["paper"].workers)
    parser.add_argument(
        "--peak-tflops", type=float, default=989, help="of a GPU in bfloat16; 989 is an H100's"
    )
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that a run is thought to reach")
    parser.add_argument("--tokens", type=int, default=1500, help="of a chat, its image's included")
    parser.add_argument("--chats", type=int, default=5_000_000)
    parser.add_argument("--words", type=Path, help="a folder of tokenize_corpus, for the storage")
    args = parser.parse_args(argv)
    _print(f"Memory of one of {args.gpus} workers", memory(args.gpus))
    title = f"Time on {args.gpus} GPUs at {args.share:.0%} of {args.peak_tflops:g} TFLOP/s"
    _print(title, hours(args.gpus, args.peak_tflops, args.share, args.tokens, args.chats))
    if args.words:
        _print("Storage of words", storage(args.words))


if __name__ == "__main__":
    main()
