"""The READMEs keep their word: Python blocks run, commands exist with the options they name, links lead somewhere."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_genrec.cli.main import app


ROOT = Path(__file__).resolve().parent.parent
# The library's page, the guide of each room, and the guides of what stands beside the library.
READMES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "hf_genrec").glob("*/README.md"),
        *(ROOT / "scripts").rglob("README.md"),
    ]
)
PAGES = {file.relative_to(ROOT).as_posix(): file for file in READMES if "spaces_demo" not in file.parts}
# A block below a comment `<!-- not run: reason -->` is shown only, for example because it needs the network.
BLOCK = re.compile(r"(<!-- not run: .+? -->\s*)?^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:href|src|srcset)=\"([^\"]+)\"")


def blocks_of(text: str, *languages: str) -> list[str]:
    return [body for skipped, language, body in BLOCK.findall(text) if language in languages and not skipped]


def commands_in(text: str) -> list[list[str]]:
    """Every command of the shell blocks as words, continuation lines joined, comments and prompts dropped."""
    lines = "".join(blocks_of(text, "bash", "shell", "sh", "console")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if not line.startswith(("#", ">"))]
    return [command for command in words if command]


def commands_of(program: str) -> list[list[str]]:
    """The distinct commands of all pages that begin with a word."""
    found = {}
    for file in PAGES.values():
        found |= {tuple(c): c for c in commands_in(file.read_text(encoding="utf-8")) if c[0] == program}
    return list(found.values())


def help_of(script: str, monkeypatch, capsys) -> str:
    """What a script answers to `--help`, run in this process: a new one would import torch again."""
    monkeypatch.setattr("sys.argv", [script, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not ended.value.code
    return capsys.readouterr().out


def assert_options_exist(command: list[str], help_text: str) -> None:
    options = {word.split("=")[0] for word in command if re.match(r"--?[a-zA-Z]", word)}
    unknown = {option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text)}
    assert unknown == set(), f"{' '.join(command)}: the help does not name {unknown}"


@pytest.mark.parametrize("command", commands_of("hf-genrec"), ids=" ".join)
def test_command_line_of_a_readme_exists(command):
    is_verb = len(command) > 1 and not command[1].startswith("-")

    num_words = 3 if command[1:2] == ["catalog"] else 2  # a verb with verbs of its own
    result = CliRunner().invoke(app, [*command[1 : num_words if is_verb else 1], "--help"])

    assert result.exit_code == 0, result.output
    assert_options_exist(command[1:], result.stdout + " --help")


@pytest.mark.parametrize("command", [c for c in commands_of("python") if c[1].startswith("scripts/")], ids=" ".join)
def test_script_of_a_readme_exists(command, monkeypatch, capsys):
    assert_options_exist(command[2:], help_of(command[1], monkeypatch, capsys))


@pytest.mark.parametrize("command", commands_of("make"), ids=" ".join)
def test_make_target_of_a_readme_exists(command):
    words = [word for word in command[1:] if "=" not in word]
    makefile = words.pop(words.index("-f") + 1) if "-f" in words else "Makefile"
    text = (ROOT / makefile).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", text, flags=re.MULTILINE))
    targets |= {name for line in re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE) for name in line.split()}

    assert {word for word in words if word != "-f"} <= targets


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_of_a_readme_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}

    for number, block in enumerate(blocks_of(PAGES[page].read_text(encoding="utf-8"), "python"), start=1):
        exec(compile(block, f"{page}, Python block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_readme_to_files_lead_somewhere(page):
    found = [first or second for first, second in LINK.findall(PAGES[page].read_text(encoding="utf-8"))]
    local = {link.split("#")[0] for link in found if "://" not in link and not link.startswith(("#", "mailto:"))}

    assert [link for link in sorted(local) if not (PAGES[page].parent / link).exists()] == []


def test_blocks_marked_as_not_run_are_left_out():
    python = "<!-- not run: network -->\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n"
    text = python + "```bash\nmake test \\\n  A=b  # c\n```\n"

    assert blocks_of(text, "python") == ["x = 1\n"]
    assert commands_in(text) == [["make", "test", "A=b"]]
