"""The grammar of mask words as a structural tag, for servers that constrain by xgrammar (vLLM, SGLang).

The tag is plain data that a server compiles. With vLLM it goes along with a request::

    tag = mask_word_tag(adapter.word_ids, adapter.suppressed_ids)
    SamplingParams(
        structured_outputs=StructuredOutputsParams(structural_tag=json.dumps(tag)), skip_special_tokens=False
    )

It allows what ``grammar.MaskWordGrammar`` allows, token for token (xgrammar 0.2.8, the version that vLLM 0.32
pins; ``tests/samtok/test_grammar_xgrammar.py``), but it reads answers only, not the prompts before them, and
a request with another output format cannot take it.
"""

from collections.abc import Sequence
from typing import Any

from samtok.mllm.vocab import WordIds


def mask_word_tag(word_ids: WordIds, suppressed_ids: Sequence[int] = ()) -> dict[str, Any]:
    """Returns the tag: free text without codes and suppressed tokens, and words opened by their start."""
    codes = [{"type": "or", "elements": [_token(id_) for id_ in level]} for level in word_ids.codes]
    word = {
        "type": "tag",
        "begin": _token(word_ids.start),
        "content": {"type": "sequence", "elements": codes},
        "end": _token(word_ids.end),
    }
    return {
        "type": "structural_tag",
        "format": {
            "type": "token_triggered_tags",
            "trigger_tokens": [word_ids.start],
            "exclude_tokens": [*word_ids.all[1:], *suppressed_ids],
            "tags": [word],
        },
    }


def _token(id_: int) -> dict[str, Any]:
    return {"type": "token", "token": id_}
