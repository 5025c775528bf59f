"""Measures how a checkout is built: size, near-copies, folders, imports between stages, flags of jobs.

    python -m tests.benchmarks.structure [OLD [NEW]]     this checkout, another one, or two beside each other

Prints Markdown in 15 seconds per checkout. Sources are read, and every job prints its help.

Code is compared by lines in which all names are alike, and all strings, and all numbers; imports, docstrings,
comments and lines of brackets alone are left out. Near-copies are two places that share ten such lines or
more in one order: runs of at least two, with at most two other lines between runs; an exact copy has nothing
between. With fewer than five different lines (fields, rows of a table) a copy says nothing and is left out.
"""

import argparse
import ast
import io
import keyword
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

PRODUCT = ("samtok", "pipelines", "jobs")
STAGES = (
    *("tokenization", "dialogues", "cold_start", "sft", "tokenizer_training", "tokenizer_evaluation"),
    *("mllm_evaluation", "sweeps", "extension", "grpo"),
)
RENAMED = {"evaluation": "tokenizer_evaluation"}
"""Folders of stages by names that they had before."""
COPY_LINES, RUN_LINES, LEAST_DIFFERENT, GAP = 10, 2, 5, 2
LONG_FILE, LARGEST = 500, 10

Lines = list[tuple[str, int]]
"""Lines of code in normal form, each with its number in the file."""
Run = tuple[int, int, int]  # index in one file, index in another, number of equal lines from there


class Checkout:
    """A checkout, and what is measured of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        paths = sorted(path for folder in PRODUCT for path in (root / folder).rglob("*.py"))
        self.sources = {path.relative_to(root).as_posix(): path.read_text() for path in paths}
        self.num_lines = {path: len(text.splitlines()) for path, text in self.sources.items()}
        self.folders = Counter(str(path.relative_to(root).parent) for path in paths).most_common()
        code = {path: code_lines(text) for path, text in self.sources.items()}
        self.copies, self.exact = near_copies(code, gap=GAP), near_copies(code, gap=0)

    @cached_property
    def stage_imports(self) -> dict[str, int]:
        """Pairs of stages of which the first imports the second, with the number of such imports."""
        found: Counter[str] = Counter()
        for path, text in self.sources.items():
            if stage := stage_of(path.removesuffix(".py").split("/")):
                others = (stage_of(name.split(".")) for name in imported(path, ast.parse(text)))
                found.update(f"{stage} -> {other}" for other in others if other and other != stage)
        return dict(sorted(found.items()))

    @cached_property
    def flags(self) -> dict[str, int]:
        """Flags of every job, those of the help left out."""
        jobs = [Path(path).stem for path in self.sources if path.startswith("jobs/")]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return dict(zip(jobs, threads.map(self._flags_of, jobs), strict=True))

    def _flags_of(self, job: str) -> int:
        whole = any("--help-all" in text for text in self.sources.values())
        command = [sys.executable, f"jobs/{job}.py", "--help-all" if whole else "--help"]
        env = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONUTF8": "1"}
        done = subprocess.run(command, cwd=self.root, env=env, capture_output=True, timeout=120, check=False)
        if done.returncode:
            raise SystemExit(f"jobs/{job}.py of {self.root} prints no help:\n{done.stderr.decode()[-2000:]}")
        # One space before a flag; its explanation, of which a line may begin with a flag too, is further in.
        found = re.findall(r"^[^\w-]? (?:-h, )?(--[a-z0-9][\w.-]*)", done.stdout.decode(), re.MULTILINE)
        return len(set(found) - {"--help", "--help-all"})


# ---------------------------------------------------------------- near-copies


def code_lines(text: str) -> Lines:
    """Returns the lines of code of a file in normal form."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        value = getattr(node, "value", None) if isinstance(node, ast.Expr) else node
        if isinstance(value, ast.Constant | ast.Import | ast.ImportFrom) and isinstance(node, ast.stmt):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    words: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.start[0] not in skipped:
            words[token.start[0]].append(_normal(token))
    lines = ((" ".join(filter(None, found)), number) for number, found in sorted(words.items()))
    return [line for line in lines if any(char.isalnum() for char in line[0])]


def _normal(token: tokenize.TokenInfo) -> str:
    kind = tokenize.tok_name[token.type]
    if kind == "OP" or keyword.iskeyword(token.string):
        return token.string
    return {"NAME": "name", "NUMBER": "0", "STRING": "text", "FSTRING_START": "text"}.get(kind, "")


def near_copies(files: dict[str, Lines], *, gap: int) -> list[tuple[int, str, str]]:
    """Finds pairs of places with much the same code; of three places there are three pairs.

    Args:
        files: Lines of code by file.
        gap: Most lines between two runs of a copy, on either side.

    Returns:
        Equal lines of each copy, and where it begins, as ``FILE:LINE`` twice; the longest first.
    """
    copies = []
    for (first, second), runs in _equal_runs(files).items():
        for chain in _chains(runs, gap, apart=first == second):
            texts = [files[first][i + k][0] for i, _, size in chain for k in range(size)]
            if len(texts) >= COPY_LINES and len(set(texts)) >= LEAST_DIFFERENT:
                i, j, _ = chain[0]
                places = f"{first}:{files[first][i][1]}", f"{second}:{files[second][j][1]}"
                copies.append((len(texts), *places))
    return sorted(copies, key=lambda copy: (-copy[0], copy))


