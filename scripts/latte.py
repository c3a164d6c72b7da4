"""
The Latte paper's whole recipe on one category of Amazon Reviews 2023, in one command:

    python scripts/latte.py Video_Games --output runs/games

prepare (5-core, leave-last-out), embed (sentence-t5-base), tokenize (whitening to 192 dimensions fitted on all items,
residual k-means 3x256, conflict-free ids), train (bidirectional, 4+4 layers, 150 epochs), test with 500 beams. A stage
whose output exists is not done again, and a killed training goes on from its last checkpoint, so the same command
continues. Each stage takes further options of its verb: `--train "--latents 4"` (the paper chose 4 latents for
Musical_Instruments and 8 for the other two categories), `--prepare "--missing-text drop --no-strict"`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from hf_genrec.cli.main import app


def main() -> None:
    """Run the stages that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", help="Such as Video_Games.")
    parser.add_argument("--output", help="Folder for everything; runs/CATEGORY if not given.")
    stages = ("prepare", "embed", "tokenize", "train", "evaluate")
    for stage in stages:
        parser.add_argument(f"--{stage}", default="", metavar="WORDS", help=f"Further options of `hf-genrec {stage}`.")
    given = parser.parse_args()
    folder = Path(given.output or f"runs/{given.category}")
    names = ("data", "embeddings.safetensors", "semantic_ids", "model")
    data, vectors, ids, run = (str(folder / name) for name in names)
    recipe = {
        "prepare": ["--amazon", "2023", "--category", given.category, "--output", data],
        "embed": [data, "--output", vectors, "--model", "sentence-transformers/sentence-t5-base"],
        "tokenize": [data, "--embeddings", vectors, "--output", ids, "--fit-on", "all"],
        "train": [data, "--ids", ids, "--output", run, "--paper", "--resume"],
        "evaluate": [run, data, "--beams", "500", "--batch-size", "16"],
    }
    for stage, output in zip(stages, (data, vectors, ids, None, None), strict=True):
        if output is None or not Path(output).exists():
            words = [stage, *recipe[stage], *shlex.split(getattr(given, stage))]
            if code := app(words, prog_name="hf-genrec", standalone_mode=False):
                sys.exit(code)


if __name__ == "__main__":
    main()
