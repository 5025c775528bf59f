"""Builds files in the published weight formats, filled by a formula of the parameter's name."""

import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
PREFIX = "model.sam2_model."


def published_keys() -> dict[str, tuple[int, ...]]:
    """Returns name and shape of every entry of the authors' ``mask_tokenizer_256x2.pth``."""
    keys = {}
    for line in (GOLDEN / "published_keys.tsv").read_text().splitlines():
        name, shape, _ = line.split("\t")
        keys[name] = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
    return keys


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns the weights that the golden outputs were computed with."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        return torch.from_numpy(x / np.float32(np.sqrt(np.prod(shape[1:]))))
    return torch.from_numpy(np.float32(0.02) * x + (1 if name.endswith("weight") else 0))


def authors_state(codebooks: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns the state dict of the authors' tokenizer (SAM2.1-large, 256x2)."""
    state = {n: formula(n, s) for n, s in published_keys().items() if not n.startswith("quantizer")}
    for level, codebook in enumerate(codebooks):
        entry = f"quantizer.codebooks.{level}."
        state[entry + "weight"] = torch.from_numpy(codebook)
        state[entry + "embed_ema"] = torch.from_numpy(codebook[:-1].copy())
        state[entry + "cluster_size_ema"] = torch.ones(len(codebook) - 1)
    return state


def sam2_state() -> dict[str, dict[str, torch.Tensor]]:
    """Returns the content of ``sam2.1_hiera_large.pt``."""
    names = [
        (n, s) for n, s in published_keys().items() if n.startswith(PREFIX) and "sam_mask_encoder" not in n
    ]
    return {"model": {n.removeprefix(PREFIX): formula(n, s) for n, s in names}}
