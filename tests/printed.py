"""What the documentation prints: its pages, links, names, and the commands that a reader would copy."""

import ast
import re
import runpy
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (
    *(README, ROOT / "CHANGELOG.md", ROOT / "infra/README.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "samtok/weights").rglob("*.md")),
)
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SUBMIT = ("ray", "job", "submit")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the number of its first line."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a ``bash`` block, or of a job's docstring, as the shell splits it."""

    where: str
    words: tuple[str, ...]

    @property
    def is_submitted(self) -> bool:
        """Whether it is ``ray job submit``."""
        return self.words[:3] == _SUBMIT

    @property
    def takes_code_along(self) -> bool:
        """Whether it is submitted with ``--working-dir``."""
        return self.is_submitted and "--working-dir" in self.words

    @property
    def job(self) -> str | None:
        """Name of the job that it runs, if it runs one."""
        script = next((word for word in self.words if re.fullmatch(r"jobs/\w+\.py", word)), None)
        return None if script is None else Path(script).stem

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of its job."""
        return self.words[self.words.index(f"jobs/{self.job}.py") + 1 :]

    def __str__(self) -> str:
        return f"{self.where} {' '.join(self.words[:8])}"


def name_of(page: Path) -> str:
    """Returns a page's path as it is written in the documentation."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(name_of(page), text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in _BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """Returns a page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[Command]:
    """Returns the commands of a page's ``bash`` blocks, in order."""
    return [
        command
        for block in blocks(page)
        if block.language == "bash"
        for command in _commands(block.text, block.page, block.line)
    ]


def docstring_commands(job: str) -> list[Command]:
    """Returns the commands of the docstring of ``jobs/NAME.py``: its indented lines."""
    path = ROOT / "jobs" / f"{job}.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""
    indented = "\n".join(line if line.startswith("    ") else "" for line in doc.splitlines())
    return _commands(indented, name_of(path), 1)


def _commands(text: str, page: str, first: int) -> list[Command]:
    found: list[Command] = []
    joined, start = "", first
    for number, line in enumerate(text.splitlines(), first):
        start = start if joined else number
        joined += line.removesuffix("\\") + " " if line.endswith("\\") else line
        if not line.endswith("\\"):
            words = shlex.split(joined, comments=True)
            joined = ""
            if words:
                found.append(Command(f"{page}:{start}", tuple(words)))
    return found


# ---------------------------------------------------------------- jobs


@cache
def parsed_by(job: str) -> tuple[type, Mapping[str, Any]]:
    """Returns the config class and the presets that a job gives to ``cli.parse``."""
    path = ROOT / "jobs" / f"{job}.py"
    names = runpy.run_path(str(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.parse":
            kind, presets = (names[ast.unparse(argument)] for argument in node.args[:2])
            return kind, presets
    raise AssertionError(f"{path} does not call cli.parse")


# ---------------------------------------------------------------- links


def links(page: Path) -> Iterator[str]:
    """Yields the targets of a page's links and pictures that lie in the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"\w+://", target):
            yield target


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found
