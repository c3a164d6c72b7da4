"""`hf-genrec fit` and `ensemble`: run folders without training steps."""

from cli_shop import error_of, result_of


def test_members_without_a_name_are_called_by_the_last_part_of_their_path(shop, tmp_path):
    for name, method in (("near", "item-knn"), ("line", "ridge")):
        result_of("fit", shop / "data", "--output", tmp_path / name, "--method", method)
    words = ["ensemble", shop / "data", "--output", tmp_path / "sum"]

    record = result_of(*words, f"{tmp_path / 'near'}/", f"LINE={tmp_path / 'line'}")

    assert list(record["members"]) == record["ensemble"]["scores"] == ["near", "LINE"]
    assert "Two members are called 'near'" in error_of(*words, tmp_path / "near", tmp_path / "x" / "near")
