"""What each family of MLLMs can do, and the test that shows it: the table of docs/families.md."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tests.tiny_mllm import FAMILIES, QWEN, VLLM

NAMES = {
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_5": "Qwen3.5, dense",
    "perception_lm": "PerceptionLM",
}


class Column(NamedTuple):
    """Something that a family can do: a test with each family that can, and those that cannot."""

    test: str
    families: tuple[str, ...] = FAMILIES
    others: Mapping[str, str] = MappingProxyType({})


_SAMTOK, _PIPELINES = "tests/samtok/test_mllm_models.py", "tests/pipelines/test_families.py"
_ZERO = (
    "tests/pipelines/test_engine_deepspeed.py::"
    "test_an_mllm_learns_the_same_with_tied_embeddings_and_rows_of_their_own_rate"
)

COLUMNS: dict[str, Column] = {
    "extend": Column(
        "tests/pipelines/test_extend_mllm.py::test_a_plain_checkpoint_is_extended_and_can_be_trained"
    ),
    "SFT": Column(f"{_PIPELINES}::test_each_family_is_fine_tuned_with_any_cut_into_batches"),
    "packing": Column(
        f"{_SAMTOK}::test_attention_within_dialogues_gives_the_loss_and_gradients_of_one_by_one", QWEN
    ),
    "ZeRO-1, 2, 3": Column(_ZERO),
    "generate": Column(f"{_SAMTOK}::test_a_batch_is_answered_like_its_prompts_one_by_one"),
    "vLLM": Column(
        "tests/vllm/test_engine.py::test_log_probabilities_agree_before_and_after_weights_change",
        VLLM,
        {"qwen3_5": "not on CPUs"},
    ),
    "GRPO": Column(f"{_PIPELINES}::test_each_family_learns_from_its_own_samples"),
    "export": Column(f"{_SAMTOK}::test_a_saved_model_comes_back_bit_for_bit"),
}


def table() -> str:
    """Returns the table in Markdown."""
    rows = [["family", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for family in FAMILIES:
        cells = [
            "yes" if family in column.families else column.others.get(family, "no")
            for column in COLUMNS.values()
        ]
        rows.append([f"{NAMES[family]} (`{family}`)", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
