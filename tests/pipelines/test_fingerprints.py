"""Code that decides results does not change under the version that fingerprints hold."""

import pytest

from tests import golden_fingerprints as golden


def test_a_version_is_raised_with_what_decides_results_and_a_changed_preset_is_recorded():
    assert not golden.faults(), "\n".join(golden.faults().values())


def test_every_stage_with_a_version_and_every_preset_is_recorded():
    prepared = golden.ROOT.glob("pipelines/*/prepare.py")
    versioned = {path.parent.name for path in prepared if "\nCODE_VERSION = " in path.read_text()}
    assert versioned == set(golden.CODE) == set(golden.recorded()["code"])
    assert len(golden.recorded()["presets"]) > len(golden.printed.JOBS)


SOURCE = '''
"""A module."""
import json
LIMIT = 3
def half(x: int) -> float:
    """Returns a half."""
    if x > LIMIT:
        raise ValueError(f"{x} is too large")
    return x / 2
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Returns a half.", "Half of it.", True),
        ("is too large", "must be <= 3", True),
        ("import json", "import json as text", True),
        ("x: int", "x: float", True),
        ("return x / 2", "return x / 2  # exact", True),
        ("LIMIT = 3", "LIMIT = 4", False),
        ("x / 2", "x // 2", False),
        ("ValueError", "TypeError", False),
    ],
)
def test_wording_is_no_change_and_code_is(old: str, new: str, same: bool):
    assert (golden.digest_of(SOURCE) == golden.digest_of(SOURCE.replace(old, new))) == same


def test_a_change_is_named_with_the_way_out():
    code = golden.code_of("dialogues") | {"samtok/words.py": "0"}
    before = {"version": golden.version_of("dialogues"), "code": code}
    fault = golden.fault_of("dialogues", before) or ""
    assert "samtok/words.py changed and CODE_VERSION" in fault and "--same-output" in fault
    raised = golden.fault_of("dialogues", before | {"version": -1}) or ""
    assert "recorded for -1" in raised
