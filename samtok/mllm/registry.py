"""The families of MLLMs that are known, and what a job must know of one before it loads torch.

A family is one file with an ``Adapter``, and for ``--tiny`` a function that builds a tiny one. Families of
samtok stand in ``FAMILIES``; others register themselves in modules that the environment variable
``SAMTOK_FAMILIES`` names (docs/families.md).
"""

import importlib
import os
import pkgutil
from dataclasses import dataclass
from typing import Any

from samtok.errors import CheckpointError, ConfigError

VARIABLE = "SAMTOK_FAMILIES"
"""Environment variable with modules of further families, separated by commas."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family; what needs torch is named as ``package.module:name`` and loads with its first use.

    Attributes:
        name: The ``model_type`` of its ``config.json``.
        adapter: Its subclass of ``family.Adapter``.
        tiny: Makes a tiny one, as ``tiny.models.Built``; None where there is none.
        mrope: Positions follow from ``mm_token_type_ids``; only such rows can be packed without leaks.
        sized: Sees an image in its own shape, between two limits of pixels.
        older: transformers 4.57 knows it too, so what is exported is written for both.
    """

    name: str
    adapter: str
    tiny: str | None = None
    mrope: bool = False
    sized: bool = False
    older: bool = False

    def load(self, what: str) -> Any:
        """Imports ``adapter`` or ``tiny``."""
        return pkgutil.resolve_name(getattr(self, what))


_QWEN = {"mrope": True, "sized": True}
_TINY = "samtok.mllm.tiny.models"

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="qwen2_5_vl",
            adapter="samtok.mllm.qwen:Qwen2_5VLAdapter",
            tiny=f"{_TINY}:qwen2_5_vl",
            older=True,
            **_QWEN,
        ),
        Family(
            name="qwen3_vl",
            adapter="samtok.mllm.qwen:Qwen3VLAdapter",
            tiny=f"{_TINY}:qwen3_vl",
            older=True,
            **_QWEN,
        ),
        Family(name="qwen3_5", adapter="samtok.mllm.qwen:Qwen3_5Adapter", tiny=f"{_TINY}:qwen3_5", **_QWEN),
        Family(
            name="perception_lm",
            adapter="samtok.mllm.perception_lm:PerceptionLMAdapter",
            tiny=f"{_TINY}:perception_lm",
            older=True,
        ),
    )
}
"""By name; ask ``known``, which has those of ``SAMTOK_FAMILIES`` too."""


def register(family: Family) -> None:
    """Makes a family known; the same again changes nothing.

    Raises:
        ValueError: Another one has its name.
    """
    if FAMILIES.setdefault(family.name, family) != family:
        raise ValueError(f"there is a family {family.name} already: {FAMILIES[family.name].adapter}.")


def known() -> dict[str, Family]:
    """Returns all families by name.

    Raises:
        ConfigError: A module of ``SAMTOK_FAMILIES`` cannot be imported.
    """
    for module in filter(None, os.environ.get(VARIABLE, "").split(",")):
        try:
            importlib.import_module(module.strip())
        except Exception as error:
            raise ConfigError(
                f"{VARIABLE} names the module {module.strip()}, which cannot be imported "
                f"({type(error).__name__}: {str(error)[:300]}). Put its folder on PYTHONPATH, or repair it."
            ) from error
    return FAMILIES


def family_of(name: str) -> Family:
    """Returns a family; CheckpointError if it has no adapter."""
    families = known()
    if name in families:
        return families[name]
    dense = name.removesuffix("_moe")
    if dense != name and dense in families:
        raise CheckpointError(
            f"a {name} is a mixture of experts, whose training is not supported; give a dense {dense}."
        )
    raise CheckpointError(
        f"there is no adapter for {name!r}; known families are {', '.join(families)}. How to add one stands "
        "in docs/families.md."
    )
