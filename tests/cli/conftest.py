"""The invented shop: made once, for all verbs."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_shop import COLUMNS, NUM_ITEMS, SASREC, TINY, TRAIN, result_of, write_log


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """A folder with everything that the verbs make of a log: data, emb, ids, run."""
    folder = tmp_path_factory.mktemp("shop")
    write_log(folder / "log.csv")
    lines = [json.dumps({"item_id": f"i{n}", "title": f"thing number {n}"}) for n in range(NUM_ITEMS)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    np.save(folder / "matrix.npy", np.random.default_rng(3).normal(size=(NUM_ITEMS, 13)).astype(np.float32))
    steps = [
        ["prepare", "--interactions", folder / "log.csv", *COLUMNS, "--items", folder / "items.jsonl"],
        ["embed", folder / "data", "--matrix", folder / "matrix.npy"],
        ["tokenize", folder / "data", "--embeddings", folder / "emb", "--codebook-size", "8", "--whiten", "5"],
        ["train", folder / "data", "--ids", folder / "ids", *TRAIN, "--epochs", "2", "--weight-decay", "0.125"],
    ]
    for step, name in zip(steps, ["data", "emb", "ids", "run"], strict=True):
        result_of(*step, "--output", folder / name)
    return folder


@pytest.fixture(scope="session")
def chosen(shop, tmp_path_factory) -> Path:
    """A run of the model that the size of the data chooses, over the texts' vectors."""
    run = tmp_path_factory.mktemp("chosen") / "run"
    words = ["train", shop / "data", "--embeddings", shop / "emb", "--output", run, "--epochs", 1, "--d-model", 16]
    result_of(*words, "--precision", "fp32")
    return run


@pytest.fixture(scope="session")
def parallel(shop, tmp_path_factory):
    """The shop's data, long ids and a run of each parallel model."""
    folder = tmp_path_factory.mktemp("parallel")
    ids = ["tokenize", shop / "data", "--embeddings", shop / "emb", "--quantizer", "opq"]
    ids_result = result_of(
        *ids, "--levels", "4", "--codebook-size", "8", "--whiten", "12", "--policy", "keep", "--output", folder / "ids"
    )
    assert ids_result["statistics"]["num_items"] == 23
    for name in ("rpg", "acerec"):
        words = ["train", shop / "data", "--ids", folder / "ids", "--output", folder / name, "--epochs", "2"]
        result_of(*words, "--architecture", name, *TINY)
    return shop / "data", folder


@pytest.fixture(scope="session")
def sasrec(shop, tmp_path_factory):
    """The shop's data and a run without ids."""
    run = tmp_path_factory.mktemp("sasrec") / "run"
    train = ["train", shop / "data", "--output", run, *SASREC]
    result_of(*train, "--epochs", "12", "--learning-rate", "0.02", "--dropout", "0.1")
    return shop / "data", run
