"""Every command that messages, reports and help texts print is one that runs: jobs are run dry."""

import ast
import importlib.util
import re
import runpy
import shlex
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from tests.printed import JOBS, ROOT

_COMMAND = re.compile(r"python (?:jobs/\w+\.py|-m [\w.]+)[^`\n|;)]*|`make [a-z-]+`")
_PLACE = "PLACE"
"""Stands for what is filled in later."""
_PROSE = re.compile(r" (makes|does|for|See|from|was|were|goes|in)\b.*")
"""Where a command ends that is not set between marks."""


def _texts(path: Path) -> set[str]:
    """Returns the texts of a module that may print commands; ``_PLACE`` is in them for the rest."""
    source = path.read_text(encoding="utf-8")
    if "python " not in source and "`make" not in source:
        return set()
    tree = ast.parse(source)
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    found = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
    }
    for node in joined:
        texts = [str(part.value) if isinstance(part, ast.Constant) else _PLACE for part in node.values]
        found.add("".join(texts))
    return found


@cache
def _commands() -> list[str]:
    found = set()
    for package in ("pipelines", "samtok"):
        for path in (ROOT / package).rglob("*.py"):
            for text in _texts(path):
                for match in _COMMAND.findall(text):
                    found.add(_PROSE.sub("", match.strip("`")).strip().rstrip(".,\"'"))
    return sorted(text for text in found if "NAME" not in text)  # which stands for any of them


def _filled(command: str) -> list[list[str]]:
    """Returns the words of a command; a name of a job that is filled in becomes that of each job."""
    script = f"jobs/{_PLACE}.py"
    names = JOBS if script in command else [""]
    return [shlex.split(command.replace(script, f"jobs/{name}.py")) for name in names]


WORDS = [words for command in _commands() for words in _filled(command)]


def test_commands_are_found():
    lines = [" ".join(words) for words in WORDS]
    assert "python jobs/train_tokenizer.py --preset micro" in lines and len(lines) > 8


@pytest.mark.parametrize("words", [words for words in WORDS if words[1].startswith("jobs/")], ids=" ".join)
def test_a_job_that_a_text_names_runs_dry(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    filled = {"--format": "coco"}
    flags = [word.replace(_PLACE, filled.get(before, "place")) for before, word in pairwise(words[1:])]
    main = runpy.run_path(str(ROOT / words[1]))["main"]
    assert main([*flags, "--dry-run"]) == 0, capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", sorted({words[2] for words in WORDS if words[1] == "-m"}))
def test_a_module_that_a_text_names_can_be_run(module):
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    assert 'if __name__ == "__main__":' in Path(spec.origin).read_text()


@pytest.mark.parametrize("words", [words for words in WORDS if words[0] == "make"], ids=" ".join)
def test_a_target_that_a_text_names_is_there(words):
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
