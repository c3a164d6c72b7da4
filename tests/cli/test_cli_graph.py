"""`hf-genrec graph` and the decoding along it."""

from cli_shop import error_of, result_of


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


def test_latte_writes_no_graph_and_knows_no_other_decoding(shop):
    assert "writes codes one by one" in error_of("graph", shop / "run")
    asked = ["recommend", "--model", shop / "run", "--history", "i3"]
    assert "`--decoding` must be 'beam', got 'graph'" in error_of(*asked, "--decoding", "graph")
