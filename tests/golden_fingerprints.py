"""What decides results: digests of a stage's code beside its version, and of the settings of every preset.

    python -m tests.golden_fingerprints                          names the stages whose code changed
    python -m tests.golden_fingerprints --record                 after CODE_VERSION was raised
    python -m tests.golden_fingerprints --record --same-output "COMMAND"

The last one is for changes of code that leave all results as they were: it names the comparison that shows
it, such as ``python -m tests.benchmarks.shard_bytes``, and the name is kept beside the digests.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from tests import printed

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/fingerprints.json"

WORDS = ("samtok/words.py", "samtok/masks.py", "pipelines/schema.py")
CORPORA = (*WORDS, "samtok/images.py", "pipelines/ingestion/*.py", "pipelines/shards.py")
TOKENIZER = ("samtok/config.py", "samtok/mask_resize.py", "samtok/model/*.py")
MLLM = ("samtok/mllm/*.py",)
CHATS = (*WORDS, "pipelines/chats/*.py")
TRAINING = ("pipelines/training/*.py",)
LOSSES = "samtok/losses.py"

CODE: dict[str, tuple[str, ...]] = {
    "tokenization": (*CORPORA, *TOKENIZER, "pipelines/tokenization/*.py"),
    "dialogues": (*WORDS, "pipelines/shards.py", "samtok/mllm/chat.py", "pipelines/dialogues/*.py"),
    "cold_start": (*CHATS, *MLLM, "samtok/rewards/*.py", "pipelines/cold_start/*.py"),
    "sft": (*CHATS, *MLLM, *TRAINING, "pipelines/sft/*.py"),
    "tokenizer_training": (*CORPORA, *TOKENIZER, *TRAINING, LOSSES, "pipelines/tokenizer_training/*.py"),
    "mllm_evaluation": (*CHATS, *MLLM, "samtok/metrics/*.py", "pipelines/mllm_evaluation/*.py"),
    "grpo": (*CHATS, *MLLM, *TRAINING, "samtok/rewards/*.py", "samtok/rl/*.py", "pipelines/grpo/**/*.py"),
}
"""Code that decides the results of each stage that has a version of its own."""

DECIDES_NOTHING = {
    *(
        "__init__.py",
        "config.py",
        "job.py",
        "run.py",
        "presets.py",
        "prepare.py",
        "progress.py",
        "outcome.py",
    ),
    *("report.py", "report_curves.py", "report_glossary.py", "report_metrics.py", "trajectory_page.py"),
    *("pictures.py", "export.py", "alarms.py", "journal.py", "progress.py", "policies.py", "earnings.py"),
    *("collapse.py", "series.py", "none_edge.py"),
}
"""Names of files that a pattern finds besides: flags, order of work, what is printed or drawn."""


def version_of(stage: str) -> int:
    """Returns the ``CODE_VERSION`` of a stage, read from its source."""
    tree = ast.parse((ROOT / f"pipelines/{stage}/prepare.py").read_text())
    found = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CODE_VERSION"
    ]
    return ast.literal_eval(found[0])


def code_of(stage: str) -> dict[str, str]:
    """Returns a digest of each file of the code that decides the results of a stage."""
    paths = {path for pattern in CODE[stage] for path in _found(pattern)}
    kept = sorted(path for path in paths if path.name not in DECIDES_NOTHING)
    return {path.relative_to(ROOT).as_posix(): digest_of(path.read_text()) for path in kept}


def _found(pattern: str) -> list[Path]:
    found = list(ROOT.glob(pattern))
    assert found, f"no file is named {pattern}"
    return found


def digest_of(source: str) -> str:
    """Returns a digest of a file's code that wording, layout, annotations and imports do not change."""
    tree = _Bare().visit(ast.parse(source))
    return hashlib.sha256(_dump(tree).encode()).hexdigest()[:16]


def _dump(node: object) -> str:
    """Returns a tree as text that is the same for every Python: fields that are empty are left out, since
    later ones have more of them."""
    if isinstance(node, list):
        return f"[{', '.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return f"{type(node).__name__}({', '.join(f'{name}={_dump(value)}' for name, value in fields)})"


class _Bare(ast.NodeTransformer):
    """Takes out what decides no result: docstrings, imports, annotations, log lines, texts of errors."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        logged = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).startswith("log.")
        return ast.Pass() if text or logged else self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=kind, cause=None)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def presets() -> dict[str, str]:
    """Returns a digest of the settings of every preset, by ``JOB --preset NAME``."""
    return {
        f"{job} --preset {name}": hashlib.sha256(
            json.dumps(dataclasses.asdict(config), default=str, sort_keys=True).encode()
        ).hexdigest()[:16]
        for job in printed.JOBS
        for name, config in printed.parsed_by(job)[1].items()
    }


def recorded() -> dict[str, Any]:
    """Returns what was recorded: ``code`` by stage, and ``presets``."""
    return json.loads(GOLDEN.read_text())


def faults() -> dict[str, str]:
    """Returns what is wrong in comparison with the record, by stage or preset."""
    before = recorded()
    found = {stage: fault for stage, own in before["code"].items() if (fault := fault_of(stage, own))}
    now = presets()
    for name in sorted({*now, *before["presets"]}):
        if now.get(name) != before["presets"].get(name):
            found[name] = (
                f"{name}: its settings changed, so the same command gives other results or resumes no "
                "earlier run. Say it in CHANGELOG.md and run `python -m tests.golden_fingerprints --record`."
            )
    return found


def fault_of(stage: str, before: dict[str, Any]) -> str | None:
    """Returns what is wrong with a stage in comparison with its record; None if it holds."""
    version, code = version_of(stage), code_of(stage)
    changed = sorted(name for name in {*code, *before["code"]} if code.get(name) != before["code"].get(name))
    if not changed and version == before["version"]:
        return None
    if version != before["version"]:
        return (
            f"{stage}: CODE_VERSION is {version}, recorded for {before['version']}. Record it: "
            "`python -m tests.golden_fingerprints --record`."
        )
    return (
        f"{stage}: {', '.join(changed)} changed and CODE_VERSION of pipelines/{stage}/prepare.py did not. "
        "If results can differ, raise it and run `python -m tests.golden_fingerprints --record`. If they "
        'cannot, show it and run `python -m tests.golden_fingerprints --record --same-output "COMMAND"`.'
    )


def main() -> int:
    """Compares, or records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="write tests/golden/fingerprints.json")
    parser.add_argument("--same-output", metavar="COMMAND", help="what showed that results are as before")
    options = parser.parse_args()
    before, wrong = recorded(), faults()
    unshown = [s for s, own in before["code"].items() if s in wrong and version_of(s) == own["version"]]
    if not options.record or (unshown and not options.same_output):
        sys.stdout.write("".join(f"{fault}\n" for fault in wrong.values()))
        return int(bool(wrong))
    code = {}
    for stage in CODE:
        shown = options.same_output if stage in unshown else before["code"].get(stage, {}).get("same_output")
        code[stage] = {"version": version_of(stage), "code": code_of(stage), "same_output": shown}
    now = {"code": code, "presets": presets()}
    GOLDEN.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
