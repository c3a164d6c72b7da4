"""`hf-genrec tokenize`: ids that are made, imported, refused."""

import json

from cli_shop import NUM_ITEMS, error_of, result_of, run

from hf_genrec.tokenizers.semantic_ids import SemanticIds


def test_tokenize_prints_collisions_and_usage(shop, tmp_path):
    words = ["tokenize", shop / "data", "--embeddings", shop / "emb", "--codebook-size", "4", "--levels", "2"]

    result = run(*words, "--whiten", "0", "--policy", "append", "--output", tmp_path / "ids")

    assert result.exit_code == 0, result.stderr
    assert "distinct ids" in result.stdout
    assert "perplexity" in result.stdout
    fit = json.loads((tmp_path / "ids" / "tokenizer.json").read_text(encoding="utf-8"))["fit"]
    rows = [line.replace("│", " ").split() for line in result.stdout.splitlines() if "%" in line][-3:]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[-1] for row in rows] == [*(f"{error:.3f}" for error in fit["relative_error"]), "-"]
    assert SemanticIds.load(tmp_path / "ids" / "semantic_ids.parquet").num_levels == 3
    assert not (tmp_path / "ids" / "quantizer" / "whitening.safetensors").exists()


def test_ids_of_other_projects_are_imported(shop, tmp_path):
    table = {f"i{n}": [n % 4, n // 4] for n in range(NUM_ITEMS)}
    (tmp_path / "ids.json").write_text(json.dumps(table), encoding="utf-8")
    words = ["tokenize", shop / "data", "--ids", tmp_path / "ids.json", "--output", tmp_path / "ids"]

    found = result_of(*words, "--policy", "keep")

    assert found["statistics"]["after"]["num_distinct"] == NUM_ITEMS
    assert "centroids" in error_of(*words, "--policy", "rematch")


def test_embeddings_of_other_items_are_refused(shop, tmp_path):
    (tmp_path / "sequences.tsv").write_text("u\ti1 i2 i3\n", encoding="utf-8")
    words = ["--sequences", tmp_path / "sequences.tsv", "--items", shop / "items.jsonl"]
    result_of("prepare", *words, "--output", tmp_path / "data")

    message = error_of("tokenize", tmp_path / "data", "--embeddings", shop / "emb", "--output", tmp_path / "ids")

    assert "other items" in message
