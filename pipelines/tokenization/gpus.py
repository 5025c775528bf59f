"""Which kinds of GPU, with which PyTorch, made the words of a corpus: ``OUT/gpus.json``.

Sums are rounded in another order on another kind, so a mask that lies between two codes may get the other
one. CPUs are not told apart.
"""

import json
import logging

import torch

from pipelines import storage
from pipelines.reports.words import GPUS
from samtok.errors import ConfigError

log = logging.getLogger(__name__)


def kind_of(device: str) -> str:
    """Returns the kind of GPU of this process and its PyTorch; empty for a CPU."""
    if device != "cuda":
        return ""
    return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"


class Gpus:
    """The kinds that a corpus was made on, as the driver hears of them.

    Args:
        out: Folder of the corpus.
        allow_other: Take another kind than that of earlier chunks, with a warning.
    """

    def __init__(self, out: str, *, allow_other: bool) -> None:
        self.uri, self.allow_other = storage.join(out, GPUS), allow_other
        self.kinds: list[str] = storage.read_json(self.uri) if storage.exists(self.uri) else []

    def add(self, kind: str) -> None:
        """Takes the kind that made a chunk, before the chunk is committed.

        Raises:
            ConfigError: If others were made on another one, and that is not allowed.
        """
        if not kind or kind in self.kinds:
            return
        if self.kinds:
            others = "; ".join(self.kinds)
            if not self.allow_other:
                raise ConfigError(
                    f"chunks of this corpus were made on {others}, and now on {kind}: a few words would "
                    "differ. Use the same kind, or allow it with --allow-other-gpus, which is recorded."
                )
            log.warning("chunks were made on %s, and now on %s; %s says so", others, kind, self.uri)
        self.kinds = [*self.kinds, kind]
        storage.write_bytes(self.uri, json.dumps(self.kinds, indent=1).encode())
