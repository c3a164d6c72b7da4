"""
Counts mutated inputs through the properties of `test_fuzz_readers.py`, many times faster than hypothesis.

    python tests/data/fuzz_readers.py --inputs 100000 --seed 1

Every finding is printed with its traceback and ends the program with status 1. An input that takes a minute, or the
interpreter with it, ends the process at once: it still lies in the folder that the first line names.
"""

# ruff: noqa: T201
import argparse
import io
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import test_fuzz_readers as properties

from hf_genrec.data import text_files
from hf_genrec.data.prepare import prepare


KINDS = ["insert", "replace", "delete", "repeat", "copy", "cut", "flip", "line"]
PACKINGS = ["plain"] * 4 + ["gzip", "gzip, then changed", "UTF-16"]


def mutations_of(randomness):
    """One to four changes, as hypothesis would draw them."""
    return [
        (
            randomness.choice(KINDS),
            randomness.random(),
            randomness.choice(properties.TOKENS)
            if randomness.random() < 0.7
            else randomness.randbytes(randomness.randint(1, 6)),
            randomness.choice([1, 2, 5, 40, 1000]),
        )
        for _ in range(randomness.randint(1, 4))
    ]


class OpenedOnce(dict):
    """Files as they were when they were first opened: a reader opens one many times, which takes half of the time."""

    def __missing__(self, path):
        self[path] = path.read_bytes()
        return self[path]

    def __call__(self, path, mode):
        return io.BufferedReader(io.BytesIO(self[path]))


def one_input(randomness, folder, prepared):
    """Draws an input and checks it; whole folders, which take longer, are one in two hundred."""
    changes, kind = mutations_of(randomness), randomness.randrange(600)
    if kind == 0:
        properties.check_movielens(folder, randomness.choice(properties.FILMS), changes)
    elif kind == 1:
        names = sorted(path.name for path in prepared.folder.iterdir())
        properties.check_prepared(prepared, folder / "copy", randomness.choice(names), changes)
    elif kind == 2:
        shutil.rmtree(folder / "data", ignore_errors=True)
        properties.check_prepare(
            folder, changes, mutations_of(randomness), randomness.random() < 0.5, randomness.randrange(3)
        )
    else:
        check, made = randomness.choice([(check, made) for check, made in properties.KINDS for _ in made])
        name = randomness.choice(list(made))
        path = folder / f"file{name if name.startswith('.') else '.json'}"
        content = made[name]
        if "parquet" not in name and randomness.random() < 0.7:  # a short file is as good, and quicker
            content = b"".join(content.splitlines(keepends=True)[:4])
        check(path, name, properties.packed(content, changes, randomness.choice(PACKINGS)))


def main(arguments=None):
    """Draws the inputs, says every ten seconds how many there were, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    randomness, num_findings, slowest = random.Random(options.seed), 0, 0.0
    folder = Path(tempfile.mkdtemp(prefix="fuzz_readers_"))
    print(f"seed {options.seed}, the input of the moment is in {folder}", flush=True)
    prepared = prepare(folder / "prepared", interactions=properties.LOG, items=properties.ITEMS, cold_items=0.2)
    text_files.open = opened = OpenedOnce()
    start = shown = time.time()
    for number in range(1, options.inputs + 1):
        began = time.process_time()
        opened.clear()
        signal.alarm(60)
        try:
            one_input(randomness, folder, prepared)
        except Exception:  # noqa: BLE001 (whatever it is, it is a finding)
            num_findings += 1
            kept = folder / f"finding_{num_findings}"
            kept.mkdir()
            for path in folder.glob("*.*"):
                shutil.copy(path, kept)
            print(f"FINDING at input {number}, kept in {kept}\n{traceback.format_exc()}", flush=True)
        slowest = max(slowest, time.process_time() - began)
        if time.time() - shown > 10 or number == options.inputs:
            shown = time.time()
            rate = number / (shown - start)
            print(f"{number:,} inputs, {num_findings} findings, slowest {slowest:.2f} s, {rate:.0f}/s", flush=True)
    signal.alarm(0)
    if not num_findings:
        shutil.rmtree(folder)
    return 1 if num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
