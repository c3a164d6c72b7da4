"""The README keeps its word: its Python blocks run, its commands exist with the options it names."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_genrec.cli.main import app


ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
# A block below a comment `<!-- not run: reason -->` is shown only, for example because it needs the network.
BLOCK = re.compile(r"(<!-- not run: .+? -->\s*)?^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[str]:
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    return [body for skipped, language, body in BLOCK.findall(text) if language in languages and not skipped]


def commands() -> list[list[str]]:
    """Every command of the shell blocks as words, continuation lines joined, comments and prompts dropped."""
    lines = "".join(blocks("bash", "shell", "sh", "console")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if not line.startswith(("#", ">"))]
    return [command for command in words if command]


def commands_of(program: str) -> list[list[str]]:
    return [command for command in commands() if command[0] == program]


@functools.lru_cache
def help_of(*command: str) -> str:
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *command, "--help"], capture_output=True, text=True, env=environment, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_options_exist(command: list[str], help_text: str) -> None:
    options = {word.split("=")[0] for word in command if re.match(r"--?[a-zA-Z]", word)}
    unknown = {option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text)}
    assert unknown == set(), f"{' '.join(command)}: the help does not name {unknown}"


@pytest.mark.parametrize("command", commands_of("hf-genrec"), ids=" ".join)
def test_command_line_of_the_readme_exists(command):
    is_verb = len(command) > 1 and not command[1].startswith("-")

    result = CliRunner().invoke(app, [*command[1 : 2 if is_verb else 1], "--help"])

    assert result.exit_code == 0, result.output
    assert_options_exist(command[1:], result.stdout + " --help")


@pytest.mark.parametrize("command", [c for c in commands_of("python") if c[1].startswith("scripts/")], ids=" ".join)
def test_script_of_the_readme_exists(command):
    assert_options_exist(command[2:], help_of(command[1]))


@pytest.mark.parametrize("command", commands_of("make"), ids=" ".join)
def test_make_target_of_the_readme_exists(command):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))

    assert {word for word in command[1:] if "=" not in word} <= targets


def test_python_blocks_of_the_readme_run_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}

    for number, block in enumerate(blocks("python"), start=1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)


def test_blocks_marked_as_not_run_are_left_out(monkeypatch, tmp_path):
    python = "<!-- not run: network -->\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n"
    text = python + "```bash\nmake test \\\n  A=b  # c\n```\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "README", tmp_path / "README.md")

    assert blocks("python") == ["x = 1\n"]
    assert commands() == [["make", "test", "A=b"]]
