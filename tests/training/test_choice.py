"""What a training without options chooses by the size of the data."""

from types import SimpleNamespace

import pytest

from hf_genrec.training.choice import choose


def sizes(num_items, num_targets, num_users):
    statistics = {"num_users": num_users}
    return SimpleNamespace(
        item_ids=range(num_items), metadata={"num_train_targets": num_targets, "statistics": statistics}
    )


@pytest.mark.parametrize(
    ("data", "ids", "width", "length", "epochs", "sasrec_epochs"),
    [
        (sizes(1_349, 96_458, 943), (2, 64), 64, 50, 16, 16),
        (sizes(12_101, 131_413, 22_363), (3, 256), 64, 20, 11, 16),
        (sizes(5_282, 33_541, 8_435), (3, 256), 64, 20, 12, 20),
        (sizes(31, 200, 40), (2, 8), 64, 20, 30, 16),
        (sizes(100_000, 9_000_000, 900_000), (3, 256), 128, 20, 3, None),
    ],
    ids=["MovieLens-100K", "Beauty", "Scientific", "tiny", "large"],
)
def test_sizes_decide_ids_network_and_schedule(data, ids, width, length, epochs, sasrec_epochs):
    choice = choose(data)

    assert tuple(choice.tokenizer.values()) == ids
    assert (choice.shape["d_model"], choice.shape["max_history_length"]) == (width, length)
    assert choice.schedule["num_train_epochs"] == epochs
    assert choice.reads_vectors == (len(data.item_ids) > 2_000)
    assert (choice.beside[1]["num_train_epochs"] if choice.beside else None) == sasrec_epochs
    assert choice.reason.startswith(f"{len(data.item_ids):,} items, ")
    assert ids[1] ** ids[0] >= 2 * len(data.item_ids)
