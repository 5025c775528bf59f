"""The rules that keep the tree readable: import arrows, sizes, light imports, a small submission."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.structure import STAGES, stage_of
from tests.benchmarks.structure import imported as modules_of

ROOT = Path(__file__).parent.parent
LAYERS = {"samtok": set(), "pipelines": {"samtok"}, "jobs": {"samtok", "pipelines"}}
OURS = {*LAYERS, "tests", "infra"}
KERNEL = (
    *(
        "cli",
        "cluster",
        "config",
        "env",
        "help",
        "inputs",
        "job",
        "provenance",
        "renamed_flags",
        "schema",
    ),
    *("rejects", "shard_job", "shard_pool", "shards", "tracking"),
)
SHARED = ("storage", "chats", "ingestion", "planning", "training", "reports", "generation", "judging")
ABOVE = ("embedded", "tools")
"""Rooms that may import stages."""
ALLOWED = {
    ("sweeps", "tokenizer_training"),
    ("sweeps", "tokenizer_evaluation"),
    ("tokenizer_evaluation", "tokenization"),
}
NO_PLACES = {"samtok.json", "samtok.mask_tokenizer", "samtok.__file__", "samtok.no_such", "jobs/NAME.py"}
"""What reads like a module or file of ours in texts and is none."""
HEAVY_FOR_SAMTOK = {"ray", "mlflow"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Returns the top-level packages that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def imported_modules(path: Path) -> set[str]:
    """Returns the modules of ours that a file imports, late imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                place = ROOT / name.replace(".", "/")
                found.add(name if place.is_dir() or place.with_suffix(".py").exists() else node.module)
    return found


def test_the_library_has_no_import_circles():
    arrows = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imported_modules(
            path
        )
        for path in sources("samtok")
    }
    for module in arrows:
        reached, ahead = set(), list(arrows[module])
        while ahead:
            new = ahead.pop()
            if new not in reached:
                reached.add(new)
                ahead += arrows.get(new, ())
        assert module not in reached, f"{module} imports itself by way of others"


def stage_imports(path: Path) -> set[tuple[str, str]]:
    """Returns the modules that a file imports anywhere, with the stage of each that belongs to one."""
    name = path.relative_to(ROOT).as_posix()
    modules = modules_of(name, ast.parse(path.read_text()))
    return {(module, stage) for module in modules if (stage := stage_of(module.split(".")))}


def test_no_stage_imports_another():
    found = {
        (stage, other)
        for stage in STAGES
        for path in sources(f"pipelines/{stage}")
        for _, other in stage_imports(path)
        if other != stage
    }
    assert found <= ALLOWED, "move what both stages need into a shared room (docs/architecture.md)"


def test_the_kernel_and_shared_rooms_import_no_stage():
    shared = [path for room in SHARED for path in sources(f"pipelines/{room}")]
    for path in [*(ROOT / "pipelines").glob("*.py"), *shared]:
        assert not stage_imports(path), path


