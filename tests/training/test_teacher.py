"""Targets drawn from the lists of a finished model."""

import numpy as np
import pytest
import torch

from hf_genrec import GenRecTrainingArguments, SASRecConfig, SASRecForItemGeneration
from hf_genrec.data.sequences import make_windows
from hf_genrec.training.closed_form import fit_item_to_item
from hf_genrec.training.teacher import Teacher, load_teacher
from hf_genrec.training.trainer import make_trainer


NAMES = [f"i{number:02d}" for number in range(11)]


@pytest.fixture
def circle(make_prepared):
    """Every item is followed by the next one."""
    return make_prepared({f"u{user}": [NAMES[(user + step) % 11] for step in range(9)] for user in range(22)})


@pytest.fixture
def ridge(circle):
    return fit_item_to_item(circle)


def windows_of(prepared, *, length=4):
    return make_windows(prepared.split("train"), prepared.item_ids, max_history_length=length, stride=2)


def test_every_target_has_the_list_that_the_model_gives_for_the_whole_history_before_it(circle, ridge):
    windows = windows_of(circle)

    teacher = Teacher.of(ridge, windows, leaves_out_seen=True)

    first = ridge.config.first_item_token
    sequence = windows.values[:7]  # of the first user: nine items less those of validation and test
    assert teacher.rows[:7].tolist() == [-1, 0, 1, 2, 3, 4, 5]
    for place in (1, 3, 6):
        tokens = torch.from_numpy(sequence[:place].astype(np.int64)).unsqueeze(0) + first
        expected = ridge.recommend(tokens, top_k=11, exclude_items=tokens)
        num_listed = 11 - place
        row = teacher.rows[place]
        assert teacher.items[row, :num_listed].tolist() == (expected.item_tokens[0, :num_listed] - first).tolist()
        torch.testing.assert_close(
            teacher.shares[row].float(), expected.scores[0].float().softmax(0), rtol=1e-2, atol=1e-3
        )
        assert teacher.shares[row, num_listed:].sum() == 0


def test_drawn_labels_are_the_teachers_items_in_its_shares():
    teacher = Teacher(np.array([-1, 0]), torch.tensor([[2, 5, 0]]), torch.tensor([[0.25, 0.75, 0.0]]).half())
    labels, places = torch.full((400, 2), 9), torch.ones(400, 2, dtype=torch.long)
    labels[:, 1], places[:, 1] = -100, 0
    torch.manual_seed(0)

    drawn = teacher.replaced(labels, places, 0.5, first_item_token=4)

    counts = {token: int((drawn[:, 0] == token).sum()) for token in (6, 9)}
    assert (drawn[:, 1] == -100).all()
    assert 40 <= counts[6] <= 60  # an eighth of 400
    assert set(drawn[:, 0].tolist()) == {6, 9}
    assert (teacher.replaced(labels, places, 0.0, first_item_token=4) == labels).all()


def test_a_list_without_items_leaves_the_target():
    teacher = Teacher(np.array([0]), torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, 3).half())
    labels = torch.tensor([[7]])

    assert teacher.replaced(labels, torch.zeros(1, 1, dtype=torch.long), 1.0, first_item_token=4).tolist() == [[7]]


def test_a_teacher_of_other_items_is_refused(ridge, tmp_path):
    ridge.save_pretrained(tmp_path / "ridge")

    assert load_teacher(tmp_path / "ridge", ridge.config).config.num_items == 11
    with pytest.raises(ValueError, match="it has 11 items, fingerprint .*, the model 12"):
        load_teacher(tmp_path / "ridge", SASRecConfig(num_items=12))


def test_share_of_the_teacher_is_checked():
    with pytest.raises(ValueError, match="`teacher_share` must be above 0 and at most 1, got 0"):
        GenRecTrainingArguments(output_dir="run", teacher="run", teacher_share=0.0)


def test_trained_targets_are_the_teachers_where_the_share_is_one(make_prepared, tmp_path):
    forwards = make_prepared({f"u{user}": [NAMES[(user + step) % 11] for step in range(9)] for user in range(22)})
    backwards = make_prepared({f"u{user}": [NAMES[(user - step) % 11] for step in range(9)] for user in range(22)})
    fit_item_to_item(backwards).save_pretrained(tmp_path / "ridge")
    model = SASRecForItemGeneration(SASRecConfig(num_items=11, d_model=16, dropout_rate=0.0))
    args = GenRecTrainingArguments(
        output_dir=str(tmp_path / "run"), teacher=str(tmp_path / "ridge"), teacher_share=1.0, learning_rate=0.02,
        num_train_epochs=12, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, disable_tqdm=True,
    )  # fmt: skip

    make_trainer(model, forwards, args).train()

    tokens = torch.tensor([[4 + 6, 4 + 5, 4 + 4]])
    assert model.eval().recommend(tokens, top_k=1).item_tokens.item() == 4 + 3
