"""The folder that a Hub repository holds: complete, consistent, never half-written."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from hf_genrec import Recommender, SemanticIds, save_recommender
from hf_genrec.serving.folder import item_table
from invariants.model import NUM_ITEMS, make_model, random_codes, tiny_config


ITEM_IDS = [f"i{number}" for number in range(NUM_ITEMS)]


@pytest.fixture
def model():
    return make_model(tiny_config(num_latent_tokens=2))


@pytest.fixture
def semantic_ids():
    return SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep")


@pytest.fixture
def items():
    return pa.table(
        {"item_id": ITEM_IDS, "price": [1.0] * NUM_ITEMS, "title": ["T"] * NUM_ITEMS, "text": ["x"] * NUM_ITEMS}
    )


def names_in(folder):
    return {path.name for path in folder.iterdir() if path.suffix != ".py"}


def test_folder_holds_everything_that_a_recommender_needs(tmp_path, model, semantic_ids, items):
    folder = save_recommender(tmp_path / "a" / "run", model, semantic_ids, items)

    assert names_in(folder) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "items.parquet",
        "manifest.json",
        "model.safetensors",
        "recommend_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert Recommender.from_pretrained(folder).recommend([["i3"]], top_k=2).item_ids[0]


def test_item_table_holds_ids_codes_and_texts(tmp_path, model, semantic_ids, items):
    folder = save_recommender(tmp_path, model, semantic_ids, items)

    table = pq.read_table(folder / "items.parquet")
    assert table.column_names == ["item_id", "codes", "title", "text"]
    assert table["item_id"].to_pylist() == ITEM_IDS
    assert table["codes"].to_pylist() == random_codes().tolist()
    assert table.schema.field("codes").type == pa.list_(pa.int16())


def test_fingerprints_in_the_config_are_those_of_the_ids(tmp_path, model, semantic_ids, items):
    folder = save_recommender(tmp_path, model, semantic_ids, items)

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["catalog_fingerprint"] == semantic_ids.catalog_fingerprint
    assert config["items_fingerprint"] == semantic_ids.items_fingerprint


def test_tokenizer_reads_the_items(tmp_path, model, semantic_ids, items):
    folder = save_recommender(tmp_path, model, semantic_ids, items)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(["i5", "no"], is_split_into_words=True).input_ids == [model.config.first_item_token + 5, 1]
    assert tokenizer.model_max_length == model.config.max_history_length


def test_card_says_what_the_model_is(tmp_path, model, semantic_ids, items):
    folder = save_recommender(tmp_path, model, semantic_ids, items)

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert "latte" in card.data.tags
    assert "29" in card.text
    assert "{{" not in card.content


def test_card_shows_what_the_model_recommends_by_title(tmp_path, model, semantic_ids, items):
    titled = items.set_column(2, "title", pa.array([f"title of {name}" for name in ITEM_IDS]))

    folder = save_recommender(tmp_path, model.train(), semantic_ids, titled, license="mit")

    card = ModelCard.load(folder / "README.md")
    sample = card.text.split("## Sample output")[1].split("## ")[0]
    history = [line.removeprefix("- title of ") for line in sample.splitlines() if line.startswith("- ")]
    rows = [line.split(" | ") for line in sample.splitlines() if line.startswith("| ")][2:]
    loaded = Recommender.from_pretrained(folder, device="cpu")
    expected = loaded.recommend([history], top_k=5, exclude_seen=True)
    assert len(history) == 3
    assert [row[2] for row in rows] == expected.item_ids[0]
    assert [row[1] for row in rows] == [f"title of {item_id}" for item_id in expected.item_ids[0]]
    assert card.data.license == "mit"
    assert model.training


def test_second_save_keeps_an_edited_readme_and_files_that_are_not_ours(tmp_path, model, semantic_ids, items):
    folder = save_recommender(tmp_path, model, semantic_ids, items)
    (folder / "README.md").write_text("mine\n", encoding="utf-8")
    (folder / "checkpoint-3").mkdir()
    (folder / "notes.txt").write_text("mine\n", encoding="utf-8")

    other = make_model(tiny_config(num_latent_tokens=2), seed=0)
    other.shared.weight.data += 1
    save_recommender(folder, other, semantic_ids, items)

    assert (folder / "README.md").read_text(encoding="utf-8") == "mine\n"
    assert (folder / "checkpoint-3").is_dir()
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine\n"
    loaded = Recommender.from_pretrained(folder, device="cpu")
    assert loaded.model.shared.weight.tolist() == other.shared.weight.tolist()


def test_quantizer_and_evaluation_come_along_and_are_replaced(tmp_path, model, semantic_ids, items):
    for number in (1, 2):
        quantizer = tmp_path / f"tokenized-{number}"
        quantizer.mkdir()
        (quantizer / f"file-{number}.json").write_text("{}", encoding="utf-8")
        folder = save_recommender(
            tmp_path / "run", model, semantic_ids, items, quantizer=quantizer, evaluation=record_of(number)
        )

        assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["num_users"] == number
        assert [path.name for path in (folder / "quantizer").iterdir()] == [f"file-{number}.json"]


def record_of(num_users):
    metrics = {f"{name}@{k}": 0.25 for name in ("recall", "ndcg") for k in (1, 5, 10, 20)}
    values = metrics | {"invalid_rate": 0.0, "intervals": {name: [0.2, 0.3] for name in metrics}}
    return {
        "protocol": "custom",
        "split": "test",
        "num_users": num_users,
        "num_items": NUM_ITEMS,
        "model": values,
        "baselines": {"popularity": values},
    }


def test_nothing_is_written_when_the_parts_do_not_belong_together(tmp_path, model, semantic_ids, items):
    wrong_codes = SemanticIds(ITEM_IDS, random_codes(seed=5).numpy(), 5, "keep")
    wrong_order = items.take(list(range(NUM_ITEMS - 1, -1, -1)))

    with pytest.raises(ValueError, match="codes of the item table"):
        save_recommender(tmp_path / "run", model, wrong_codes, items)
    with pytest.raises(ValueError, match="do not list the same items in the same order"):
        save_recommender(tmp_path / "run", model, semantic_ids, wrong_order)

    assert not (tmp_path / "run").exists()
    assert model.config.items_fingerprint is None


def test_model_of_other_items_is_not_renamed(tmp_path, model, semantic_ids, items):
    save_recommender(tmp_path / "first", model, semantic_ids, items)
    renamed = SemanticIds(["soap", *ITEM_IDS[1:]], random_codes().numpy(), 5, "keep")
    new_items = items.set_column(0, "item_id", pa.array(["soap", *ITEM_IDS[1:]]))

    with pytest.raises(ValueError, match="are not those the model was saved with"):
        save_recommender(tmp_path / "second", model, renamed, new_items)


def test_failed_save_leaves_the_old_folder_as_it_was(tmp_path, model, semantic_ids, items):
    folder = save_recommender(tmp_path / "run", model, semantic_ids, items)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    model.shared.weight.data += 1
    with pytest.raises(FileNotFoundError):
        save_recommender(folder, model, semantic_ids, items, quantizer=tmp_path / "missing")

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_table_without_titles_is_enough(semantic_ids):
    table = item_table(pa.table({"item_id": ITEM_IDS}), semantic_ids.codes)

    assert table.column_names == ["item_id", "codes"]


def test_saving_new_weights_removes_the_evaluation_of_the_old_ones(tmp_path, model, semantic_ids, items):
    for name in ("evaluation.json", "evaluation_users.parquet"):
        (tmp_path / name).write_text("{}", encoding="utf-8")

    folder = save_recommender(tmp_path, model, semantic_ids, items)

    assert not list(folder.glob("evaluation*"))
