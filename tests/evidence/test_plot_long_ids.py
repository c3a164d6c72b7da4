"""The two plots of long ids: which points, named how, in which files."""

import sys

import pandas as pd
import pyarrow as pa
import pytest
from test_results import make_record

from hf_genrec.evaluation.record import users_path, write_users
from line_plots import Panel
from results import write_result


@pytest.fixture
def drawn(load_script, tmp_path, monkeypatch):
    """What `plot_long_ids.py` draws of two lengths and of three test users of a SASRec: arguments by file."""
    script, plots = load_script("plot_long_ids"), {}
    monkeypatch.setattr(script, "plot_lines", lambda panels, path, **options: plots.update({path: (panels, options)}))
    for number, value in ((16, 0.02), (4, 0.01)):
        write_result(make_record(f"beauty_rpg_length{number}_seed1", value=value), tmp_path)
    users = pd.DataFrame({"num_train": [3, 3, 30], "rank": [0, -1, 2], "rank_item_knn": 0, "rank_ridge": -1})
    sasrec = write_result(make_record("beauty_sasrec_seed1", num_users=3), tmp_path)
    write_users(pa.Table.from_pandas(users), users_path(sasrec))
    folders = ["--records", str(tmp_path), "--output", str(tmp_path / "curves")]
    monkeypatch.setattr(sys, "argv", ["plot_long_ids.py", *folders])
    script.main()
    return {path.relative_to(tmp_path).as_posix(): plot for path, plot in plots.items()}


def test_measured_lengths_are_drawn_beside_published_and_reproduced_ones(drawn):
    lines = {
        "ours, 15 epochs": [(4, 0.04), (16, 0.05)],
        "published": [(4, 0.029), (8, 0.037), (16, 0.0453), (32, 0.0464), (64, 0.0443)],
        "reproduced": [(4, 0.0266), (8, 0.0383), (16, 0.0463), (32, 0.0469), (64, 0.0439)],
    }

    assert drawn["curves/id_lengths.png"] == (
        [Panel("RPG on Beauty", lines)],
        {"x_label": "codes per item", "y_label": "ndcg@10", "log_x": True, "x_ticks": [4, 8, 16, 32, 64]},
    )


def test_rare_and_frequent_targets_are_places_named_by_their_group(drawn):
    lines = {
        "SASRec": [(0, 0.5), (4, 0.5)],  # a hit at the first place and a miss; a hit at the third place
        "item-kNN": [(0, 1.0), (4, 1.0)],
        "ridge": [(0, 0.0), (4, 0.0)],
    }

    assert drawn["curves/rare_targets.png"] == (
        [Panel("Beauty", lines)],
        {
            "x_label": "how often the target was taken in training",
            "y_label": "ndcg@10",
            "x_ticks": {0: "0-5", 1: "6-10", 2: "11-15", 3: "16-20", 4: "21+"},
        },
    )
