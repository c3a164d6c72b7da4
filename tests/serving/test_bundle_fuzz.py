"""Folders damaged at random: refused with an error that the command line shows as one line, or answered as before."""

import random
import shutil
from collections import Counter

import pytest
from transformers import AutoModel, pipeline

from hf_genrec import Recommender
from saved_folders import make_folder


HISTORIES = [["i3"], [], ["i1", "i7", "i4"]]
TITLES = {f"i{number}": f"T{number}" for number in range(29)}
PROMISED = (ValueError, OSError)


def by_recommender(folder):
    recommender = Recommender.from_pretrained(folder, device="cpu")
    found = recommender.recommend(HISTORIES, top_k=5)
    return found.item_ids, found.scores, [recommender.titles(ids) for ids in found.item_ids]


def by_pipeline(folder):
    answers = pipeline("next-item-recommendation", model=str(folder), device="cpu")(HISTORIES, top_k=5)
    table = folder / "items.parquet"  # a folder without one has no titles to show, which is no wrong answer
    return [
        [entry | ({} if table.exists() else {"title": TITLES[entry["item_id"]]}) for entry in row] for row in answers
    ]


def by_model(folder):
    model = AutoModel.from_pretrained(folder).eval()
    tokens = model.config.first_item_token + 3
    output = model.recommend(model.dummy_inputs["input_ids"] * 0 + tokens, top_k=5)
    return output.item_tokens.tolist(), output.scores.tolist()


LOADERS = (by_recommender, by_pipeline, by_model)


def damaged(content, randomness):
    """Bytes with one of the faults that disks, networks and editors make."""
    content, place = bytearray(content), randomness.randrange(max(1, len(content)))
    length = randomness.choice([1, 4, 64, 4096])
    kind = randomness.randrange(7)
    if kind == 0:
        content[place : place + 1] = bytes([content[place] ^ 1 << randomness.randrange(8)]) if content else b"x"
    elif kind == 1:
        content[place : place + length] = randomness.randbytes(length)
    elif kind == 2:
        content[place : place + length] = bytes(length)
    elif kind == 3:
        del content[place:]
    elif kind == 4:
        del content[place : place + length]
    elif kind == 5:
        content[place:place] = content[place : place + length]
    else:
        content += randomness.randbytes(length)
    return bytes(content)


def outcomes(good, other, tmp_path, *, count, seed, without=()):
    """What loaders make of a folder with one damaged file, or one of another save, `count` times."""
    randomness, counts, failures = random.Random(seed), Counter(), []
    folder = shutil.copytree(good, tmp_path / "folder")
    for name in without:
        (folder / name).unlink()
    wanted = {load: load(folder) for load in LOADERS}
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".py")
    for _ in range(count):
        path, load = randomness.choice(paths), randomness.choice(LOADERS)
        before = path.read_bytes()
        if randomness.random() < 0.1:
            path.unlink()
        elif randomness.random() < 0.1:
            shutil.copyfile(other / path.name, path)
        else:
            path.write_bytes(damaged(before, randomness))
        try:
            is_same = load(folder) == wanted[load]
            counts["same" if is_same else "wrong"] += 1
            failures += [] if is_same else [(load.__name__, path.name, "wrong")]
        except PROMISED:
            counts["refused"] += 1
        except Exception as error:  # noqa: BLE001 (it is counted)
            counts["unclear"] += 1
            failures.append((load.__name__, path.name, repr(error)[:200]))
        path.write_bytes(before)
    return counts, failures


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    return make_folder(root / "good", "latte"), make_folder(root / "other", "latte", seed=1)


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_damaged_folder_answers_anything_else(bundles, tmp_path, count):
    counts, failures = outcomes(*bundles, tmp_path, count=count, seed=count)

    assert counts["wrong"] == 0, failures
    assert counts["refused"] > count / 2
    assert counts["unclear"] == 0, failures
