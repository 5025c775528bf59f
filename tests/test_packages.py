"""The oldest releases that pyproject.toml allows are ones that tests run."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_oldest_transformers_allowed_is_that_of_the_vllm_tests():
    """``make test-vllm`` runs what computes losses and samples on the transformers of this lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (allowed,) = [text for text in project["dependencies"] if text.startswith("transformers")]
    found = re.search(r"^transformers==([\d.]+)$", (ROOT / "infra/vllm/cpu.lock").read_text(), re.MULTILINE)
    assert found
    oldest = allowed.removeprefix("transformers>=").split(".")
    assert found[1].split(".")[: len(oldest)] == oldest
