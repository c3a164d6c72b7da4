"""The quick start at toy size: every stage once, none twice."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from hf_genrec.cli.quick_start import DemoSettings, run_demo


SETTINGS = {
    "tokenizer": {"num_levels": 2, "codebook_size": 4, "num_whitened": 3, "fit_on": "train", "seed": 5},
    "shape": {
        "history_attention": "causal", "num_latent_tokens": 3, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2,
        "num_layers": 1, "num_decoder_layers": 1,
    },
    "schedule": {"num_train_epochs": 1, "eval_num_beams": 10, "precision": "fp32", "disable_tqdm": True},
    "test_beams": 13,
}  # fmt: skip


@pytest.fixture
def shop(make_prepared, tmp_path):
    """A prepared data set of 13 items and a matrix for it."""
    users = {f"u{user}": [f"i{(user + step) % 13:02d}" for step in range(5 + user % 3)] for user in range(17)}
    np.save(tmp_path / "matrix.npy", np.random.default_rng(3).normal(size=(13, 7)).astype(np.float32))
    return make_prepared(users, protocol="custom"), str(tmp_path / "matrix.npy")


def demo(folder, prepared, settings):
    console = Console(file=io.StringIO(), width=120, highlight=False)
    result = run_demo(folder, console=console, prepared=prepared, settings=settings)
    return result, console.file.getvalue()


def test_demo_shows_every_stage_and_tells_how_to_go_on(shop, tmp_path):
    prepared, matrix = shop

    result, text = demo(tmp_path / "demo", prepared, DemoSettings(matrix=matrix, **SETTINGS))

    for expected in ("density", "perplexity", "Training", "ndcg@10", "Popularity", "item-kNN", "User u0", "the i01"):
        assert expected in text
    assert "invalid lists of the model: 0.00 %" in " ".join(text.split())
    assert text.splitlines()[-1].startswith("Go on with: hf-genrec recommend --model ")
    assert len(result["users"]) == 3
    assert result["evaluation"]["model"]["invalid_rate"] == 0


def test_stages_that_are_done_are_skipped_and_changed_ones_are_not(shop, tmp_path):
    prepared, matrix = shop
    demo(tmp_path / "demo", prepared, DemoSettings(matrix=matrix, **SETTINGS))
    files = [
        tmp_path / "demo" / name for name in ("embeddings.safetensors", "semantic_ids", "model/model.safetensors")
    ]
    times = [path.stat().st_mtime_ns for path in files]

    _, text = demo(tmp_path / "demo", prepared, DemoSettings(matrix=matrix, **SETTINGS))

    assert [path.stat().st_mtime_ns for path in files] == times
    assert text.count("(done before)") == 4
    other = SETTINGS | {"shape": SETTINGS["shape"] | {"d_ff": 40}}
    with pytest.raises(ValueError, match="trained with other settings"):
        demo(tmp_path / "demo", prepared, DemoSettings(matrix=matrix, **other))


def test_killed_evaluation_is_made_up_for(shop, tmp_path):
    prepared, matrix = shop
    settings = DemoSettings(matrix=matrix, **SETTINGS)
    first, _ = demo(tmp_path / "demo", prepared, settings)
    (tmp_path / "demo" / "model" / "evaluation.json").unlink()

    second, text = demo(tmp_path / "demo", prepared, settings)

    assert text.count("(done before)") == 3
    assert second["evaluation"]["model"]["ndcg@10"] == first["evaluation"]["model"]["ndcg@10"]
    written = json.loads((tmp_path / "demo" / "model" / "evaluation.json").read_text(encoding="utf-8"))
    assert written == second["evaluation"]
