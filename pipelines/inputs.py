"""Inputs of a job that are not there are refused before it begins, with the command that makes them."""

from pipelines import storage
from samtok import folders
from samtok.errors import ConfigError


def require(place: str, *, flag: str, command: str, file: str | None = None, owner: object = None) -> None:
    """Refuses a place that is neither a file nor a folder with files (or with ``file`` in it).

    ConfigError names the place, its flag, and the command that makes one. ``owner`` is the config object that
    has the flag, if that begins with ``--.``.
    """
    where = place if file is None else storage.join(place, file)
    if not (storage.exists(where) or (file is None and storage.list_files(place, limit=1))):
        raise ConfigError(
            f"{flag}: there is no {where}. `{command}` makes one; or give another place.", owner=owner
        )


def require_tokenizer(uri: str, *, flag: str = "--tokenizer", owner: object = None) -> None:
    """Refuses a tokenizer that neither ships with the package nor is there; raises as ``require``."""
    if not folders.is_shipped(uri):
        command = "python jobs/train_tokenizer.py --preset micro"  # in OUT/final
        require(uri, flag=flag, command=command, file=folders.CONFIG_FILE, owner=owner)


def require_model(uri: str, *, flag: str = "--model", owner: object = None) -> None:
    """Refuses an MLLM that neither ships with the package nor is there; raises as ``require``."""
    if not folders.is_shipped(uri):
        command = f"python jobs/extend_mllm.py --preset smoke --out {uri}"
        require(uri, flag=flag, command=command, file=folders.CONFIG_FILE, owner=owner)
