"""Embeddings: cache, where a model comes from, whitening, ready matrices."""

import http.server
import json
import logging
import sys
import threading
import time
import types
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from hf_genrec.tokenizers import embedding_shards as shards
from hf_genrec.tokenizers import embeddings as room
from hf_genrec.tokenizers.embeddings import Whitening, embed_texts, load_matrix


TEXTS = ["red comb", "soap", "a long brush"]
EXPECTED = np.array([[8, 1], [4, 0], [12, 2]], dtype=np.float32)  # characters, spaces


class CountingEncoder:
    """Stands in for `SentenceTransformer`: two numbers per text, and a list of what was loaded."""

    loaded: list[tuple] = []
    factor = 1.0

    def __init__(self, location, *, revision, device, local_files_only):
        self.loaded.append((location, revision, local_files_only))

    def encode(self, texts, *, batch_size, show_progress_bar, convert_to_numpy):
        return np.array([[len(text), text.count(" ")] for text in texts], dtype=np.float64) * self.factor


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setattr(CountingEncoder, "loaded", [])
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = CountingEncoder
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return CountingEncoder


@pytest.fixture
def model_folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def embed(texts, model, tmp_path, **arguments):
    return embed_texts(texts, model_name=str(model), cache_dir=tmp_path / "cache", show_progress=False, **arguments)


def test_second_call_reads_the_cache(encoder, model_folder, tmp_path):
    first = embed(TEXTS, model_folder, tmp_path)
    second = embed(TEXTS, model_folder, tmp_path, batch_size=1)

    np.testing.assert_array_equal(first, EXPECTED)
    np.testing.assert_array_equal(second, EXPECTED)
    assert first.dtype == second.dtype == np.float32
    assert len(encoder.loaded) == 1
    assert {path.suffix for path in (tmp_path / "cache" / "embeddings").iterdir()} == {".json", ".safetensors"}


@pytest.fixture
def two_per_shard(monkeypatch):
    monkeypatch.setattr(shards, "TEXTS_PER_SHARD", 2)


SEVEN = ["a", "bb bb", "c", "ddddddd", "e e e", "ff", "g"]


def test_a_killed_run_goes_on_with_the_texts_it_lacks(encoder, model_folder, tmp_path, two_per_shard, caplog):
    encode, asked = encoder.encode, []

    def killed_at_the_third(self, texts, **options):
        asked.append(list(texts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(self, texts, **options)

    encoder.encode = killed_at_the_third
    try:
        with pytest.raises(KeyboardInterrupt):
            embed(SEVEN, model_folder, tmp_path, batch_size=2)
        next((tmp_path / "cache" / "embeddings").glob("*.shards/000000*")).write_bytes(b"torn")
        found = embed(SEVEN, model_folder, tmp_path, batch_size=2)
    finally:
        encoder.encode = encode

    np.testing.assert_array_equal(found, [[len(text), text.count(" ")] for text in SEVEN])
    assert [len(text) for batch in asked for text in batch] == [7, 5, 5, 2, 1, 1, 7, 5, 1, 1, 1]
    assert "Going on with text 3 of 7: the 1 shards before it are in" in caplog.text
    assert "000000.safetensors cannot be read" in caplog.text
    assert {path.suffix for path in (tmp_path / "cache" / "embeddings").iterdir()} == {".json", ".safetensors"}


def test_processes_below_one_are_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="`num_processes` must be at least 1, got 0"):
        embed(TEXTS, model_folder, tmp_path, num_processes=0)


def test_other_texts_order_or_weights_are_computed_anew(encoder, model_folder, tmp_path):
    embed(TEXTS, model_folder, tmp_path)
    np.testing.assert_array_equal(embed(TEXTS[::-1], model_folder, tmp_path), EXPECTED[::-1])
    np.testing.assert_array_equal(embed(TEXTS[:2], model_folder, tmp_path), EXPECTED[:2])
    (model_folder / "model.safetensors").write_bytes(b"other weights")
    embed(TEXTS, model_folder, tmp_path)

    assert len(encoder.loaded) == 4


def test_moved_model_keeps_its_cache(encoder, model_folder, tmp_path):
    embed(TEXTS, model_folder, tmp_path)
    moved = model_folder.rename(tmp_path / "moved")
    embed(TEXTS, moved, tmp_path)

    assert len(encoder.loaded) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "record"])
def test_damaged_cache_is_computed_again_with_a_warning(encoder, model_folder, tmp_path, caplog, damage):
    embed(TEXTS, model_folder, tmp_path)
    matrix_path = next((tmp_path / "cache" / "embeddings").glob("*.safetensors"))
    content = bytearray(matrix_path.read_bytes())
    if damage == "truncated":
        matrix_path.write_bytes(content[:20])
    elif damage == "flipped":
        content[-1] ^= 1
        matrix_path.write_bytes(content)
    else:
        matrix_path.with_suffix(".json").write_text("{", encoding="utf-8")

    with caplog.at_level(logging.WARNING):
        again = embed(TEXTS, model_folder, tmp_path)

    np.testing.assert_array_equal(again, EXPECTED)
    assert "computed again" in caplog.text
    assert len(encoder.loaded) == 2
    embed(TEXTS, model_folder, tmp_path)
    assert len(encoder.loaded) == 2


