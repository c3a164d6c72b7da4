"""
What the verbs of the command line share: the application, its errors and its two kinds of output.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup


FAULT, WRONG_INPUT, INTERRUPTED = 1, 2, 130  # exit codes
SECONDS_BETWEEN_LINES = 10  # of progress, where stderr is no terminal


class _Verbs(TyperGroup):
    """Turns every error into one line; `--traceback` and `--verbose` show where it comes from."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)  # in the order of `main.py`

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:  # also while a library is being imported
            typer.echo("Stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001 (the last place to catch it: one line helps more than a traceback)
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort):  # typer's own
                if hasattr(error, "message"):
                    error.message = error.message.removeprefix("Value error, ")  # of the library that checks values
                raise
            if ctx.params["traceback"] or logging.getLogger("hf_genrec").isEnabledFor(logging.DEBUG):
                traceback.print_exc()
            command = self.commands.get(ctx.invoked_subcommand)
            names = {} if command is None else {param.name or "": param.opts[0] for param in command.params}
            typer.echo(f"Error: {in_options(' '.join(_message(error).split()), names)}", err=True)
            raise typer.Exit(WRONG_INPUT if _is_about_input(error) else FAULT) from None


def _is_about_input(error: Exception) -> bool:
    """Whether the library raised it on purpose; the error of a broken weights file has no base class of these."""
    return isinstance(error, (ValueError, OSError, ImportError)) or type(error).__name__ == "SafetensorError"


def _message(error: Exception) -> str:
    """What the system says of a file in words, without its number."""
    if not _is_about_input(error):
        return f"{type(error).__name__}: {error}. If the input is right, `hf-genrec --traceback` shows what to report."
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"There is no file {error.filename}."
    return f"{error.filename}: {error.strerror}."


def in_options(message: str, options: Mapping[str, str]) -> str:
    """
    A message of the library in the words of the command line: arguments in backticks become options.

    Args: `options` are those of the verb, by the names of its parameters, which are those of the library's arguments.

    Example:

    ```python
    >>> in_options("Pass `overwrite=True`.", {"overwrite": "--overwrite"})
    'Pass `--overwrite`.'
    >>> in_options("Pass `timestamp=None`, not `x`.", {"timestamp": "--timestamp-column"})
    "Pass `--timestamp-column ''`, not `x`."

    ```
    """

    def option_of(found: re.Match[str]) -> str:
        option, value = options.get(found["name"], ""), (found["value"] or "").strip("'\"")
        if not option.startswith("--") or value == "False":
            return found[0]
        value = "" if value in ("", "True") else shlex.quote("" if value == "None" else value)
        return f"`{option} {value}`" if value else f"`{option}`"

    message = re.sub(r"`(?P<name>[a-z]\w*)(?:=(?P<value>[^`\s]+))?`", option_of, message)
    return re.sub(r"(`--[\w-]+`), \1", r"\1", message)


app = typer.Typer(
    cls=_Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given. Args: values by name, `None` where an option was left out."""
    return {name: value for name, value in values.items() if value is not None}


def arguments_for(function: Callable[..., Any], ctx: typer.Context) -> dict[str, Any]:
    """The options of a verb that are arguments of a function of the library. Args: the function, and the context."""
    return {name: ctx.params[name] for name in inspect.signature(function).parameters if name in ctx.params}


def _show_version(value: bool) -> None:
    if value:
        from hf_genrec import __version__

        typer.echo(f"hf-genrec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every step, and tracebacks of errors.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings and errors.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", hidden=True, help="Show where an error comes from.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """
    Generative recommendation with semantic IDs: from a log to recommendations.

    \b
    prepare -> embed -> tokenize -> train -> evaluate -> recommend
    `hf-genrec demo` does all of it on MovieLens-100K.
    `hf-genrec VERB --help` has examples.
    """
    library = logging.getLogger("hf_genrec")
    library.handlers = [_Lines()]
    library.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO + 1)
    if os.environ.get("RANK", "0") != "0":  # of several processes one speaks for all
        library.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(SECONDS_BETWEEN_LINES))  # read when tqdm is imported


class _Lines(logging.Handler):
    """Lines on stderr that do not tear progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm.auto import tqdm

        prefix = f"{record.levelname.capitalize()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


def check_effect(function: Callable[..., Any], ctx: typer.Context, kind: str, without: Sequence[str] = ()) -> None:
    """
    Refuses options that would have no effect. Args: the function of the library that is called for this `kind` of use,
    the context, and those of the function's arguments that mean nothing then.
    """
    taken = {*inspect.signature(function).parameters, "as_json"} - set(without)
    given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", None) == "COMMANDLINE"}
    idle = [f"`{param.opts[0]}`" for param in ctx.command.params if param.name in given - taken]
    if idle:
        raise ValueError(f"{', '.join(idle)} would have no effect with `{kind}`: leave out what does not belong.")


@contextlib.contextmanager
def output_on(as_json: bool) -> Iterator[Callable[..., None]]:
    """
    Keeps stdout clean: what others write there meanwhile goes to stderr if a program reads stdout.

    Args: `as_json` asks for one JSON object instead of tables. Yields a function that shows tables and lines, or with
        `result=` the object.
    """
    stdout = sys.stdout
    if not logging.getLogger("hf_genrec").isEnabledFor(logging.DEBUG):
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def show(*tables: Any, result: Any = None) -> None:
        from hf_genrec.cli.tables import TextTable, drawn

        if as_json:
            if result is not None:
                stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            console = Console(file=stdout, highlight=False, markup=False, emoji=False)  # words as they were written
            for table in tables:
                shown = drawn(table) if isinstance(table, TextTable) else table
                console.print(shown, soft_wrap=isinstance(shown, str))  # a command must be copied in one piece

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield show


def name_values(option: str, words: list[str]) -> dict[str, Any]:
    """
    Settings as a dictionary; values are JSON or else strings.

    Args: the option they were given with, for the error, and words such as `temperature=0.05`.
    """
    fields: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"`{option}` takes NAME=VALUE, got {word!r}.")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def check_is_folder(run: str, verb: str) -> None:
    """Refuses a Hub repository, and what is neither. Args: the run folder, and the verb that writes into it."""
    from hf_genrec.serving.recommender import check_model_name

    check_model_name(run)
    if not Path(run).is_dir():
        raise ValueError(f"`{verb}` changes a folder: download {run} first (hf download).")


def command_line() -> str:
    """The command as it was typed, for records."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