def _equal_runs(files: dict[str, Lines]) -> dict[tuple[str, str], list[Run]]:
    """Finds all runs of at least ``RUN_LINES`` equal lines, each as long as it can be, in order."""
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for path, lines in files.items():
        for start in range(len(lines) - RUN_LINES + 1):
            window = tuple(text for text, _ in lines[start : start + RUN_LINES])
            places[window].append((path, start))
    shifts: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for found in places.values():
        for (first, i), (second, j) in combinations(found, 2):
            shifts[first, second][j - i].append(i)
    runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for pair, starts in shifts.items():
        for shift, found in starts.items():
            # Numbers that follow each other keep their distance to their place in the order.
            for _, group in groupby(enumerate(sorted(found)), lambda item: item[1] - item[0]):
                members = [i for _, i in group]
                runs[pair].append((members[0], members[0] + shift, len(members) + RUN_LINES - 1))
    return runs


def _chains(runs: list[Run], gap: int, *, apart: bool) -> Iterator[list[Run]]:
    """Joins runs that follow each other closely on both sides; ``apart``: the two sides must not overlap."""
    left = sorted(runs)
    while left:
        chain = [left.pop(0)]
        i, j, size = chain[0]
        for run in list(left):
            if 0 <= run[0] - i - size <= gap and 0 <= run[1] - j - size <= gap:
                chain.append(run)
                left.remove(run)
                i, j, size = run
        if not apart or i + size <= chain[0][1]:
            yield chain


# ---------------------------------------------------------------- imports


def stage_of(parts: list[str]) -> str | None:
    """Returns the stage that a module belongs to, by the parts of its name."""
    name = RENAMED.get(parts[1], parts[1]) if len(parts) > 1 else ""
    return name if parts[0] == "pipelines" and name in STAGES else None


def imported(path: str, tree: ast.Module) -> Iterator[str]:
    """Yields the modules that a file imports anywhere; ``from a import b`` as ``a.b``, once per ``a``."""
    package = list(Path(path).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = [*above, *node.module.split(".")] if node.module else above
            names = {".".join([*module, alias.name]) for alias in node.names}
            yield from {".".join(module)} if stage_of(module) else names


# ---------------------------------------------------------------- tables


def table(title: str, names: list[str], rows: Sequence[tuple[object, ...]]) -> str:
    """Formats rows as a Markdown table below a heading; None is a dash."""
    cells = [("", *names), ("---", *("---:" for _ in names)), *rows]
    lines = [" | ".join("-" if cell is None else str(cell) for cell in row) for row in cells]
    return "\n".join([f"## {title}", "", *(f"| {line} |" for line in lines)])


def by_key(columns: Sequence[dict[Any, Any]]) -> list[tuple[object, ...]]:
    """Makes a row of every key, with its value in each column."""
    return [(key, *(c.get(key) for c in columns)) for key in dict.fromkeys(k for c in columns for k in c)]


def summary(checkout: Checkout) -> dict[str, int]:
    """Returns the figures of a checkout."""
    lines = checkout.num_lines.values()
    return {
        "product lines": sum(lines),
        "product files": len(lines),
        f"files over {LONG_FILE} lines": sum(count > LONG_FILE for count in lines),
        f"near-copies of {COPY_LINES} lines or more": len(checkout.copies),
        "lines in them": sum(size for size, *_ in checkout.copies),
        "exact ones among them": len(checkout.exact),
        "files in the largest folder": checkout.folders[0][1],
        "pairs of stages, the first importing the second": len(checkout.stage_imports),
        "flags of all jobs": sum(checkout.flags.values()),
    }


def report(checkouts: list[Checkout]) -> str:
    """Returns all tables as Markdown."""
    names = ["before", "after"] if len(checkouts) == 2 else ["now"]
    folders = [[f"{name}: {count}" for name, count in c.folders[:LARGEST]] for c in checkouts]
    copies = [[f"{size}: {a}, {b}" for size, a, b in c.copies[:LARGEST]] for c in checkouts]
    tables = {
        "Figures": [summary(c) for c in checkouts],
        "Flags of each job": [c.flags for c in checkouts],
        "Imports from stage to stage": [c.stage_imports for c in checkouts],
        "Largest folders, in files": [dict(enumerate(column, start=1)) for column in folders],
        f"Files over {LONG_FILE} lines": [
            {path: count for path, count in c.num_lines.items() if count > LONG_FILE} for c in checkouts
        ],
        "Longest near-copies, in equal lines": [dict(enumerate(column, start=1)) for column in copies],
    }
    return "\n\n".join(table(title, names, by_key(columns)) for title, columns in tables.items())


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("roots", nargs="*", type=Path, default=[Path()], help="one checkout or two")
    if len(roots := parser.parse_args().roots) > 2:
        parser.error("give one checkout of this repository, or two")
    print(report([Checkout(root) for root in roots]))


if __name__ == "__main__":
    main()
