"""How float32 is multiplied on a GPU: in full, or in TF32, which keeps 10 bits of the factors' fractions.

PyTorch's default is TF32 in convolutions and full float32 in matrix products; words are made with one of the
two throughout. On a CPU nothing changes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)


def set_tf32(on: bool) -> None:
    """Lets this process multiply float32 in TF32 from now on, or in full."""
    for backend in _BACKENDS:
        backend.allow_tf32 = on


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Does the same for the time of a block."""
    before = [backend.allow_tf32 for backend in _BACKENDS]
    set_tf32(on)
    try:
        yield
    finally:
        for backend, value in zip(_BACKENDS, before, strict=True):
            backend.allow_tf32 = value
