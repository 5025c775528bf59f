"""The commit that results come from."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Returns the commit of the tree, with ``+`` if there are changes; ``unknown`` outside a checkout."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
