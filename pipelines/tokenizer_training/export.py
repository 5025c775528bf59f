"""Writes the tokenizer that training made."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipelines import storage
from samtok.folders import WEIGHTS_FILE
from samtok.model.state import files_of
from samtok.model.tokenizer import MaskTokenizer


def export(tokenizer: MaskTokenizer, uri: str, lineage: Mapping[str, Any]) -> str:
    """Writes a tokenizer that ``from_pretrained`` reads, with its lineage; returns the weights' SHA-256."""
    files = files_of(tokenizer, tokenizer.config)
    digest = hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()
    body = json.dumps({**lineage, "weights_sha256": digest}, indent=2) + "\n"
    for name, data in {"lineage.json": body.encode(), **files}.items():  # the config is the last of them
        storage.write_bytes(storage.join(uri, name), data)
    return digest
