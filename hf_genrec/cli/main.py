"""
`hf-genrec VERB`: one verb per stage. Words of a command line in, folders, tables or one JSON object out.

With `--json`, stdout holds exactly one JSON object; logs and progress go to stderr. Wrong input ends with one line on
stderr and exit code 2, Ctrl-C with exit code 130.
"""

from __future__ import annotations

from hf_genrec.cli import (  # noqa: F401 (their verbs register themselves)
    catalog,
    compare,
    demo,
    diagnose,
    embed,
    ensemble,
    evaluate,
    export,
    fit,
    graph,
    prepare,
    push,
    recommend,
    serve,
    tokenize,
    train,
)
from hf_genrec.cli.command_line import app


def main() -> None:
    """Run the command line; the entry point of `hf-genrec`."""
    app(prog_name="hf-genrec")


if __name__ == "__main__":
    main()