def test_texts_are_checked_and_empty_ones_counted(encoder, model_folder, tmp_path, caplog):
    with pytest.raises(TypeError, match=r"2 do not, first at rows \[1, 2\]"):
        embed(["a", None, 3], model_folder, tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        embed([], model_folder, tmp_path)
    with pytest.raises(ValueError, match="sequence"):
        embed("abc", model_folder, tmp_path)
    with caplog.at_level(logging.WARNING):
        embed(["a", " ", ""], model_folder, tmp_path)
    assert r"2 of 3 texts are empty, first at rows [1, 2]" in caplog.text


def test_nan_from_the_model_is_an_error_and_not_cached(encoder, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "factor", np.nan)

    with pytest.raises(ValueError, match=r"NaN or infinity in 3 rows, first at rows \[0, 1, 2\]"):
        embed(TEXTS, model_folder, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_missing_extra_is_named(model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)

    with pytest.raises(ImportError, match=r'pip install "hf-genrec\[embeddings\]"'):
        embed(TEXTS, model_folder, tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on this machine with one model, an empty cache of it, and a switch that takes the network away."""
    state = SimpleNamespace(commit="c0ffee", status=200, asked=[])

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path)
            is_known = self.path.startswith("/api/models/sentence-transformers/all-MiniLM-L6-v2")
            content = json.dumps({"id": "x/y", "sha": state.commit} if is_known else {}).encode()
            self.send_response(state.status if is_known else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_hub(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there


def put_into_hub_cache(tmp_path, name="modules.json"):
    folder = tmp_path / "hub" / "models--some--encoder"
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "snapshots" / "c0ffee" / name).write_text("[]", encoding="utf-8")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee", encoding="utf-8")


@pytest.mark.parametrize("name", ["modules.json", "config.json"])
@pytest.mark.parametrize("is_switched_off", [True, False])
def test_model_in_the_hub_cache_is_used_without_network(encoder, tmp_path, monkeypatch, no_hub, name, is_switched_off):
    put_into_hub_cache(tmp_path, name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_switched_off)
    monkeypatch.setattr(room, "try_to_load_from_cache", partial(try_to_load_from_cache, cache_dir=tmp_path / "hub"))

    embed(TEXTS, "some/encoder", tmp_path)

    assert encoder.loaded == [("some/encoder", "c0ffee", True)]
    record = next((tmp_path / "cache" / "embeddings").glob("*.json"))
    assert json.loads(record.read_text(encoding="utf-8"))["model"] == "some/encoder@c0ffee"


def test_new_commit_is_not_served_from_the_old_cache(encoder, tmp_path, hub):
    for hub.commit in ("c0ffee", "decade"):
        embed(TEXTS, "all-MiniLM-L6-v2", tmp_path)

    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert encoder.loaded == [(name, "c0ffee", False), (name, "decade", False)]
    assert hub.asked == [f"/api/models/{name}"] * 2


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("all-MiniLM-L6-v3", None, "no such folder, the Hub has no sentence-transformers/all-MiniLM-L6-v3, and the"),
        ("all-MiniLM-L6-v3", "x", "the Hub has no sentence-transformers/all-MiniLM-L6-v3 with the revision 'x'"),
        ("./models/minilm/", None, "it is no name of a model on the Hub"),
    ],
)
def test_mistyped_model_is_an_error_after_one_request(encoder, tmp_path, hub, name, revision, message):
    with pytest.raises(OSError, match=message):
        embed(TEXTS, name, tmp_path, revision=revision)
    assert len(hub.asked) <= 1


@pytest.mark.parametrize(
    ("name", "revision"), [("sentence-transformers/sentence-t5-base", None), ("all-MiniLM-L6-v2", "c0ffee")]
)
def test_unreachable_model_is_an_error_at_once_that_says_what_to_do(encoder, tmp_path, no_hub, name, revision):
    start = time.monotonic()

    with pytest.raises(
        OSError, match=r"the Hub is not reachable \(.*\), and the local cache .* does not hold .* Check the"
    ):
        embed(TEXTS, name, tmp_path, revision=revision)
    assert time.monotonic() - start < 3


def test_hub_that_is_switched_off_is_not_asked(encoder, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(OSError, match=r"switched off \(HF_HUB_OFFLINE\).* pass the folder"):
        embed(TEXTS, "all-MiniLM-L6-v2", tmp_path)
    assert hub.asked == []


@pytest.mark.parametrize("status", [403, 503])
def test_proxy_that_answers_for_the_hub_is_no_hub(encoder, tmp_path, hub, status):
    hub.status = status

    with pytest.raises(OSError, match="the Hub is not reachable"):
        embed(TEXTS, "all-MiniLM-L6-v2", tmp_path)
    assert len(hub.asked) == 1


def whiten(embeddings: np.ndarray, *, num_components: int, fit_on=None) -> np.ndarray:
    return Whitening.fit(embeddings, num_components=num_components, fit_on=fit_on).transform(embeddings)


def correlated(num_items: int = 41, dim: int = 7) -> np.ndarray:
    generator = np.random.default_rng(11)
    return (generator.normal(size=(num_items, dim)) @ generator.normal(size=(dim, dim)) + 3).astype(np.float32)


def test_whitened_columns_are_centred_uncorrelated_and_of_unit_variance():
    result = whiten(correlated(), num_components=5)

    assert result.shape == (41, 5)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(result.T), np.eye(5), atol=1e-4)


def test_whitening_equals_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")

    expected = decomposition.PCA(n_components=5, whiten=True, svd_solver="full").fit_transform(correlated())

    np.testing.assert_allclose(whiten(correlated(), num_components=5), expected, atol=1e-4)


def test_whitening_fitted_on_some_items_projects_all():
    matrix = correlated()

    result = whiten(matrix, num_components=3, fit_on=np.arange(20))

    np.testing.assert_allclose(np.cov(result[:20].T), np.eye(3), atol=1e-4)
    assert not np.allclose(np.cov(result.T), np.eye(3), atol=1e-2)
    np.testing.assert_array_equal(result, Whitening.fit(matrix[:20], num_components=3).transform(matrix))


def test_saved_whitening_projects_new_items_alike(tmp_path):
    whitening = Whitening.fit(correlated(), num_components=4)

    whitening.save(tmp_path / "whitening.safetensors")
    loaded = Whitening.load(tmp_path / "whitening.safetensors")

    np.testing.assert_array_equal(loaded.transform(correlated(5)), whitening.transform(correlated(5)))


def test_whitening_refuses_what_has_too_few_directions():
    flat = correlated()
    flat[:, 3:] = 0

    with pytest.raises(ValueError, match="between 1 and 7 here, got 8"):
        whiten(correlated(), num_components=8)
    with pytest.raises(ValueError, match="between 1 and 2 here, got 3"):
        whiten(correlated(), num_components=3, fit_on=[0, 5, 9])
    with pytest.raises(ValueError, match="`num_components` is 4, but only 3 directions"):
        whiten(flat, num_components=4)
    with pytest.raises(ValueError, match="7 columns, got 6"):
        Whitening.fit(correlated(), num_components=2).transform(correlated()[:, :6])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_npy_and_safetensors_are_read_as_float32(tmp_path, dtype):
    np.save(tmp_path / "a.npy", EXPECTED.astype(dtype))
    save_file({"anything": EXPECTED.astype(dtype)}, tmp_path / "b.safetensors")

    for name in ("a.npy", "b.safetensors"):
        matrix = load_matrix(tmp_path / name, num_items=3)
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, EXPECTED)


def test_bfloat16_and_named_tensors_are_read(tmp_path):
    tensors = {"embeddings": torch.tensor(EXPECTED, dtype=torch.bfloat16), "other": torch.zeros(2)}
    save_torch_file(tensors, tmp_path / "a.safetensors")

    np.testing.assert_array_equal(load_matrix(tmp_path / "a.safetensors", num_items=3), EXPECTED)


def test_bad_matrices_are_refused(tmp_path):
    broken = EXPECTED.copy()
    broken[1, 0], broken[2, 1] = np.nan, np.inf
    np.save(tmp_path / "nan.npy", broken)
    np.save(tmp_path / "good.npy", EXPECTED)
    np.save(tmp_path / "flat.npy", EXPECTED[0])
    np.save(tmp_path / "text.npy", np.array([["a"], ["b"]]))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    save_file({"a": EXPECTED, "b": EXPECTED}, tmp_path / "two.safetensors")

    with pytest.raises(ValueError, match=r"nan.npy has NaN or infinity in 2 rows, first at rows \[1, 2\]"):
        load_matrix(tmp_path / "nan.npy", num_items=3)
    with pytest.raises(ValueError, match="one row per item, 4, but has 3"):
        load_matrix(tmp_path / "good.npy", num_items=4)
    with pytest.raises(ValueError, match="two dimensions"):
        load_matrix(tmp_path / "flat.npy", num_items=2)
    with pytest.raises(ValueError, match="must hold numbers"):
        load_matrix(tmp_path / "text.npy", num_items=2)
    with pytest.raises(ValueError, match=r"pickle\.npy is no readable NumPy file: .*Python objects"):
        load_matrix(tmp_path / "pickle.npy", num_items=1)
    for name in ("empty.npy", "empty.safetensors"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"{name} is no readable"):
            load_matrix(tmp_path / name, num_items=1)
    np.save(tmp_path / "narrow.npy", EXPECTED[:, :0])
    with pytest.raises(ValueError, match=r"narrow\.npy must have at least one column"):
        load_matrix(tmp_path / "narrow.npy", num_items=3)
    with pytest.raises(ValueError, match="one called 'embeddings'"):
        load_matrix(tmp_path / "two.safetensors", num_items=3)
    with pytest.raises(ValueError, match=r"\.npy or \.safetensors"):
        load_matrix(tmp_path / "matrix.csv", num_items=3)
