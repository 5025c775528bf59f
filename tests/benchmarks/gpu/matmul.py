"""The peak that other figures are a share of: large matrix products, as this machine makes them."""

import torch

from samtok.model.precision import tf32
from tests.benchmarks.gpu.place import Found, Place


def measure(place: Place) -> Found:
    """Measures products in bfloat16, TF32 and float32."""
    side = place.sizes.matmul
    kinds = [("bfloat16", torch.bfloat16, True), ("float32", torch.float32, True)]
    if place.device == "cuda":
        kinds.append(("tf32", torch.float32, False))
    rows = []
    for name, dtype, exact in kinds:
        left, right = (torch.randn(side, side, device=place.device).to(dtype) for _ in range(2))
        with tf32(not exact):
            took = place.median_s(lambda left=left, right=right: left @ right)
        place.peaks[name] = 2 * side**3 / took
        rows.append({"dtype": name, "side": side, "ms": 1e3 * took, "tflops": place.peaks[name] / 1e12})
    return Found(rows, "Square matrices of normal numbers. Shares of peak below are of these figures.")
