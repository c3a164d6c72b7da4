"""The rules that keep the library readable: layer order, remote code, lengths, docstrings."""

import ast
import re
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports


ROOT = Path(__file__).resolve().parent.parent

# A room may import the rooms above it and `hf_genrec.modeling`.
ROOMS = ["plots", "data", "tokenizers", "serving", "evaluation", "hub", "training", "cli"]
MAPPED_FOLDERS = ["modeling", "hub_cards", "spaces_demo"]  # symlinks inside the package
REMOTE_CODE_LIBRARIES = {"torch", "transformers", "huggingface_hub", "safetensors"}
VAGUE_NAMES = {"utils", "common", "helpers", "components", "modules", "misc", "tools"}

PACKAGE_FILES = sorted(
    file
    for file in (ROOT / "hf_genrec").rglob("*.py")
    if file.relative_to(ROOT / "hf_genrec").parts[0] not in MAPPED_FOLDERS
)
REMOTE_FILES = sorted(file for file in (ROOT / "modeling").glob("*.py") if file.name != "__init__.py")
LIBRARY_FILES = PACKAGE_FILES + REMOTE_FILES
ALL_FILES = LIBRARY_FILES + sorted(
    file for folder in ("tests", "scripts", "spaces_demo") for file in (ROOT / folder).rglob("*.py")
)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def relative_name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def each(files: list[Path]):
    return pytest.mark.parametrize("file", files, ids=relative_name)


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "hf_genrec").with_suffix("").parts[0]


def imported_rooms(file: Path) -> set[str]:
    """Names directly below `hf_genrec` that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            folder = [*file.relative_to(ROOT).parts[: -node.level]] if node.level else []
            base = ".".join([*folder, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "hf_genrec" else {base}
    return {name.split(".")[1] for name in names if name.startswith("hf_genrec.")}


def functions_of(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def num_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body without the docstring: a signature with one argument per line is no code."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1 if body else 0


@each(
    [
        file
        for file in PACKAGE_FILES
        if file.name != "__main__.py" and file.parent.name + file.stem != "hf_genrec__init__"
    ]
)
def test_imports_point_up_the_layers(file):
    room = room_of(file)
    assert room in ROOMS, f"{room} is a new room: give it a place in ROOMS, where the data passes it"

    allowed = set(ROOMS[: ROOMS.index(room) + 1]) | {"modeling", "hub_cards", "__version__"}

    assert imported_rooms(file) <= allowed


@each(REMOTE_FILES)
def test_remote_code_imports_only_what_a_stranger_has(file):
    allowed = REMOTE_CODE_LIBRARIES | set(sys.stdlib_module_names)

    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] in allowed


@each(REMOTE_FILES)
def test_remote_code_imports_its_siblings_so_that_saving_finds_them(file):
    siblings, tree = set(), parse(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, "`from ..x import y` breaks saving"
            assert node.module, "`from . import x` is not followed by saving"
            assert "." not in node.module, "remote code is one flat folder"
            siblings.add(node.module)

    # Saving searches the text, so a docstring that reads like an import would be taken for one.
    assert set(get_relative_imports(file)) == siblings
    assert all((file.parent / f"{sibling}.py").is_file() for sibling in siblings)
    # Saving a model must take the pipeline along, loading one must not import it.
    at_run_time = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level}
    assert siblings - at_run_time <= {"pipeline_genrec"}
    assert "pipeline_genrec" not in at_run_time


def test_remote_code_is_one_flat_folder_with_telling_names():
    folders = [entry.name for entry in (ROOT / "modeling").iterdir() if entry.is_dir() and entry.name != "__pycache__"]

    assert folders == []
    assert [
        f.name
        for f in REMOTE_FILES
        if not re.match(r"(configuration|modeling|genrec)_\w+\.py|pipeline_genrec\.py", f.name)
    ] == []


@each(ALL_FILES)
def test_files_and_functions_stay_short(file):
    text = file.read_text(encoding="utf-8")

    assert len(text.splitlines()) <= 500
    assert [(f.name, num_code_lines(f)) for f in functions_of(ast.parse(text)) if num_code_lines(f) > 50] == []


@each(LIBRARY_FILES)
def test_public_names_have_docstrings_that_tell_their_arguments(file):
    tree = parse(file)
    assert ast.get_docstring(tree), "the module has no docstring"

    silent, incomplete = [], []
    for node in tree.body:
        members = [node, *(node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [])]
        for member in members:
            if not isinstance(member, ast.FunctionDef | ast.ClassDef) or member.name.startswith("_"):
                continue
            docstring = ast.get_docstring(member)
            if not docstring:
                silent.append(member.name)
            elif member is node and isinstance(member, ast.FunctionDef):
                has_arguments = bool(member.args.args or member.args.kwonlyargs)
                if has_arguments and "Args:" not in docstring:
                    incomplete.append(member.name)
    assert silent == []
    assert incomplete == []


@each(ALL_FILES)
def test_names_of_files_say_what_is_in_them(file):
    assert VAGUE_NAMES.isdisjoint(file.relative_to(ROOT).with_suffix("").parts)


@each(PACKAGE_FILES)
def test_functions_take_no_open_ended_keyword_arguments(file):
    # Methods may: those that override a method of transformers or datasets have to.
    functions = [node for node in parse(file).body if isinstance(node, ast.FunctionDef)]

    assert [function.name for function in functions if function.args.kwarg] == []


@each(PACKAGE_FILES)
def test_package_never_catches_everything(file):
    handlers = [node for node in ast.walk(parse(file)) if isinstance(node, ast.ExceptHandler)]

    assert [
        h.lineno for h in handlers if h.type is None or getattr(h.type, "id", "") in ("Exception", "BaseException")
    ] == []
