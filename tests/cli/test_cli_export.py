"""`hf-genrec export`."""

import json

import pyarrow.parquet as pq
import pytest
from cli_shop import error_of, result_of


def test_catalog_is_exported_and_counted(shop, tmp_path):
    found = result_of("export", shop / "run", "--to", "flashrec", "--output", tmp_path / "ids.json")

    codes = pq.read_table(shop / "run" / "items.parquet")["codes"].to_pylist()
    assert found["num_items"] == len(codes)
    assert set(json.loads((tmp_path / "ids.json").read_text())) == {",".join(map(str, row)) for row in codes}


def test_options_of_onnx_are_refused_for_other_targets(shop, tmp_path):
    assert "are for `--to onnx`, not for static" in error_of(
        "export", shop / "run", "--to", "static", "--output", tmp_path / "x", "--int8"
    )


@pytest.mark.slow
def test_model_that_is_searched_code_by_code_becomes_two_graphs_and_a_trie(shop, tmp_path):
    result_of("export", shop / "run", "--to", "onnx", "--output", tmp_path / "onnx")

    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert names == {"encoder.onnx", "decoder.onnx", "trie.npz", "items.parquet", "onnx_config.json", "README.md"}
