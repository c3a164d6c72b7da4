"""Which files of a run folder may be published, and what is refused."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec import SemanticIds, save_recommender
from hf_genrec.hub.files import checked_content, files_left_out, hub_files, is_published
from invariants.model import NUM_ITEMS, make_model, random_codes, tiny_config


ITEM_IDS = [f"i{number}" for number in range(NUM_ITEMS - 1)] + ["/home/me/soap"]  # an id may look like a path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    semantic_ids = SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep")
    return save_recommender(folder, make_model(tiny_config()), semantic_ids, pa.table({"item_id": ITEM_IDS}))


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_all_that_saving_wrote_is_published(run):
    assert list(hub_files(run)) == sorted(path.name for path in run.iterdir())


def test_quantizer_and_graph_and_records_come_along(run):
    (run / "quantizer").mkdir()
    for name in ("quantizer/config.json", "evaluation.json", "training.json"):
        (run / name).write_text('{"seed": 7}\n', encoding="utf-8")

    assert {"quantizer/config.json", "evaluation.json", "training.json"} <= hub_files(run).keys()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("checkpoints/checkpoint-3/optimizer.pt", "training states"),
        ("checkpoint-3/model.safetensors", "training states"),
        ("optimizer.pt", "training states"),
        ("training_args.bin", "pickled training arguments"),
        ("pytorch_model.bin", "no safetensors"),
        ("weights.pkl", "no safetensors"),
        ("evaluation_users.parquet", "names users"),
        ("item_neighbors.parquet", "shows how many users took two items"),
        (".cache/huggingface/token", "hidden or a cache"),
        (".env", "hidden or a cache"),
        ("__pycache__/x.pyc", "hidden or a cache"),
        ("log.csv", "no part of a recommender"),
        ("train.py", "no part of a recommender"),
        ("quantizer/cache/config.json", "no part of a recommender"),
        ("quantizer/notes.txt", "no part of a recommender"),
    ],
)
def test_what_is_local_only_and_why(run, name, reason):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_bytes(b"12345")

    (entry,) = files_left_out(run).items()

    assert name.startswith(entry[0])
    assert entry[1] == (5, reason)
    assert name not in hub_files(run)


def test_neighbours_are_published_only_if_asked_for(run):
    with pytest.raises(FileNotFoundError, match=r"no item_neighbors\.parquet in .*evaluate"):
        hub_files(run, neighbors=True)
    pq.write_table(pa.table({"item_id": ITEM_IDS}), run / "item_neighbors.parquet")

    assert "item_neighbors.parquet" not in hub_files(run)
    assert "item_neighbors.parquet" in hub_files(run, neighbors=True)
    assert files_left_out(run, neighbors=True) == {}


def test_sizes_of_a_local_folder_are_added(run):
    (run / "checkpoints").mkdir()
    for name in ("a", "b"):
        (run / "checkpoints" / name).write_bytes(b"123")

    assert files_left_out(run) == {"checkpoints/": (6, "training states")}


@pytest.mark.parametrize("name", ["config.json", "README.md", "quantizer/encoder.json", "modeling_latte.py"])
def test_token_in_a_file_is_refused_and_not_shown(run, name):
    (run / "quantizer").mkdir()
    token = "hf_" + "aB3" * 12
    (run / name).write_text(json.dumps({"token": token}), encoding="utf-8")

    with pytest.raises(ValueError, match="access token") as caught:
        checked_content(run / name, name)

    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["/home/me/data", "~/data", "C:\\Users\\me\\data", "C:/Users/me", "\\\\server\\data", "file:///tmp/data"]
)
def test_path_of_this_machine_in_a_setting_is_refused_with_its_place(run, path):
    (run / "quantizer").mkdir()
    content = {"encoder": {"models": ["name", path]}}
    (run / "quantizer" / "encoder.json").write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(ValueError, match=r"path of this machine at `encoder.models\[1\]`"):
        hub_files(run)


def test_records_are_published_without_the_folders_of_this_machine(run):
    command = "hf-genrec train /home/me/data --ids='/home/me/my ids' --output runs/a --set url=https://x.org/a"
    (run / "training.json").write_text(json.dumps({"command": command, "seed": 7, "from": None}), encoding="utf-8")

    content = hub_files(run)["training.json"]

    assert json.loads(content) == {
        "command": "hf-genrec train data --ids='my ids' --output runs/a --set url=https://x.org/a",
        "seed": 7,
        "from": None,
    }
    assert "/home/me" in (run / "training.json").read_text(encoding="utf-8")


@settings(max_examples=40)
@given(st.lists(st.from_regex(r"[a-z0-9]{1,4}(/[a-z0-9]{1,4}){0,2}", fullmatch=True), min_size=1, max_size=5))
def test_relative_paths_are_no_paths_of_this_machine(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "words.json"
    path.write_text(json.dumps({"command": " ".join(words)}), encoding="utf-8")

    assert checked_content(path, "config.json") == path


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet"])
@pytest.mark.parametrize("length", [0, 11, -1])
def test_damaged_file_is_not_published(run, name, length):
    (run / name).write_bytes((run / name).read_bytes()[:length])

    with pytest.raises(ValueError, match=f"{name} is no readable (Parquet|safetensors) file"):
        hub_files(run)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "items.parquet", "modeling_latte.py"])
def test_folder_that_lacks_a_part_is_no_recommender(run, name):
    (run / name).unlink()

    with pytest.raises(FileNotFoundError, match=f"there is no .*{name}"):
        hub_files(run)


def test_broken_json_is_refused(run):
    (run / "evaluation.json").write_text('{"a": ', encoding="utf-8")

    with pytest.raises(ValueError, match="no readable JSON"):
        hub_files(run)


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        hub_files(tmp_path / "nothing")


def test_shards_are_weights(run):
    assert is_published("model-00001-of-00002.safetensors")
    assert is_published("model.safetensors.index.json")
