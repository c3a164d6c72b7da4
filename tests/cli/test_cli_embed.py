"""`hf-genrec embed` with the quick start's encoder."""

import json
import subprocess
import sys

import pytest
from cli_shop import NUM_ITEMS, result_of


@pytest.mark.slow
def test_item_texts_are_embedded_by_the_quick_starts_encoder(shop, tmp_path, repository):
    folder = tmp_path / "all-MiniLM-L6-v2"
    subprocess.run([sys.executable, repository / "scripts" / "fetch_minilm.py", folder], check=True)
    words = ["embed", shop / "data", "--model", folder, "--output", tmp_path / "minilm.safetensors"]

    found = result_of(*words)

    assert (found["num_items"], found["dim"], found["model"]) == (NUM_ITEMS, 384, folder.name)
    assert found["identity"]
    result_of(
        "tokenize", shop / "data", "--embeddings", found["file"], "--codebook-size", "8", "--output", tmp_path / "i"
    )
    encoder = json.loads((tmp_path / "i" / "quantizer" / "encoder.json").read_text(encoding="utf-8"))
    assert encoder == {"model": folder.name, "revision": None, "identity": found["identity"]}
