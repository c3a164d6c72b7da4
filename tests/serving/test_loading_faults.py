"""A folder whose files do not belong together, or are damaged, is an error and never a wrong recommendation."""

import json
import logging
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, pipeline

from hf_genrec import Recommender, SASRecForItemGeneration
from hf_genrec.hub.files import hub_files
from hf_genrec.modeling.genrec_folder import check_manifest, recorded
from saved_folders import ARCHITECTURES, ITEM_IDS, make_folder


PERMUTED = [*ITEM_IDS[1:], ITEM_IDS[0]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Per architecture a good folder, and one of other weights and codes over the same items in another order."""
    root = tmp_path_factory.mktemp("folders")
    made = {}
    for architecture in ARCHITECTURES:
        good = make_folder(root / architecture, architecture)
        other = make_folder(root / f"{architecture}-other", architecture, item_ids=PERMUTED, seed=1)
        made[architecture] = (good, other)
    return made


def model(folder):
    AutoModel.from_pretrained(folder)


def recommender(folder):
    Recommender.from_pretrained(folder, device="cpu")


def next_items(folder):
    pipeline("next-item-recommendation", model=str(folder), device="cpu")(["i1"])


def truncated(name):
    def damage(folder, _):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])

    return damage


def missing(name):
    return lambda folder, _: (folder / name).unlink()


def swapped(*names):
    def damage(folder, other):
        for name in names:
            shutil.copyfile(other / name, folder / name)

    return damage


def changed_config(name="config.json", **changes):
    def damage(folder, _):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return damage


def changed_weights(change):
    def damage(folder, _):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def one_other_code(weights):
    weights["item_codes"][3, 1] = (weights["item_codes"][3, 1] + 1) % 5


def no_digest(weights):
    del weights["items_digest"]


def changed_table(change):
    def damage(folder, _):
        pq.write_table(change(pq.read_table(folder / "items.parquet")), folder / "items.parquet")

    return damage


def reversed_rows(table):
    return table.take(list(range(table.num_rows - 1, -1, -1)))


def one_row_more(table):
    return pa.concat_tables([table, table.slice(0, 1)])


def edited_codes(table):
    codes = table["codes"].to_pylist()
    codes[0], codes[1] = codes[1], codes[0]
    return table.set_column(1, "codes", pa.array(codes, pa.list_(pa.int16())))


def changed_vocabulary(change):
    def damage(folder, _):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content["model"]["vocab"])
        path.write_text(json.dumps(content), encoding="utf-8")

    return damage


def exchanged_tokens(vocabulary):
    vocabulary["i3"], vocabulary["i4"] = vocabulary["i4"], vocabulary["i3"]


def one_token_more(vocabulary):
    vocabulary["new"] = len(vocabulary)


def weights_of_pickle(folder, _):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


WEIGHTS_LACK = r"model\.safetensors\) are not those of its config\.json.* they lack `encoder"
FAULTS = {
    "truncated weights": ("latte", truncated("model.safetensors"), model, r"model\.safetensors\) are damaged"),
    "missing weights": ("latte", missing("model.safetensors"), model, "model.safetensors"),
    "weights in a pickle": ("latte", weights_of_pickle, model, "model.safetensors"),
    "weights of other codes": ("latte", swapped("model.safetensors"), model, r"`item_codes`.*`catalog_fingerprint`"),
    "weights of other codes, rpg": ("rpg", swapped("model.safetensors"), model, "`item_codes`.*`catalog_fingerprint`"),
    "weights of other codes, acerec": ("acerec", swapped("model.safetensors"), model, "`item_codes`"),
    "weights of permuted items": (
        "sasrec", swapped("model.safetensors"), model, "saved for items with fingerprint .* `items_fingerprint`"
    ),
    "one code in the weights": ("latte", changed_weights(one_other_code), model, "`item_codes`"),
    "config of a deeper model": ("latte", changed_config(num_layers=3), model, WEIGHTS_LACK),
    "config of a flatter model": (
        "latte", changed_config(num_decoder_layers=1), model, "they hold what the model has no"
    ),
    "config of other codes": ("latte", changed_config(catalog_fingerprint="0" * 16), model, "`catalog_fingerprint` 0"),
    "truncated config": ("latte", truncated("config.json"), model, "not a valid JSON file"),
    "table and tokenizer of another revision": (
        "sasrec", swapped("items.parquet", "tokenizer.json"), recommender, r"items\.parquet.* are not those"
    ),
    "tokenizer of another revision": (
        "sasrec", swapped("tokenizer.json"), next_items, r"tokenizer\.json.* are not those .*config\.json"
    ),
    "exchanged tokens": ("latte", changed_vocabulary(exchanged_tokens), next_items, r"tokenizer\.json, 29 items"),
    "exchanged tokens, recommender": ("sasrec", changed_vocabulary(exchanged_tokens), recommender, "tokenizer.json"),
    "one token more": ("latte", changed_vocabulary(one_token_more), next_items, r"holds 51 tokens.*config\.json\) 50"),
    "one token more, recommender": ("latte", changed_vocabulary(one_token_more), recommender, "tokenizer.json"),
    "truncated tokenizer": ("latte", truncated("tokenizer.json"), next_items, None),
    "permuted table": ("sasrec", changed_table(reversed_rows), recommender, "items.parquet.* are not those the model"),
    "permuted table, pipeline": ("sasrec", changed_table(reversed_rows), next_items, "does not list the 29 items"),
    "one item more": ("rpg", changed_table(one_row_more), recommender, r"items\.parquet, 30 items"),
    "one item more, pipeline": ("rpg", changed_table(one_row_more), next_items, "30 rows"),
    "edited codes": ("latte", changed_table(edited_codes), recommender, "codes of the item table"),
    "truncated table": ("latte", truncated("items.parquet"), recommender, "no readable Parquet file"),
    "truncated table, pipeline": ("latte", truncated("items.parquet"), next_items, "no readable Parquet file"),
    "missing table": ("latte", missing("items.parquet"), recommender, "items.parquet"),
}  # fmt: skip


@pytest.mark.parametrize(("architecture", "damage", "load", "text"), list(FAULTS.values()), ids=list(FAULTS))
def test_fault_is_an_error_that_names_it(folders, tmp_path, architecture, damage, load, text):
    good, other = folders[architecture]
    folder = shutil.copytree(good, tmp_path / "folder")

    damage(folder, other)

    with pytest.raises((ValueError, OSError)):
        load(folder)
    (folder / "manifest.json").unlink()  # as in folders that were saved before there was one
    with pytest.raises(Exception, match=text):  # of transformers, safetensors or ours
        load(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folder_without_a_fault_loads_everywhere(folders, architecture):
    for load in (model, recommender, next_items):
        load(folders[architecture][0])


def first(weights):
    return next(tensor for tensor in weights.values() if tensor.is_floating_point())


TABLE_EDITED = changed_table(lambda table: table.set_column(1, "title", pa.array(["another"] * table.num_rows)))


@pytest.mark.parametrize(
    ("load", "name", "damage"),
    [
        (model, "model.safetensors", changed_weights(lambda weights: first(weights).add_(1e-3))),
        (model, "config.json", changed_config(dropout_rate=0.7)),
        (recommender, "items.parquet", TABLE_EDITED),
        (next_items, "items.parquet", TABLE_EDITED),
        (next_items, "tokenizer_config.json", changed_config("tokenizer_config.json", note="mine")),
    ],
)
def test_any_change_of_a_saved_file_is_an_error_that_names_it_and_the_way_out(folders, tmp_path, load, name, damage):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")

    damage(folder, None)

    with pytest.raises(ValueError, match=rf"{name} is not the file that was saved.*`check_files=False`"):
        load(folder)
    (folder / "manifest.json").unlink()
    load(folder)


def test_edited_files_are_read_where_that_is_asked_for(folders, tmp_path):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    changed_config(dropout_rate=0.7)(folder, None)

    AutoModel.from_pretrained(folder, check_files=False)
    pipeline("next-item-recommendation", model=str(folder), device="cpu", model_kwargs={"check_files": False})(["i1"])
    assert Recommender.from_pretrained(folder, device="cpu", check_files=False).model.config.dropout_rate == 0.7


def test_weights_of_another_run_over_the_same_catalog_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    other = make_folder(tmp_path / "other", "sasrec", seed=1)

    shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")

    for load in (model, recommender, next_items):
        with pytest.raises(ValueError, match=r"model\.safetensors is not the file that was saved"):
            load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(folders, tmp_path, value):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    changed_weights(lambda weights: first(weights).fill_(value))(folder, None)
    (folder / "manifest.json").unlink()
    whole = Recommender.from_pretrained(folders["sasrec"][0], device="cpu")
    next(whole.model.parameters()).data.flatten()[3] = value

    for load in (model, recommender):
        with pytest.raises(ValueError, match="must be finite; `.*` holds"):
            load(folder)
    with pytest.raises(ValueError, match="must be finite; `.*` holds 1 NaN"):
        whole.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["config.json", "recommend_config.json", "items.parquet", "tokenizer.json"])
def test_missing_file_is_an_error_that_names_it(folders, tmp_path, name):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    (folder / name).unlink()

    with pytest.raises(OSError, match=name.replace(".", r"\.")):
        recommender(folder)


def test_quantizer_stays_in_the_manifest_when_the_model_is_saved_again(folders, tmp_path):
    quantizer = tmp_path / "quantizer"
    quantizer.mkdir()
    (quantizer / "config.json").write_text("{}", encoding="utf-8")
    whole = Recommender.from_pretrained(folders["latte"][0], device="cpu")
    folder = whole.save_pretrained(tmp_path / "run", quantizer=quantizer)

    whole.model.save_pretrained(folder)

    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    listed = {"config.json", "items.parquet", "model.safetensors", "quantizer/config.json", "tokenizer.json"}
    assert listed <= set(files)


def test_settings_saved_later_enter_the_manifest(folders, tmp_path):
    folder = shutil.copytree(folders["latte"][0], tmp_path / "folder")
    loaded = AutoModel.from_pretrained(folder)

    loaded.recommend_config.num_beams = 7
    loaded.recommend_config.save(folder)
    recommender(folder)
    loaded.shared.weight.data += 1
    loaded.save_pretrained(folder)
    recommender(folder)


@pytest.mark.parametrize("content", ["", "{}", "[", '{"files": {}, "digest": ""}', '{"files": [], "digest": "x"}'])
def test_damaged_manifest_is_an_error(folders, tmp_path, content):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    (folder / "manifest.json").write_text(content, encoding="utf-8")

    for load in (model, recommender, next_items):
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            load(folder)


def test_weights_may_be_missing_only_where_that_is_asked_for(folders, tmp_path):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    changed_config(num_layers=3)(folder, None)

    options = {"ignore_mismatched_sizes": True, "output_loading_info": True, "check_files": False}
    loaded, info = AutoModel.from_pretrained(folder, **options)

    assert len(loaded.encoder.blocks if hasattr(loaded.encoder, "blocks") else loaded.encoder.h) == 3
    assert info["missing_keys"]


def test_weights_saved_without_a_digest_of_the_items_are_read(folders, tmp_path):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")

    changed_weights(no_digest)(folder, None)

    assert AutoModel.from_pretrained(folder, check_files=False).items_digest.tolist() == [0] * 8


def test_other_formats_than_safetensors_are_refused(folders):
    with pytest.raises(ValueError, match="reads its weights from safetensors files only"):
        SASRecForItemGeneration.from_pretrained(folders["sasrec"][0], use_safetensors=False)


def test_a_folder_without_a_manifest_is_read_with_a_warning_that_says_how_to_write_one(folders, tmp_path, caplog):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    (folder / "manifest.json").unlink()
    logging.getLogger("transformers").addHandler(caplog.handler)

    loaded = Recommender.from_pretrained(folder, device="cpu")

    assert (
        sum("folder has no manifest.json" in message and "`save_pretrained`" in message for message in caplog.messages)
        == 1
    )
    caplog.clear()
    loaded.save_pretrained(folder)
    recommender(folder)
    assert not any("manifest" in message for message in caplog.messages)


def test_damaged_weights_without_a_manifest_are_an_error_that_names_the_file(folders, tmp_path):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    (folder / "manifest.json").unlink()
    truncated("model.safetensors")(folder, None)

    for load in (model, recommender, next_items):
        with pytest.raises(ValueError, match=r"weights of .*folder \(model\.safetensors\) are damaged: Error"):
            load(folder)


@pytest.mark.parametrize("architecture", ["latte", "rpg", "sasrec"])
@pytest.mark.parametrize("epsilon", [0.0, -1e-6, 1e6, float("nan")])
def test_an_epsilon_that_no_layer_has_is_refused(folders, tmp_path, architecture, epsilon):
    shutil.copy(folders[architecture][0] / "config.json", tmp_path)
    changed_config(layer_norm_epsilon=epsilon)(tmp_path, None)

    with pytest.raises(ValueError, match="`layer_norm_epsilon` must be above 0 and at most 0.1"):
        AutoConfig.from_pretrained(tmp_path)


def test_files_that_come_later_enter_the_manifest_and_their_damage_is_found(folders, tmp_path):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")

    for content in ("{}", "[]"):
        with recorded(folder, "evaluation.json"):
            assert "evaluation.json" not in json.loads((folder / "manifest.json").read_text())["files"]
            (folder / "evaluation.json").write_text(content, encoding="utf-8")
        recommender(folder)
        next_items(folder)
    (folder / "evaluation.json").write_text("{}", encoding="utf-8")

    recommender(folder)  # which does not read it
    with pytest.raises(ValueError, match=r"evaluation\.json is not the file that was saved"):
        pipeline("next-item-recommendation", model=str(folder), device="cpu").check_files("evaluation.json")
    with pytest.raises(ValueError, match=r"evaluation\.json is not the file that was saved"):
        hub_files(folder)


def test_a_manifest_goes_to_the_hub_as_that_of_the_files_that_go(folders, tmp_path):
    folder = shutil.copytree(folders["sasrec"][0], tmp_path / "folder")
    with recorded(folder, "evaluation.json", "item_neighbors.parquet"):
        (folder / "evaluation.json").write_text('{"command": "evaluate /home/me/run"}', encoding="utf-8")
        shutil.copyfile(folder / "items.parquet", folder / "item_neighbors.parquet")

    contents = hub_files(folder)

    published = tmp_path / "published"
    published.mkdir()
    for name, content in contents.items():
        (published / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    files = json.loads((published / "manifest.json").read_text())["files"]
    assert (published / "evaluation.json").read_text() == '{\n  "command": "evaluate run"\n}\n'
    assert "evaluation.json" in files
    assert "item_neighbors.parquet" not in files
    assert check_manifest(published, files.__contains__)
