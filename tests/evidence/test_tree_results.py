"""What the page says about trees and about the invented world."""

from tree_results import synthetic_blocks, tree_blocks


def row_of(distance, correlation, reversed_share):
    return {"distance": distance, "correlation": {"mean": correlation}, "reversal_rate": {"mean": reversed_share}}


TREE = {"num_levels": 2, "num_neighbours": {"2": 3.25, "4": 140.5}, "targets_with_sibling": 0.8125}
PSID = {"tree_of": "PSID", "tree": TREE, "kendall_tau": -0.5, "interval": [-0.6, -0.4]}
REPORT = {
    "protocol": "toy",
    "num_users": 7,
    "num_pairs": 5,
    "num_items": 1200,
    "latent_aggregation": "sum",
    "command": "hf-genrec diagnose a b",
    "models": {
        "PSID": PSID | {"by_distance": [row_of(2, 0.9, 0.05), row_of(4, None, 0.25)]},
        "Flat": PSID
        | {"kendall_tau": None, "by_distance": [row_of(4, 0.1, 0.5)]}
        | {"latents": {"normalized_entropy": 0.75, "mutual_information": 4.2e-5}},
    },
}


def run_of(system, width, seed, step, *, orders=(0.1, 0.5, 0.75)):
    return {
        "system": system,
        "width": width,
        "seed": seed,
        "num_parameters": 1234,
        "learned_step": step,
        "correlation": 0.5,
        "reversal_rate": 0.25,
        "measurements": [{"step": 5 * n, "order": order, "divergence": order / 2} for n, order in enumerate(orders)],
    }


def test_tree_is_a_table_with_its_conditions_and_its_figure():
    text = "\n".join(tree_blocks({"beauty": REPORT}))

    assert "| PSID | -0.500 [-0.600, -0.400] | 0.900 | – | 0.050 | 0.250 | – | – |" in text
    assert "| Flat | – | – | 0.100 | – | 0.500 | 0.750 | 4.2e-05 |" in text
    assert "an item has 3.2 at distance 2, 140.5 at distance 4 others; 81.2 % of the test targets" in text
    assert "(scripts/evidence/records/trees/beauty.png)" in text
    assert tree_blocks({}) == []


def test_experiment_is_a_table_over_seeds():
    settings = {"steps": 100, "users": 4, "triples": 3, "learning_rate": 0.003, "every": 5, "stays": 8}
    runs = [run_of("SASRec", 8, 2, 40, orders=(0.2, 1.0)), run_of("Latte", 16, 1, None), run_of("SASRec", 8, 1, 60)]

    text = "\n".join(synthetic_blocks({"settings": settings, "command": "python x", "runs": runs}))

    assert "| from step | order at step 5 | divergence at step 5 |\n" in text
    assert "| SASRec | 8 | 1,234 | 2 of 2 | 40, 60 | 0.75 | 0.375 |\n" in text
    assert "| Latte | 16 | 1,234 | 0 of 1 | – | 0.50 | 0.250 |\n" in text  # not 0.75, which it reached at step 10
    assert "ends once 8 measurements in a row were right" in text
    assert synthetic_blocks(None) == synthetic_blocks({"settings": settings, "command": "", "runs": []}) == []
