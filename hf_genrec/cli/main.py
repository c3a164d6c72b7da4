"""
`hf-genrec VERB`: one verb per stage. Words of a command line in, folders, tables or one JSON object out.

With `--json`, stdout holds exactly one JSON object; logs and progress go to stderr. Wrong input ends with one line on
stderr and exit code 2, Ctrl-C with exit code 130.
"""

from __future__ import annotations

import importlib

from hf_genrec.cli.command_line import app


# In the order of the help page; their verbs register themselves.
for _file in (
    "prepare", "embed", "tokenize", "train", "fit", "ensemble", "evaluate", "recommend", "catalog", "serve", "export",
    "merge", "demo", "compare", "diagnose", "graph", "push",
):  # fmt: skip
    importlib.import_module(f"hf_genrec.cli.{_file}")


def main() -> None:
    """Run the command line; the entry point of `hf-genrec`."""
    app(prog_name="hf-genrec")


if __name__ == "__main__":
    main()
