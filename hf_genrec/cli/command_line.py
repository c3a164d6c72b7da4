"""
What the verbs of the command line share: the application, its errors, its options and its two kinds of output.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from safetensors import SafetensorError
from typer.core import TyperGroup


_WRONG_INPUT = 2


class _Verbs(TyperGroup):
    """Turns errors of the library into one line and exit code 2; `--verbose` shows where they come from."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, ImportError, SafetensorError) as error:
            if logging.getLogger("hf_genrec").isEnabledFor(logging.DEBUG):
                traceback.print_exc()
            typer.echo(f"Error: {' '.join(_message(error).split())}", err=True)
            raise typer.Exit(_WRONG_INPUT) from None


def _message(error: Exception) -> str:
    """What the system says of a file in words, without its number."""
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"There is no file {error.filename}."
    return f"{error.filename}: {error.strerror}."


app = typer.Typer(
    cls=_Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


def one_of(*choices: str) -> Callable[[str | None], str | None]:
    """
    A callback for options with a few values.

    Args:
        *choices (`str`): The values.

    Returns:
        `Callable`: refuses any other value.
    """

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"must be one of {', '.join(choices)}, is {value!r}.")
        return value

    return check


AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output of the same kind.")]
Prepared = Annotated[
    str, typer.Argument(metavar="PREPARED", help="Folder that `hf-genrec prepare` wrote.", show_default=False)
]
Beams = Annotated[int, typer.Option("--beams", min=1, help="Beams per user.")]
Decoding = Annotated[
    str | None,
    typer.Option(
        "--decoding",
        callback=one_of("exact", "graph", "beam"),
        metavar="exact|graph|beam",
        help="How rpg and acerec find items.",
        show_default="exact",
    ),
]
SearchOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--search", metavar="NAME=VALUE", help="A further argument of the model's recommend(), as num_propagations=5."
    ),
]
Aggregation = Annotated[
    str, typer.Option(callback=one_of("max", "sum"), metavar="max|sum", help="Score of an item over the latents.")
]


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", help="Tell every step, and tracebacks of errors.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings and errors.")] = False,
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
    if not verbose:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


class _Lines(logging.Handler):
    """Lines on stderr that do not tear progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm.auto import tqdm

        prefix = f"{record.levelname.capitalize()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def output_on(as_json: bool) -> Iterator[Callable[..., None]]:
    """
    Keeps stdout clean: what others write there meanwhile goes to stderr if a program reads stdout.

    Args:
        as_json (`bool`): Whether stdout shall hold one JSON object instead of tables.

    Yields:
        `Callable`: shows tables and lines, or with `result=` the JSON object.
    """
    stdout = sys.stdout

    def show(*tables: Any, result: Any = None) -> None:
        if as_json:
            if result is not None:
                stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            console = Console(file=stdout, highlight=False)
            for table in tables:
                console.print(table)

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield show


def name_values(option: str, words: list[str]) -> dict[str, Any]:
    """
    Settings as a dictionary; values are JSON or else strings.

    Args:
        option (`str`): The option they were given with, for the error.
        words (`list[str]`): `NAME=VALUE` each.

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: If a word is no `NAME=VALUE`.

    Example:

    ```python
    >>> name_values("--set", ["temperature=0.05", "merger=conv"])
    {'temperature': 0.05, 'merger': 'conv'}

    ```
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


def command_line() -> str:
    """
    The command as it was typed, for records.

    Returns:
        `str`
    """
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
