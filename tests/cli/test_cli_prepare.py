"""`hf-genrec prepare`: logs, sequences, steps, what is skipped."""

import json

from cli_shop import COLUMNS, NUM_USERS, error_of, result_of, run


def test_prepare_prints_the_statistics_of_every_step(shop, tmp_path):
    source = ["--interactions", shop / "log.csv", *COLUMNS, "--items", shop / "items.jsonl"]

    result = run("prepare", *source, "--output", tmp_path / "data", "--k-core", "2")

    assert result.exit_code == 0, result.stderr
    assert "read" in result.stdout
    assert "2-core" in result.stdout
    assert f"train {NUM_USERS}, validation {NUM_USERS}, test {NUM_USERS}" in result.stdout
    assert f"next: hf-genrec embed {tmp_path / 'data'} --output embeddings\n" in result.stdout
    assert "Pass `--overwrite` to replace it" in error_of("prepare", *source, "--output", tmp_path / "data")


def test_sequences_are_prepared_as_they_are(tmp_path):
    (tmp_path / "sequences.tsv").write_text("u\ta b c d\nv\tb c a\n", encoding="utf-8")
    items = "".join(json.dumps({"item_id": item, "title": item}) + "\n" for item in "abcd")
    (tmp_path / "items.jsonl").write_text(items, encoding="utf-8")
    source = ["--sequences", tmp_path / "sequences.tsv", "--items", tmp_path / "items.jsonl"]

    found = result_of("prepare", *source, "--output", tmp_path / "data")

    assert found["statistics"]["num_interactions"] == 7
    assert found["splits"] == {"train": 2, "validation": 2, "test": 2}


def test_malformed_lines_are_skipped_and_counted_if_asked_for(shop, tmp_path):
    text = (shop / "log.csv").read_text(encoding="utf-8") + "u1,,12\n"
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    source = ["--interactions", tmp_path / "log.csv", *COLUMNS, "--items", shop / "items.jsonl"]

    message = error_of("prepare", *source, "--output", tmp_path / "data")
    found = result_of("prepare", *source, "--output", tmp_path / "data", "--on-error", "skip")

    assert f"line {len(text.splitlines())}" in message
    assert found["skipped"]["log_lines"] == 1


def test_columns_and_fields_of_other_names_are_asked_for_one_after_the_other(tmp_path):
    (tmp_path / "log.csv").write_text("who;what\n" + "u;a\nu;b\nu;c\n", encoding="utf-8")
    (tmp_path / "items.csv").write_text("sku,name\na,A cup\nb,A pot\nc,A pan\n", encoding="utf-8")
    words = ["prepare", "--interactions", tmp_path / "log.csv", "--items", tmp_path / "items.csv"]
    words += ["--output", tmp_path / "data", "--timestamp-column", ""]

    assert "Name the column with `--user-column`, `--item-column`." in error_of(*words)
    words += ["--user-column", "who", "--item-column", "what"]
    assert "the fields are 'sku', 'name'; name the field of the ids with `--items-id`" in error_of(*words)
    words += ["--items-id", "sku"]
    assert "the items table has 'name'. Name others with `--title-field` or `--text-fields`" in error_of(*words)
    words += ["--separator", ";"]
    assert result_of(*words, "--title-field", "name")["statistics"]["num_items"] == 3
