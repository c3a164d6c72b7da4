"""The table of large catalogs."""

from large_catalog_results import large_catalog_blocks


def test_steps_have_a_column_for_each_size_and_one_for_the_version_before():
    steps = [
        {"phase": "load", "step": "SASRec: loading", "num_items": 10, "cpu_seconds": 0.2, "peak_mb": 3.0},
        {"phase": "load", "step": "SASRec: loading", "num_items": 100, "cpu_seconds": 2.5, "peak_mb": 31.4},
        {"phase": "evaluate", "step": "ridge", "num_items": 10, "cpu_seconds": 1, "peak_mb": 9.0, "num_users": 7},
        {"phase": "evaluate", "step": "RPG", "num_items": 10, "cpu_seconds": 1, "peak_mb": 9.0, "num_users": 2000},
        {"phase": "evaluate", "step": "RPG", "num_items": 100, "cpu_seconds": 2, "peak_mb": 8.0, "num_users": 200},
    ]
    before = [steps[1] | {"cpu_seconds": 12.0}]

    title, _, table = large_catalog_blocks(
        {"steps": steps, "exponents": {"load: SASRec: loading": 1.1}, "before": before}
    )

    assert title == "## Large catalogs"
    assert table.splitlines()[0] == "| phase | step | 10 items | 100 items | peak, MB | exponent | before |"
    assert table.splitlines()[2:] == [
        "| load | SASRec: loading | 0.20 | 2.50 | 31 | 1.10 | 12.00 |",
        "| evaluate | ridge, 7 users | 1.00 | - | 9 | - | - |",
        "| evaluate | RPG | 1.00 (2,000) | 2.00 (200) | 8 | - | - |",
    ]
    assert large_catalog_blocks(None) == []
