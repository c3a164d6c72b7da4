"""What a recommender writes: the same folder that it reads, with or without a card."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_genrec import Recommender
from invariants.model import random_codes
from saved_folders import ARCHITECTURES, ITEM_IDS, TITLES, make_folder, model_of


HISTORIES = [["i3"], [], ["i1", "i7", "i4"]]


def recommender_of(architecture="latte"):
    model = model_of(architecture)
    if model.config.has_codes:
        model.set_catalog(random_codes(len(ITEM_IDS), model.config.num_levels, model.config.codebook_size))
    return Recommender(model, pa.table({"item_id": ITEM_IDS, "title": TITLES, "price": [1.0] * len(ITEM_IDS)}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_saved_answers_the_same(tmp_path, architecture):
    recommender = recommender_of(architecture)

    folder = recommender.save_pretrained(tmp_path / "a" / "run")

    loaded = Recommender.from_pretrained(folder, device="cpu")
    assert loaded.recommend(HISTORIES, top_k=5).item_ids == recommender.recommend(HISTORIES, top_k=5).item_ids
    assert loaded.titles(["i2"]) == ["T2"]
    assert ("codes" in loaded.items.column_names) == loaded.model.config.has_codes
    assert not (folder / "README.md").exists()
    assert recommender.saved_folder() == folder


def test_quantizer_and_graph_that_it_was_loaded_with_come_along(tmp_path):
    folder = make_folder(tmp_path / "run")
    (folder / "quantizer").mkdir()
    (folder / "quantizer" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "item_graph.safetensors").write_bytes(b"graph")

    copy = Recommender.from_pretrained(folder, device="cpu").save_pretrained(tmp_path / "copy")

    assert {path.name for path in copy.iterdir()} == {path.name for path in folder.iterdir()} - {"README.md"}
    assert (copy / "quantizer" / "config.json").read_text(encoding="utf-8") == "{}"


def test_saving_in_place_keeps_the_quantizer_and_what_is_not_ours_and_drops_the_evaluation(tmp_path):
    folder = make_folder(tmp_path / "run")
    (folder / "quantizer").mkdir()
    (folder / "quantizer" / "config.json").write_text("{}", encoding="utf-8")
    for name in ("notes.txt", "evaluation.json", "evaluation_users.parquet"):
        (folder / name).write_text("mine", encoding="utf-8")

    recommender = Recommender.from_pretrained(folder, device="cpu")
    recommender.model.shared.weight.data += 1
    recommender.save_pretrained(folder)

    names = {path.name for path in folder.iterdir()}
    assert {"quantizer", "notes.txt", "README.md"} < names
    assert not [name for name in names if name.startswith(("evaluation", ".partial"))]
    assert recommender.saved_folder() == folder


def test_folder_is_as_it_was_if_writing_fails(tmp_path):
    folder = make_folder(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    recommender = Recommender.from_pretrained(folder, device="cpu")
    recommender.model.shared.weight.data += 1
    with pytest.raises(FileNotFoundError):
        recommender.save_pretrained(folder, quantizer=tmp_path / "missing")

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_items_of_a_model_are_those_it_was_saved_with(tmp_path):
    recommender = recommender_of()
    folder = recommender.save_pretrained(tmp_path / "run")

    assert pq.read_table(folder / "items.parquet").column_names == ["item_id", "codes", "title"]
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["items_fingerprint"]
    with pytest.raises(ValueError, match="are not those the model was saved with"):
        Recommender(recommender.model, pa.table({"item_id": ITEM_IDS[::-1]}))
