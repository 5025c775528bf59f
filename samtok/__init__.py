"""SAMTok: any mask as two words (arXiv 2601.16093).

    from samtok import MaskTokenizer, format_words, parse_words

    tokenizer = MaskTokenizer.from_pretrained("tiny")
    codes = tokenizer.encode(image, masks)
    text = format_words(codes[0], num_codes=tokenizer.num_codes)

The package needs neither Ray nor MLflow. Names load on first use, so that ``samtok.words`` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samtok.config import MaskTokenizerConfig
    from samtok.model.tokenizer import MaskTokenizer
    from samtok.words import format_words, parse_words

_HOME = {
    "MaskTokenizer": "samtok.model.tokenizer",
    "MaskTokenizerConfig": "samtok.config",
    "format_words": "samtok.words",
    "parse_words": "samtok.words",
}

__all__ = ["MaskTokenizer", "MaskTokenizerConfig", "format_words", "parse_words"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'samtok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
