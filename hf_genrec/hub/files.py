"""
A run folder in, the files that its Hub repository holds out: what belongs there, what is local only, what is refused.

Training states, caches and results per user are local only. A token, or a path of this machine in a JSON file, is an
error; only the records of a run (`training.json`, `evaluation.json`) are published with such paths cut to their names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import safe_open

from hf_genrec.files import read_json, reading
from hf_genrec.modeling.genrec_folder import MANIFEST_FILE, check_manifest, manifest_of


Content = Path | bytes

CARD_NAME = "README.md"
NEIGHBORS_NAME = "item_neighbors.parquet"


def hub_files(folder: str | os.PathLike[str], *, neighbors: bool = False) -> dict[str, Content]:
    """
    The files of a run folder that its Hub repository holds, after checking that they may be published.

    Args:
        folder (`str` or `Path`): What training or [`save_recommender`] wrote.
        neighbors (`bool`, *optional*, defaults to `False`):
            Whether `item_neighbors.parquet` is published, for the item-kNN column of the Space. Privacy: from its
            similarities and counts a reader can work out how many users took any two items.

    Returns:
        `dict[str, Path | bytes]`: place in the repository to file, to the content where a record had to be cleaned; in
        alphabetical order.

    Raises:
        FileNotFoundError: If the folder is not a complete recommender, or lacks the neighbours asked for.
        ValueError: If a file is damaged, holds a token, or is JSON with a path of this machine.
    """
    folder = Path(folder)
    code = code_files(folder)
    names = [name for name in _names_in(folder) if is_published(name, code, neighbors=neighbors)]
    _check_complete(folder, names, code)
    if neighbors and NEIGHBORS_NAME not in names:
        raise FileNotFoundError(
            f"There is no {NEIGHBORS_NAME} in {folder} that `neighbors=True` could publish. `hf-genrec evaluate RUN "
            "DATA` writes it."
        )
    contents = {name: checked_content(folder / name, name) for name in names}
    if check_manifest(folder, contents.__contains__):  # of what is published, as it is published
        contents[MANIFEST_FILE] = manifest_of(contents, folder / MANIFEST_FILE)
    return contents


def files_left_out(folder: str | os.PathLike[str], *, neighbors: bool = False) -> dict[str, tuple[int, str]]:
    """
    What is local only: place to size in bytes and reason. A folder is one entry with a slash at its end.

    Args: see [`hub_files`].
    """
    left: dict[str, tuple[int, str]] = {}
    code = code_files(folder)
    for name in _names_in(Path(folder)):
        if not is_published(name, code, neighbors=neighbors):
            top, slash, _ = name.partition("/")
            entry = name if top == "quantizer" else top + slash
            size, _ = left.get(entry, (0, ""))
            why = next((why for pattern, why in _REASONS if fnmatchcase(entry, pattern)), "no part of a recommender")
            left[entry] = size + (Path(folder) / name).stat().st_size, why
    return left


def code_files(folder: str | os.PathLike[str]) -> set[str]:
    """
    The files of remote code that a model needs: those that its config names, and all that these import, there or not.

    Args: the folder; without a `config.json` it needs none.
    """
    folder, waiting, found = Path(folder), list[str](), set[str]()
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        waiting += config.get("auto_map", {}).values()
        waiting += [pipeline["impl"] for pipeline in config.get("custom_pipelines", {}).values()]
        waiting = [f"{entry.rpartition('--')[2].partition('.')[0]}.py" for entry in waiting]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            text = (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else ""
            waiting += [f"{module}.py" for module in _RELATIVE_IMPORT.findall(text)]
    return found


def is_published(name: str, code: Collection[str] | None = None, *, neighbors: bool = True) -> bool:
    """
    Whether a file belongs to a recommender's repository.

    Args: its place below the folder; the remote code, see [`code_files`], where `None` takes code of any version, as
    the Hub may hold; and whether `item_neighbors.parquet` belongs there.
    """
    if name == NEIGHBORS_NAME:
        return neighbors
    parent, _, last = name.rpartition("/")
    if parent == "quantizer":
        return last.endswith((".json", ".safetensors"))
    if parent == "catalog":
        return last == "versions.json" or bool(re.fullmatch(r"rows-\d+\.parquet", last))
    is_code = bool(_CODE.fullmatch(name)) if code is None else name in code
    return not parent and (any(fnmatchcase(name, pattern) for pattern in _PUBLISHED) or is_code)


def checked_content(path: Path, name: str) -> Content:
    """
    A file that may be published, see [`hub_files`]; of a record that names paths of this machine, the cleaned content.

    Args: the file, and its place in the repository.
    """
    if path.suffix == ".parquet":  # a cut file must not be published; both formats say how long they are
        with reading(path, "Parquet file"):
            pq.read_schema(path)
        return path
    if path.suffix == ".safetensors":
        with reading(path, "safetensors file"), safe_open(path, framework="numpy"):
            return path
    text = path.read_text(encoding="utf-8")
    if token := _TOKEN.search(text):
        raise ValueError(
            f"{path} holds what looks like an access token ({token[0][:6]}...). Remove it, and revoke the token "
            "if the file has been anywhere else."
        )
    if path.suffix != ".json" or name == "tokenizer.json":  # the tokenizer holds item ids, which may look like paths
        return path
    content = read_json(path)
    found = [(key, match[0]) for key, value in _strings(content) for match in _PATH.finditer(value)]
    if not found:
        return path
    if name in _RECORDS:
        return (json.dumps(_map_strings(content, _without_folders), indent=2, ensure_ascii=False) + "\n").encode()
    key, word = found[0]
    raise ValueError(
        f"{path} holds a path of this machine at `{key}`: {word!r} ({len(found)} in all). Put a name there that "
        "others can resolve, such as that of a repository, or remove it."
    )


_PUBLISHED = (
    CARD_NAME, "LICENSE*", "config.json", "generation_config.json", "recommend_config.json", "model.safetensors",
    "model-*-of-*.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "items.parquet", "manifest.json", "item_graph.safetensors", "evaluation.json",
    "training.json", "recommender.json", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
    "vocab.json", "merges.txt",
)  # fmt: skip
_CODE = re.compile(r"(configuration|modeling|genrec)_\w+\.py|pipeline_genrec\.py")  # of any version
_RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)  # as transformers finds it
_REQUIRED = ("config.json", "items.parquet", "tokenizer.json", "tokenizer_config.json")
_RECORDS = {"training.json", "evaluation.json"}
_TOKEN = re.compile(r"\b(?:hf|api_org|hf_oauth|hf_jwt)_[A-Za-z0-9]{30,}")
# A path of this machine: from the root, a home or a drive, at the beginning of a word; in quotes it may hold blanks.
_START = r"(?:file://)?(?:/(?=[\w.~-]*[A-Za-z_~])|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\\w)"
_PATH = re.compile(rf"""(?<='){_START}[^']*|(?<="){_START}[^"]*|(?:^|(?<=[\s=:,;(\[])){_START}[^\s"',;)\]]*""")
_REASONS = (
    *((name, "training states") for name in ("checkpoints/", "checkpoint-*/", "optimizer*", "scheduler*")),
    *((name, "training states") for name in ("rng_state*", "trainer_state.json")),
    ("evaluation_users.parquet", "names users"),
    (NEIGHBORS_NAME, "shows how many users took two items"),
    ("training_args.bin", "pickled training arguments"),
    *((name, "hidden or a cache") for name in (".*", "__pycache__/")),
    *((name, "no safetensors") for name in ("*.bin", "*.p[tk]*", "*.ckpt")),
)


def _names_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}.")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _check_complete(folder: Path, names: list[str], code: set[str]) -> None:
    is_adapter = "adapter_config.json" in names  # its base is elsewhere
    missing = [name for name in _REQUIRED if name not in names and not (is_adapter and name == "config.json")]
    weights = "adapter_model.safetensors" if is_adapter else "model.safetensors"
    missing += [] if any(fnmatchcase(name, weights.replace("model.", "model*.")) for name in names) else [weights]
    missing += sorted(code - set(names))
    if missing:
        raise FileNotFoundError(
            f"{folder} is no complete recommender: there is no {', '.join(missing)}. Name the folder that `hf-genrec "
            "train` or `save_recommender` wrote."
        )


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a JSON value with the place where they stand, keys included."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            place = f"{key}.{name}" if key else name
            yield place, name
            yield from _strings(entry, place)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _strings(entry, f"{key}[{number}]")


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _map_strings(entry, change) for name, entry in value.items()}
    return [_map_strings(entry, change) for entry in value] if isinstance(value, list) else value


def _without_folders(text: str) -> str:
    """Paths of this machine cut to their last part: `train /home/me/data` becomes `train data`."""
    return _PATH.sub(lambda match: re.split(r"[\\/]", match[0].rstrip("\\/"))[-1], text)
