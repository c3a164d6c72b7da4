"""The command line with long ids: product quantization, `--architecture rpg` and `acerec`, decodings, the graph."""

import json

import pytest
from test_cli import error_of, result_of, shop  # noqa: F401


TINY = [
    "--d-model",
    "16",
    "--d-ff",
    "24",
    "--heads",
    "2",
    "--layers",
    "1",
    "--batch-size",
    "64",
    "--precision",
    "fp32",
]


@pytest.fixture(scope="module")
def parallel(shop, tmp_path_factory):  # noqa: F811
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


@pytest.mark.parametrize(("name", "system"), [("rpg", "RPG"), ("acerec", "ACERec")])
def test_run_is_evaluated_beside_the_baselines_by_exact_scores(parallel, name, system):
    data, folder = parallel

    record = result_of("evaluate", folder / name, data)
    card = (folder / name / "README.md").read_text(encoding="utf-8")

    assert record["run"]["decoding"] == "exact"
    assert "num_beams" not in record["run"]
    assert record["model"]["invalid_rate"] == 0
    assert set(record["baselines"]) == {"popularity", "item_knn"}
    assert f"# An {system} recommender" in card
    assert "predicts all codes" in card


def test_graph_is_written_beside_the_model_and_used(parallel):
    data, folder = parallel
    asked = ["recommend", "--model", folder / "rpg", "--history", "i3", "i4", "--top-k", "5"]
    missing = error_of(*asked, "--decoding", "graph")

    built = result_of("graph", folder / "rpg", "--neighbors", "23")
    exact, by_graph = result_of(*asked), result_of(*asked, "--decoding", "graph")

    assert "graph" in missing
    assert (built["num_items"], built["num_neighbors"], built["overlap"]) == (23, 23, 1.0)
    assert by_graph["recommendations"] == exact["recommendations"]
    evaluate = ["evaluate", folder / "rpg", data, "--no-baselines", "--decoding", "graph", "--beams", "11"]
    record = result_of(*evaluate, "--search", "num_propagations=0", "--search", "start_seed=3")
    assert record["run"]["decoding"] == "graph"
    assert record["run"]["search_options"]["num_propagations"] == 0
    assert record["model"]["num_visited"] <= 23


def test_settings_of_the_config_are_set_by_name_and_wrong_ones_are_told(parallel, tmp_path):
    data, folder = parallel
    words = ["train", data, "--ids", folder / "ids", "--output", tmp_path / "run", "--architecture", "acerec", *TINY]
    more = ["--set", "merger=conv", "--set", "alignment_weight=0", "--set", "reconstruction_weight=0"]

    record = result_of(*words, "--epochs", "1", *more, "--set", "num_merged_tokens=2")

    assert record["settings"]["model"]["merger"] == "conv"
    assert record["settings"]["model"]["num_merged_tokens"] == 2
    assert "takes NAME=VALUE" in error_of(*words, "--set", "merger")
    for wrong in ("num_levels=3", "dtype=float16"):
        assert f"no ACERecConfig has: {wrong.partition('=')[0]}" in error_of(*words, "--set", wrong)
    assert "value of the wrong type" in error_of(*words, "--set", "temperature=cold")
    assert "has no `--decoder-layers`" in error_of(*words, "--decoder-layers", "2")
    assert "must be one of" in error_of(
        "train", data, "--ids", folder / "ids", "--output", tmp_path, "--architecture", "gru"
    )


def test_each_architecture_has_its_recipe(parallel):
    _, folder = parallel

    settings = json.loads((folder / "rpg" / "training.json").read_text(encoding="utf-8"))["settings"]

    assert settings["model"]["position_std"] == 0.002
    assert settings["training"]["weight_decay"] == 0.0
    assert settings["training"]["learning_rate"] == 5e-4


def test_checkpoint_keeps_its_architecture_when_it_is_tuned(parallel, tmp_path):
    data, folder = parallel
    tune = ["train", data, "--from", folder / "acerec", "--output", tmp_path / "tuned", "--epochs", "1"]

    record = result_of(*tune, "--batch-size", "64", "--precision", "fp32")

    assert record["settings"]["training"]["learning_rate"] == 5e-4
    assert record["settings"]["model"]["model_type"] == "acerec"
    assert "--architecture" in error_of(*tune, "--architecture", "rpg")


def test_latte_writes_no_graph_and_knows_no_other_decoding(shop):  # noqa: F811
    assert "writes codes one by one" in error_of("graph", shop / "run")
    asked = ["recommend", "--model", shop / "run", "--history", "i3"]
    assert "`--decoding` must be 'beam', got 'graph'" in error_of(*asked, "--decoding", "graph")