def test_every_file_and_folder_of_the_pipelines_has_its_room():
    modules = {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__"}
    assert modules <= set(KERNEL)
    rooms = {path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert rooms <= {*STAGES, *SHARED, *ABOVE}


def test_texts_name_modules_and_files_that_exist():
    """So that nothing names a place of an earlier layout."""
    kinds = ("*.py", "*.md", "*.toml", "*.yaml", "*.yml", "Makefile")
    paths = [path for kind in kinds for folder in OURS for path in (ROOT / folder).rglob(kind)]
    wrong = []
    for path in [*paths, *(path for kind in kinds for path in ROOT.glob(kind) if path.stem != "CHANGELOG")]:
        text = path.read_text()
        files = re.findall(r"(?<![\w/.-])(?:samtok|pipelines|jobs|tests|infra)(?:/[\w.-]+)+\.\w+\b", text)
        names = re.findall(r"(?<![\w/.-])(?:samtok|pipelines)(?:\.\w+)+", text)
        wrong += [f"{path}: {file}" for file in files if not (ROOT / file).exists()]
        wrong += [f"{path}: {name}" for name in names if not _is_module(name)]
    wrong = [text for text in wrong if text.split()[-1] not in NO_PLACES]
    assert not wrong, "\n".join(wrong)


def _is_module(name: str) -> bool:
    """Whether a dotted name begins with a module of ours, or is a package or something in it."""
    place = ROOT
    for part in name.split("."):
        if (place / f"{part}.py").exists():
            return True
        if not (place / part).is_dir():
            return part in (place / "__init__.py").read_text()
        place /= part
    return True


@pytest.mark.parametrize("layer", LAYERS)
def test_arrows_go_from_jobs_to_pipelines_to_samtok(layer: str):
    for path in sources(layer):
        wrong = (imported(path) & OURS) - LAYERS[layer] - {layer}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_library_needs_neither_ray_nor_mlflow():
    for path in sources("samtok"):
        assert not imported(path) & HEAVY_FOR_SAMTOK, path


def test_no_file_is_long_and_none_hides_a_standard_module():
    for path in [p for folder in OURS for p in sources(folder)]:
        assert len(path.read_text().splitlines()) <= 500, path
        if path.parent in (ROOT / "jobs", ROOT):
            assert path.stem not in sys.stdlib_module_names, path


def test_jobs_hold_entry_points_only():
    for path in sources("jobs"):
        tree = ast.parse(path.read_text())
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert names == ["main"], path
        assert len(path.read_text().splitlines()) <= 40, path


@pytest.mark.parametrize(
    "module",
    [
        *("samtok", "samtok.words", "samtok.errors", "samtok.masks", "samtok.config", "samtok.shapes"),
        *("samtok.folders", "samtok.mllm.folder", "samtok.mllm.vocab", "pipelines.schema"),
    ],
)
def test_light_modules_load_no_torch(module: str):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'ray', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_ray_is_imported_by_the_cluster_module_first():
    """Ray reads its variables at import: an earlier one starts a cluster that it then cannot join."""
    code = (
        "import importlib, sys\n"
        "for room in sys.argv[1:]:\n"
        "    importlib.import_module(f'pipelines.{room}.run')\n"
        "    if 'ray' in sys.modules: sys.exit(f'{room} imports Ray')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *STAGES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_and_wrong_flags_answer_without_ray_and_torch():
    code = (
        "import runpy, sys\n"
        "for job in sys.argv[1:]:\n"
        "    sys.argv = [job, '--no-such-flag']\n"
        "    try: runpy.run_path(job, run_name='__main__')\n"
        "    except SystemExit as end: code = end.code\n"
        "    if code != 2: sys.exit(f'{job} ends with {code}')\n"
        "    if found := {'ray', 'torch'} & set(sys.modules): sys.exit(f'{job} imports {found}')\n"
    )
    command = [sys.executable, "-c", code, *map(str, sources("jobs"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_submission_stays_small():
    """``ray job submit --working-dir .`` packs what git and .rayignore leave."""
    ignored = [line.strip().rstrip("/") for line in (ROOT / ".rayignore").read_text().splitlines()]
    size = 0
    for folder, names, files in os.walk(ROOT):
        names[:] = [n for n in names if not _ignored(Path(folder) / n, ignored)]
        size += sum(
            (Path(folder) / f).stat().st_size for f in files if not _ignored(Path(folder) / f, ignored)
        )
    assert size < 12 * 2**20, f"{size / 2**20:.1f} MB"


def _ignored(path: Path, patterns: list[str]) -> bool:
    inside = path.relative_to(ROOT).as_posix()
    return any(inside == p or Path(path.name).match(p) or inside.startswith(f"{p}/") for p in patterns if p)


@pytest.mark.parametrize(
    "lock", ["requirements.lock", *(f"tests/{name}_requirements.lock" for name in ("s3", "older"))]
)
def test_lock_files_pin_every_package_and_name_no_host(lock: str):
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) >= 2
    for line in lines:
        assert re.fullmatch(r"[\w.\[\],-]+==[\w.+!]+( ;.*)?", line.strip()), line
