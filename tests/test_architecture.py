"""The rules that keep the tree readable: import arrows, sizes, light imports, a small submission."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {"samtok": set(), "pipelines": {"samtok"}, "jobs": {"samtok", "pipelines"}}
OURS = {*LAYERS, "tests", "infra"}
ROOMS = (
    *("tokenization", "tokenizer_training", "tokenizer_evaluation", "sweeps"),
    *("dialogues", "extension", "sft", "mllm_evaluation", "cold_start", "grpo"),
)
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


def test_ray_is_imported_by_the_cluster_module_first():
    """Ray reads its variables at import: an earlier one starts a cluster that it then cannot join."""
    code = (
        "import importlib, sys\n"
        "for room in sys.argv[1:]:\n"
        "    importlib.import_module(f'pipelines.{room}.run')\n"
        "    if 'ray' in sys.modules: sys.exit(f'{room} imports Ray')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *ROOMS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("job", [path.name for path in sources("jobs")])
def test_help_and_wrong_flags_answer_without_ray_and_torch(job: str):
    code = (
        "import runpy, sys; sys.argv = ['x', '--no-such-flag']\n"
        f"try: runpy.run_path({str(ROOT / 'jobs' / job)!r}, run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "sys.exit(code if not {'ray', 'torch'} & set(sys.modules) else 99)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 2, done.stderr.decode()[-2000:]


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


@pytest.mark.parametrize("lock", ["requirements.lock", "tests/s3_requirements.lock"])
def test_lock_files_pin_every_package_and_name_no_host(lock: str):
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) >= 2
    for line in lines:
        assert re.fullmatch(r"[\w.\[\],-]+==[\w.+!]+( ;.*)?", line.strip()), line
