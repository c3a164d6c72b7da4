"""What the tests of the verbs share: running a verb in this process, and an invented shop."""

import json
import random
from pathlib import Path

from typer.testing import CliRunner

from hf_genrec.cli.main import app


NUM_ITEMS, NUM_USERS = 23, 31
SHAPE = ["--d-model", "16", "--d-ff", "24", "--d-kv", "8", "--heads", "2", "--layers", "1", "--decoder-layers", "1"]
TRAIN = [*SHAPE, "--latents", "3", "--batch-size", "64", "--beams", "10", "--precision", "fp32"]
COLUMNS = ["--user-column", "user", "--item-column", "sku", "--timestamp-column", "at"]
TINY = [
    "--d-model", "16", "--d-ff", "24", "--heads", "2", "--layers", "1", "--batch-size", "64", "--precision", "fp32",
]  # fmt: skip
SASREC = ["--architecture", "sasrec", *TINY[:2], *TINY[4:]]  # which has no inner width


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def result_of(*words: object) -> dict:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def error_of(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def write_log(path: Path, *, num_items: int = NUM_ITEMS, num_users: int = NUM_USERS) -> Path:
    draw = random.Random(7)
    lines = ["user,sku,at"]
    for user in range(num_users):
        first = draw.randrange(num_items)
        visits = range(draw.randint(5, 26))
        lines += [f"u{user},i{(first + visit) % num_items},{1_600_000_000 + 60 * visit}" for visit in visits]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
