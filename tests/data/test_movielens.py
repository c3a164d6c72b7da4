"""MovieLens: two archives, one prepared folder. The archives here are invented; the real one is a slow test."""

import io
import zipfile

import pytest

from hf_genrec.data.sources import movielens
from hf_genrec.data.sources.movielens import WHEEL_FOLDER, download_movielens, prepare_movielens, unpack_movielens


FILMS = [("1", "Red Barn, The", "1971", ["Comedy", "War"]), ("2", "Caf\u00e9 (Kaffee)", "1985", ["Film-Noir"])]
RATINGS = [("7", "2", "5", "881250949"), ("3", "1", "1", "881250949"), ("7", "1", "4", "881250949")]


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


def wheel_archive():
    films = ["\t".join([name, title, year, " ".join(genres)]) for name, title, year, genres in FILMS]
    odd = ["3\tunkonwn\tunkonwn\tunknown", "4\tFilm (1995)\tV\tChildren's"]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *map("\t".join, RATINGS)]
    return archive_of(
        {
            f"{WHEEL_FOLDER}/ml-100k.inter": "\n".join(ratings) + "\n",
            f"{WHEEL_FOLDER}/ml-100k.item": "\n".join([header, *films, *odd]) + "\n",
        }
    )


ARCHIVES = {"grouplens": grouplens_archive, "recbole": wheel_archive}


@pytest.mark.parametrize("source", ["grouplens", "recbole"])
def test_both_archives_give_the_same_files(tmp_path, source):
    folder = unpack_movielens(ARCHIVES[source](), tmp_path / "films", source=source, expected=None)

    assert (folder / "interactions.tsv").read_text().splitlines() == [
        "user_id\titem_id\trating\ttimestamp",
        "7\t2\t5\t881250949",
        "3\t1\t1\t881250949",
        "7\t1\t4\t881250949",
    ]
    assert (folder / "items.jsonl").read_text(encoding="utf-8").splitlines() == [
        '{"item_id": "1", "title": "Red Barn, The", "genres": ["Comedy", "War"], "year": "1971"}',
        '{"item_id": "2", "title": "Caf\u00e9 (Kaffee)", "genres": ["Film-Noir"], "year": "1985"}',
        '{"item_id": "3", "title": "unknown", "genres": [], "year": ""}',
        '{"item_id": "4", "title": "Film", "genres": ["Children\'s"], "year": "1995"}',
    ]


def test_an_incomplete_archive_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) users, items and interactions, \(943, 1682, 100000\)"):
        unpack_movielens(wheel_archive(), tmp_path / "films", source="recbole")
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_stands_in_when_the_publisher_does_not_answer(tmp_path, monkeypatch):
    def no_network():
        raise ConnectionError("no network")

    monkeypatch.setattr(movielens, "_fetch_grouplens", no_network)
    monkeypatch.setattr(movielens, "_fetch_wheel", wheel_archive)
    monkeypatch.setattr(movielens, "NUM_USERS", 2)
    monkeypatch.setattr(movielens.unpack_movielens, "__kwdefaults__", {"expected": None})

    folder = download_movielens(tmp_path)
    monkeypatch.setattr(movielens, "_fetch_wheel", no_network)

    assert (folder / "source.json").read_text() == '{"source": "recbole"}\n'
    assert download_movielens(tmp_path) == folder
    with pytest.raises(ConnectionError, match="grouplens: no network"):
        download_movielens(tmp_path, source="grouplens")


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="grouplens"):
        download_movielens(tmp_path, source="kaggle")


@pytest.mark.slow
def test_the_real_wheel_gives_the_whole_data_set(tmp_path):
    prepared = prepare_movielens(tmp_path / "data", cache_dir=tmp_path / "cache", source="recbole")

    read, core = prepared.metadata["steps"]
    assert (read["num_users"], read["num_items"], read["num_interactions"]) == (943, 1_682, 100_000)
    assert (core["num_users"], core["num_items"], core["num_interactions"]) == (943, 1_349, 99_287)
    assert prepared.items.slice(0, 1).to_pylist()[0]["text"] == "Toy Story Animation, Children's, Comedy. 1995"
