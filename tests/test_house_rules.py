"""Rules of the house that ruff and import-linter cannot hold: remote code, lengths, names, documented arguments."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports


ROOT = Path(__file__).resolve().parent.parent
MAPPED_FOLDERS = ["modeling", "hub_cards", "spaces_demo"]  # symlinks inside the package
REMOTE_CODE_LIBRARIES = {"torch", "transformers", "huggingface_hub", "safetensors"} | set(sys.stdlib_module_names)
VAGUE_NAMES = {"utils", "common", "helpers", "components", "modules", "misc", "tools"}
ROOMS = ["cli", "data", "evaluation", "hub", "llm", "serving", "tokenizers", "training"]

PACKAGE_FILES = sorted(
    file
    for file in (ROOT / "hf_genrec").rglob("*.py")
    if file.relative_to(ROOT / "hf_genrec").parts[0] not in MAPPED_FOLDERS
)
REMOTE_FILES = sorted(file for file in (ROOT / "modeling").glob("*.py") if file.name != "__init__.py")
ALL_FILES = [
    *PACKAGE_FILES,
    *REMOTE_FILES,
    *(file for folder in ("tests", "scripts", "spaces_demo") for file in sorted((ROOT / folder).rglob("*.py"))),
]


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def relative_name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def functions_of(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def num_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body without the docstring: a signature with one argument per line is no code."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1 if body else 0


def sibling_imports(nodes) -> list[ast.ImportFrom]:
    return [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_the_house_has_eight_rooms_with_a_guide_each():
    folders = {path.name for path in (ROOT / "hf_genrec").iterdir() if (path / "__init__.py").is_file()}

    assert sorted(folders - set(MAPPED_FOLDERS)) == ROOMS
    assert [room for room in ROOMS if not (ROOT / "hf_genrec" / room / "README.md").is_file()] == []


def test_remote_code_imports_only_what_a_stranger_has():
    foreign = []
    for file in REMOTE_FILES:
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            foreign += [(file.name, name) for name in names if name.split(".")[0] not in REMOTE_CODE_LIBRARIES]

    assert foreign == []


def test_remote_code_imports_its_siblings_so_that_saving_finds_them():
    for file in REMOTE_FILES:
        tree = parse(file)
        imports = sibling_imports(ast.walk(tree))
        # `from ..x import y` breaks saving, `from . import x` is not followed, and the folder is flat.
        assert all(node.level == 1 and node.module and "." not in node.module for node in imports), file.name

        siblings = {node.module for node in imports}
        # Saving searches the text, so a docstring that reads like an import would be taken for one.
        assert set(get_relative_imports(file)) == siblings, file.name
        assert all((file.parent / f"{sibling}.py").is_file() for sibling in siblings), file.name
        # Saving a model must take the pipeline along, loading one must not import it.
        at_run_time = {node.module for node in sibling_imports(tree.body)}
        assert siblings - at_run_time <= {"pipeline_genrec"}, file.name
        assert "pipeline_genrec" not in at_run_time, file.name


def test_remote_code_is_one_flat_folder_with_three_kinds_of_names():
    folders = [entry.name for entry in (ROOT / "modeling").iterdir() if entry.is_dir() and entry.name != "__pycache__"]
    kinds = re.compile(r"(configuration|modeling|genrec)_\w+\.py|pipeline_genrec\.py")

    assert folders == []
    assert [file.name for file in REMOTE_FILES if not kinds.fullmatch(file.name)] == []


def test_files_have_at_most_500_lines_and_functions_50():
    long_files, long_functions = [], []
    for file in ALL_FILES:
        text = file.read_text(encoding="utf-8")
        if len(text.splitlines()) > 500:
            long_files.append(relative_name(file))
        functions = functions_of(parse(file))
        long_functions += [f"{relative_name(file)}: {f.name}" for f in functions if num_code_lines(f) > 50]

    assert long_files == []
    assert long_functions == []


def test_public_functions_describe_their_arguments():
    # Functions of modeling/genrec_*.py serve their siblings: a few lines with the shapes are enough there.
    incomplete = [
        f"{relative_name(file)}: {node.name}"
        for file in PACKAGE_FILES + [file for file in REMOTE_FILES if not file.name.startswith("genrec_")]
        for node in parse(file).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and (node.args.args or node.args.kwonlyargs)
        and "Args:" not in (ast.get_docstring(node) or "")
    ]

    assert incomplete == []


def test_names_of_files_say_what_is_in_them():
    names = {relative_name(file): set(file.relative_to(ROOT).with_suffix("").parts) for file in ALL_FILES}

    assert [name for name, parts in names.items() if parts & VAGUE_NAMES] == []


def test_files_of_tests_have_names_of_their_own():
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]  # two of one name cannot be collected together

    assert [name for name in names if names.count(name) > 1] == []


def test_functions_of_the_package_take_no_open_ended_keyword_arguments():
    # Methods may: those that override a method of transformers or datasets have to.
    functions = [
        (relative_name(file), node)
        for file in PACKAGE_FILES
        for node in parse(file).body
        if isinstance(node, ast.FunctionDef)
    ]

    assert [f"{name}: {node.name}" for name, node in functions if node.args.kwarg] == []
