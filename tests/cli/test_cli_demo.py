"""The quick start at toy size: every stage once, none twice."""

import io
import json
import shutil

import numpy as np
import pytest

from hf_genrec.cli.command_line import plain_console
from hf_genrec.cli.quick_start import DemoSettings, run_demo


SETTINGS = {
    "tokenizer": {"num_levels": 2, "codebook_size": 4, "num_whitened": 3, "fit_on": "train", "seed": 5},
    "shape": {
        "history_attention": "causal", "num_latent_tokens": 3, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2,
        "num_layers": 1, "num_decoder_layers": 1, "dense_head": True, "history_unit": "item",
    },
    "schedule": {"num_train_epochs": 1, "eval_num_beams": 10, "precision": "fp32", "disable_tqdm": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def shop(make_prepared, tmp_path_factory):
    """A prepared data set of 13 items and a matrix for it."""
    users = {f"u{user}": [f"i{(user + step) % 13:02d}" for step in range(5 + user % 3)] for user in range(17)}
    matrix = tmp_path_factory.mktemp("demo") / "matrix.npy"
    np.save(matrix, np.random.default_rng(3).normal(size=(13, 7)).astype(np.float32))
    return make_prepared(users, protocol="custom"), DemoSettings(matrix=str(matrix), **SETTINGS)


def demo(folder, prepared, settings):
    console = plain_console(io.StringIO(), width=120)
    result = run_demo(folder, console=console, prepared=prepared, settings=settings)
    return result, console.file.getvalue()


@pytest.fixture(scope="module")
def made(shop, tmp_path_factory):
    """The folder of a first run, what it returned and what it showed."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, *demo(folder, *shop)


def test_demo_shows_every_stage_and_the_command_that_goes_on(made):
    _, result, text = made

    for expected in ("density", "perplexity", "Training", "ndcg@10", "User u0", "the i01"):
        assert expected in text
    systems = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert {"Popularity", "item-kNN", "PSID"} <= systems
    assert "ridge" in text.lower()
    assert "reference" in text
    assert "invalid lists of the model: 0.00 %" in text
    assert text.splitlines()[-1].startswith("Go on with: hf-genrec recommend --model ")
    assert len(result["users"]) == 3
    assert result["evaluation"]["model"]["invalid_rate"] == 0


def test_stages_that_are_done_are_skipped_and_changed_ones_are_not(shop, made):
    (prepared, settings), folder = shop, made[0]
    files = [folder / name for name in ("embeddings.safetensors", "semantic_ids", "psid/model.safetensors")]
    times = [path.stat().st_mtime_ns for path in files]

    _, text = demo(folder, prepared, settings)

    assert [path.stat().st_mtime_ns for path in files] == times
    assert text.count("(done before)") == 5
    other = DemoSettings(settings.matrix, settings.matrix, **SETTINGS | {"shape": SETTINGS["shape"] | {"d_ff": 40}})
    with pytest.raises(ValueError, match="trained with other settings"):
        demo(folder, prepared, other)


def test_killed_evaluation_is_made_up_for(shop, made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "demo")
    (folder / "model" / "evaluation.json").unlink()

    second, text = demo(folder, *shop)

    assert text.count("(done before)") == 4
    assert second["evaluation"]["model"]["ndcg@10"] == made[1]["evaluation"]["model"]["ndcg@10"]
    written = json.loads((folder / "model" / "evaluation.json").read_text(encoding="utf-8"))
    assert written == second["evaluation"]
