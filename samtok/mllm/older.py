"""Makes what transformers 5 writes readable by transformers 4.57 too, which some training frameworks pin.

Both read the names of 4.57, which released checkpoints have; what 5 writes under new names is written anew.
A vision encoder whose rope has another base than 10,000, as tiny ones have, needs transformers 5.
"""

import json
from pathlib import Path
from typing import Any

_OWN_FILES = {
    "image_processor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}
"""Parts of ``processor_config.json`` that 4.57 wants in files of their own."""


def make_readable(folder: str | Path) -> None:
    """Rewrites the JSON files of a checkpoint folder that transformers 5 has just written."""
    folder = Path(folder)
    _rewrite(folder / "config.json", _model)
    _rewrite(folder / "tokenizer_config.json", _tokenizer)
    processor = json.loads((folder / "processor_config.json").read_text())
    for part, file in _OWN_FILES.items():
        if part in processor:
            body = processor[part] | {"processor_class": processor["processor_class"]}
            if "image_processor_type" in body:
                body["image_processor_type"] += "Fast"  # the name of what 5 has alone
            _write(folder / file, body)


def _model(body: dict[str, Any]) -> None:
    """4.57 ties what the text's config states, and reads the base of its rope beside ``rope_scaling``."""
    text = body["text_config"]
    text.setdefault("tie_word_embeddings", body.get("tie_word_embeddings", False))
    if "rope_parameters" in text:
        scaling = text.pop("rope_parameters")
        text["rope_theta"] = scaling.pop("rope_theta")
        text["rope_scaling"] = scaling


def _tokenizer(body: dict[str, Any]) -> None:
    extra = body.pop("extra_special_tokens", [])
    own = {name: body.pop(name) for name in ("image_token", "video_token") if name in body}
    if own or isinstance(extra, dict):
        body["extra_special_tokens"] = own | dict(extra)
    else:
        body["additional_special_tokens"] = extra
    if body.get("tokenizer_class") == "TokenizersBackend":
        body["tokenizer_class"] = "PreTrainedTokenizerFast"


def _rewrite(path: Path, change: Any) -> None:
    body = json.loads(path.read_text())
    change(body)
    _write(path, body)


def _write(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
