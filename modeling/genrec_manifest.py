"""
`manifest.json`: what the files of a folder held when they were saved, so that damaged ones are refused.

A folder and names of its files come in; a SHA-256 of each goes out at saving, and is compared at loading, whether the
folder lies on this disk or on the Hub: a flipped bit in weights, titles or settings would give other items without any
error. Folders saved before there was a manifest have nothing to compare.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from transformers.utils import cached_file


MANIFEST_FILE = "manifest.json"
_MODEL_FILES = ("config.json", "generation_config.json", "recommend_config.json", "model*.safetensors*", "*.py")


def write_manifest(folder: str | Path, patterns: Iterable[str] = _MODEL_FILES) -> None:
    """
    Record the files of a folder that fit one of the `patterns` (those of a model by default); other entries stay.
    """
    folder, patterns = Path(folder), list(patterns)
    path = folder / MANIFEST_FILE
    files = _entries(path) if path.is_file() else {}
    files = {name: digest for name, digest in files.items() if not _fits(name, patterns)}
    for found in (found for entry in patterns for found in folder.glob(entry) if found.is_file()):
        files[found.relative_to(folder).as_posix()] = _digest_of(found)
    content = {"files": dict(sorted(files.items())), "digest": _digest_of_entries(files)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_manifest(source: str | Path, is_read: Callable[[str], bool], **where) -> None:
    """
    Whether files of a folder or repository are those that were saved.

    `is_read`: which names are compared; those of a repository are fetched. `where`: `revision`, `cache_dir`, ... as in
    `transformers.utils.cached_file`. Raises `ValueError` for the first file that differs, `OSError` for a missing one.
    """
    kinds = ("missing_entries", "gated_repo", "connection_errors")
    manifest = cached_file(
        str(source), MANIFEST_FILE, **where, **{f"_raise_exceptions_for_{kind}": False for kind in kinds}
    )
    if manifest is None:
        return
    for name, expected in _entries(Path(manifest)).items():
        if is_read(name):
            path = cached_file(str(source), name, **where)
            if path is None:  # transformers' answer for a missing config.json
                raise FileNotFoundError(f"{source} has no {name}, which {manifest} records. Fetch the folder again.")
            found = _digest_of(path)
            if found != expected:
                raise ValueError(
                    f"{path} is not the file that was saved: its SHA-256 begins with {found[:12]}, {manifest} records "
                    f"{expected[:12]}. It is damaged, or of another save: write or fetch the folder again. If it was "
                    f"edited on purpose, pass `check_files=False`, or delete {MANIFEST_FILE} to compare nothing."
                )


def is_model_file(name: str, *, has_code: bool) -> bool:
    """Whether loading a model reads a file; its code only where that is not imported from a package."""
    return _fits(name, _MODEL_FILES[: None if has_code else -1])


def check_finite(model: torch.nn.Module, source: str | Path) -> None:
    """Whether all weights are numbers: `ValueError` for NaN or infinity, which `source` holds or would hold."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"The weights of {source} (model.safetensors) must be finite; `{name}` holds {count} NaN or infinite "
                "values. The training broke down: train again with a smaller learning rate or in float32, or use an "
                "earlier checkpoint."
            )


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, entry) and name.count("/") == entry.count("/") for entry in patterns)


def _entries(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        is_whole = content["digest"] == _digest_of_entries(files)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} is damaged: it must be the one that was saved. Write or fetch the folder again.")
    return files


def _digest_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_entries(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


__all__ = ["MANIFEST_FILE", "check_finite", "check_manifest", "is_model_file", "write_manifest"]
