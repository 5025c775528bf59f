"""The documentation agrees with the code: links, names, flags, commands, sizes."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.config import RunConfig
from pipelines.help import flags_of
from pipelines.renamed_flags import RENAMED, successor
from tests import printed
from tests.printed import JOBS, PAGES, README, ROOT, Command

GUIDE = [page for page in PAGES if page.name != "CHANGELOG.md"]
COMMON = {"preset", "config", "help", "help-all"}
OF_OTHERS = {"working-dir", "runtime-env-json"}
"""Flags of Ray's own commands."""


@cache
def flags_of_job(job: str) -> frozenset[str]:
    kind, _ = printed.parsed_by(job)
    return frozenset(flag.name.removeprefix("--") for flag in flags_of(kind))


# ---------------------------------------------------------------- links and names


@pytest.mark.parametrize("page", PAGES, ids=printed.name_of)
def test_links_lead_somewhere(page: Path):
    for target in printed.links(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} is not there"
        if anchor:
            assert anchor in printed.anchors(linked), f"{target}: {sorted(printed.anchors(linked))}"


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            ahead += [
                linked
                for target in printed.links(page)
                if (linked := (page.parent / target.partition("#")[0]).resolve()).suffix == ".md"
            ]
    assert {page for page in PAGES if "docs" in page.parts} <= reached


def test_the_readme_is_read_in_minutes():
    assert len(README.read_text().split()) <= 1700


@pytest.mark.parametrize("page", GUIDE, ids=printed.name_of)
def test_named_files_are_there(page: Path):
    spans = re.findall(r"`([^`\n]+)`", printed.prose(page))
    for span in spans:
        if re.match(r"(samtok|pipelines|jobs|tests|infra|docs)/[\w/.*-]*", span):
            path = span.partition(":")[0].split()[0]
            assert list(ROOT.glob(path.rstrip("/"))), f"{span} is not there"


def test_named_functions_are_there():
    named = [
        (page, *found)
        for page in GUIDE
        for found in re.findall(r"`((?:samtok|pipelines|jobs)/[\w/]+\.py):(\w+)`", page.read_text())
    ]
    assert len(named) >= 30
    for page, file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in names, f"{printed.name_of(page)}: {file}:{name} is not there"


def test_the_tree_of_the_readme_is_that_of_the_repository():
    tree = next(block.text for block in printed.blocks(README) if block.text.startswith("samtok/"))
    named, top = set(), ""
    for line in tree.splitlines():
        top = "" if not line.startswith(" ") else top
        for name in re.findall(r"(?<!\S)[\w/]+(?:/|\.py)(?!\S)", line):
            named.add(name if name.startswith("jobs/") else top + name)
            top = top or name
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing, f"{missing} are named and are not there"
    entries = [path for top in ("samtok", "pipelines") for path in (ROOT / top).iterdir()]
    rooms = {f"{path.relative_to(ROOT)}/" for path in entries if (path / "__init__.py").exists()}
    files = {str(path.relative_to(ROOT)) for path in entries if path.suffix == ".py"}
    there = rooms | {file for file in files if not file.endswith("__init__.py")}
    assert there <= named, f"{sorted(there - named)} are not named"


@pytest.mark.parametrize("page", PAGES, ids=printed.name_of)
def test_named_modules_are_there(page: Path):
    for module in re.findall(r"python -m ([\w.]+)", page.read_text()):
        if module.partition(".")[0] in ("samtok", "pipelines", "tests"):
            assert importlib.util.find_spec(module), f"{module} is not there"


# ---------------------------------------------------------------- flags


def _is_known(flag: str, known: frozenset[str] | set[str]) -> bool:
    name = flag.removeprefix("--")
    if name.endswith(".*"):
        return any(each.startswith(name.removesuffix("*")) for each in known)
    positive = ".".join(part.removeprefix("no-") for part in name.split("."))
    return name in known or positive in known


@pytest.mark.parametrize("page", GUIDE, ids=printed.name_of)
def test_flags_in_the_text_exist(page: Path):
    tools = {
        flag
        for path in (*(ROOT / "pipelines/tools").glob("*.py"), *(ROOT / "tests/benchmarks").glob("*.py"))
        for flag in re.findall(r'"--([\w-]+)"', path.read_text())
    }
    known = COMMON | OF_OTHERS | tools | {flag for job in JOBS for flag in flags_of_job(job)}
    for span in re.findall(r"`(--[^`\n]+)`", printed.prose(page)):
        for flag in re.findall(r"(?<!\S)--[\w.-]+\*?", span):
            assert _is_known(flag, known), f"{printed.name_of(page)}: no job has {flag}"


def _table() -> list[tuple[list[str], str]]:
    rows = [
        line.strip("|").split("|")
        for line in (ROOT / "docs/flags.md").read_text().splitlines()
        if "`--" in line
    ]
    return [(re.findall(r"`(--[^`]+)`", row[0]), row[-1].strip()) for row in rows if len(row) == 3]


@pytest.mark.parametrize(("flags", "named"), _table(), ids=lambda cell: str(cell)[:40])
def test_the_table_of_flags_names_the_jobs_that_have_them(flags: list[str], named: str):
    jobs = [job for job in JOBS if issubclass(printed.parsed_by(job)[0], RunConfig)]
    claimed = set(jobs) if named == "all" else set(named.split(", "))
    for flag in flags:
        having = {job for job in jobs if _is_known(flag, flags_of_job(job))}
        assert having == claimed & set(jobs), f"{flag}: {', '.join(job for job in jobs if job in having)}"


def test_every_renamed_flag_is_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    rows = dict(re.findall(r"\| `--([\w.*-]+)` \| `--([\w.*-]+)` \|", text))
    assert rows, "the table of renamed flags is not there"
    for old, new in RENAMED:
        assert re.search(rf"\| `--{re.escape(old)}` \| `--{re.escape(new)}` \|", text), f"--{old} | --{new}"
    for old, new in rows.items():
        assert "*" in old or successor(old, {new}) == new, f"--{old} is not refused with --{new}"


# ---------------------------------------------------------------- commands

JOB_LINES = [
    command
    for command in [
        *(command for page in GUIDE for command in printed.commands(page)),
        *(command for job in JOBS for command in printed.docstring_commands(job)),
    ]
    if command.job in JOBS
]


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.parametrize("command", JOB_LINES, ids=str)
def test_every_printed_job_line_is_a_config(command: Command):
    kind, presets = printed.parsed_by(command.job or "")
    cli.parse(kind, presets, list(command.flags), doc="")


def test_every_job_has_a_printed_line():
    assert {command.job for page in GUIDE for command in printed.commands(page)} >= set(JOBS)
