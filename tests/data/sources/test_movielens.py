"""MovieLens: the publisher's files to a prepared folder, and the script that fetches them. The films are invented."""

import hashlib
import importlib.util
import io
import zipfile

import pytest

from hf_genrec.data.sources import movielens
from hf_genrec.data.sources.movielens import prepare_movielens, read_movielens


FILMS = [("1", "Red Barn, The", "1971", ["Comedy", "War"]), ("2", "Caf\u00e9 (Kaffee)", "1985", ["Film-Noir"])]
RATINGS = [("7", "2", "5", "881250949"), ("3", "1", "1", "881250949"), ("7", "1", "4", "881250949")]
ITEMS = [
    {"item_id": "1", "title": "Red Barn, The", "genres": ["Comedy", "War"], "year": "1971"},
    {"item_id": "2", "title": "Caf\u00e9 (Kaffee)", "genres": ["Film-Noir"], "year": "1985"},
    {"item_id": "3", "title": "unknown", "genres": [], "year": ""},
    {"item_id": "4", "title": "Film", "genres": ["Children's"], "year": "1995"},
]


@pytest.fixture
def script(repository):
    spec = importlib.util.spec_from_file_location("fetch_movielens", repository / "scripts" / "fetch_movielens.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def archive_of(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def grouplens_archive():
    flags = {
        name: "|".join("1" if genre in genres else "0" for genre in movielens.GENRES) for name, _, _, genres in FILMS
    }
    films = [
        f"{name}|{title} ({year})|01-Jan-{year}||http://example.com|{flags[name]}" for name, title, year, _ in FILMS
    ]
    nothing = "|".join(["3", "unknown", "", "", "", "1", *["0"] * 18])
    video = "|".join(["4", "Film (1995) (V)", "", "", "", *["0"] * 4, "1", *["0"] * 14])
    return archive_of(
        {
            "ml-100k/u.data": "".join("\t".join(rating) + "\n" for rating in RATINGS),
            "ml-100k/u.item": "".join(f"{line}\n" for line in [*films, nothing, video]).encode("latin-1"),
        }
    )


def package_archive(script):
    films = ["\t".join([name, title, year, " ".join(genres)]) for name, title, year, genres in FILMS]
    odd = ["3\tunkonwn\tunkonwn\tunknown", "4\tFilm (1995)\tV\tChildren's"]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *map("\t".join, RATINGS)]
    return archive_of(
        {
            f"{script.PACKAGE_FOLDER}/ml-100k.inter": "\n".join(ratings) + "\n",
            f"{script.PACKAGE_FOLDER}/ml-100k.item": "\n".join([header, *films, *odd]) + "\n",
        }
    )


def no_network():
    raise ConnectionError("no network")


@pytest.mark.parametrize("source", ["grouplens", "recbole"])
def test_both_sources_give_the_same_log_and_items(script, monkeypatch, tmp_path, source):
    monkeypatch.setattr(script, "_download_grouplens", grouplens_archive if source == "grouplens" else no_network)
    monkeypatch.setattr(script, "_download_package", lambda: package_archive(script))

    assert script.fetch_movielens(tmp_path / "ml-100k") == source
    log, items = read_movielens(tmp_path / "ml-100k")

    assert [tuple(row.values()) for row in log.to_pylist()] == RATINGS
    assert items == ITEMS
    assert [path.name for path in tmp_path.iterdir()] == ["ml-100k"]
    monkeypatch.setattr(script, "_download_grouplens", None)
    assert script.fetch_movielens(tmp_path / "ml-100k") == "the folder"


def test_the_publishers_zip_is_read_like_its_folder(tmp_path):
    (tmp_path / "ml-100k.zip").write_bytes(grouplens_archive())
    zipfile.ZipFile(tmp_path / "ml-100k.zip").extractall(tmp_path)

    from_zip, from_folder, from_above = map(read_movielens, (tmp_path / "ml-100k.zip", tmp_path / "ml-100k", tmp_path))

    assert from_zip == from_folder == from_above
    assert from_zip[1] == ITEMS


def test_a_missing_data_set_names_the_script_that_fetches_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`python scripts/fetch_movielens.py OUTPUT_FOLDER`"):
        prepare_movielens(tmp_path / "data", tmp_path / "ml-100k")
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_data_set_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "ml-100k.zip").write_bytes(grouplens_archive())

    with pytest.raises(ValueError, match=r"\(2, 4, 3\) users, items and interactions, expected \(943, 1682, 100000\)"):
        prepare_movielens(tmp_path / "data", tmp_path / "ml-100k.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["ml-100k.zip"]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [("u.data", "1\t2\t3\t4\n1\t2\n", "line 2"), ("u.data", "", "empty"), ("u.item", "1|Film\n", "line 1")],
)
def test_a_damaged_file_is_named_with_the_line(tmp_path, name, content, place):
    zipfile.ZipFile(io.BytesIO(grouplens_archive())).extractall(tmp_path)
    (tmp_path / "ml-100k" / name).write_text(content, encoding="latin-1")

    with pytest.raises(ValueError, match=f"{name} is damaged .{place}, expected (4|24) fields.: fetch it again"):
        read_movielens(tmp_path)


def test_a_damaged_archive_is_named(tmp_path):
    content = bytearray(grouplens_archive())
    content[40:60] = b"x" * 20
    (tmp_path / "ml-100k.zip").write_bytes(content)

    with pytest.raises(ValueError, match=r"ml-100k.zip is a damaged archive"):
        read_movielens(tmp_path / "ml-100k.zip")


def test_another_archive_than_the_known_one_is_refused(script):
    right = hashlib.sha256(b"films").hexdigest()

    assert script._verified(b"films", right, "a.zip") == b"films"
    with pytest.raises(ValueError, match=f"a.zip has the SHA-256 .*, expected {right}"):
        script._verified(b"other films", right, "a.zip")


def test_what_cannot_be_fetched_leaves_nothing(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "_download_grouplens", no_network)
    monkeypatch.setattr(script, "_download_package", no_network)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "photo.jpg").touch()

    with pytest.raises(ConnectionError, match=r"grouplens: no network recbole: no network"):
        script.fetch_movielens(tmp_path / "ml-100k")
    with pytest.raises(FileExistsError, match=r"not empty and has no u\.data and u\.item"):
        script.fetch_movielens(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.slow
def test_the_real_data_set_gives_its_known_sizes(script, tmp_path):
    script.fetch_movielens(tmp_path / "ml-100k")
    prepared = prepare_movielens(tmp_path / "data", tmp_path / "ml-100k")

    read, core = prepared.metadata["steps"]
    assert (read["num_users"], read["num_items"], read["num_interactions"]) == (943, 1_682, 100_000)
    assert (core["num_users"], core["num_items"], core["num_interactions"]) == (943, 1_349, 99_287)
    assert prepared.items.slice(0, 1).to_pylist()[0]["text"] == "Toy Story Animation, Children's, Comedy. 1995"
    assert prepared.fingerprint == "70a292968daf092c"
