"""Several processes: what each of them trains and validates, without starting any."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.training.processes import StepSeeds, batches_in_turn, seed_of
from hf_genrec.training.runs import one_process
from hf_genrec.training.sampler import StepParts, TargetBatchSampler


@st.composite
def rows_for_parts(draw):
    """Lengths of rows, a number of processes and of accumulated batches."""
    processes, accumulated = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return draw(st.lists(st.integers(1, 20), min_size=1, max_size=60)), processes, accumulated


def batches_of(lengths, processes, accumulated, *, targets_per_batch, epoch=0):
    """Of each process, a list of its batches."""
    samplers = [
        TargetBatchSampler(
            lengths, lengths, targets_per_batch=targets_per_batch, seed=3,
            num_processes=processes, process_index=index, num_accumulated=accumulated,
        )
        for index in range(processes)
    ]  # fmt: skip
    for sampler in samplers:
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
    return [list(sampler) for sampler in samplers]


@settings(max_examples=60, deadline=None)
@given(rows_for_parts(), st.integers(1, 40))
def test_processes_train_every_row_exactly_once_in_equally_many_batches(drawn, targets_per_batch):
    lengths, processes, accumulated = drawn

    batches = batches_of(lengths, processes, accumulated, targets_per_batch=targets_per_batch)

    assert len({len(mine) for mine in batches}) == 1
    assert len(batches[0]) % accumulated == 0
    assert sorted(row for mine in batches for batch in mine for row in batch) == list(range(len(lengths)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=50, max_size=90), st.integers(0, 3))
def test_a_step_has_the_rows_of_one_process_with_as_many_targets(lengths, epoch):
    def steps(processes, accumulated):
        own = batches_of(
            lengths, processes, accumulated, targets_per_batch=240 // processes // accumulated, epoch=epoch
        )
        for number in range(0, len(own[0]), accumulated):
            yield sorted(row for mine in own for batch in mine[number : number + accumulated] for row in batch)

    alone = list(steps(1, 1))

    assert all(list(steps(*split)) == alone for split in [(2, 1), (1, 2), (3, 2), (2, 3), (1, 6)])


def test_batches_of_a_step_are_of_equal_size_up_to_one_row():
    (first,), (second,) = ([*StepParts(2, index, 1).mine(list(range(9)))] for index in range(2))

    assert (first, second) == ([0, 2, 4, 6, 8], [1, 3, 5, 7])


def test_random_numbers_follow_the_place_of_a_batch_and_not_the_process():
    def draws(parts, num_batches):
        seeds, found = StepSeeds(7, parts), {}
        for number in range(num_batches):
            step = number // parts.num_accumulated
            part = seeds.begin_batch(step)
            found[step, part] = torch.rand(3).tolist()
        return found

    alone = draws(StepParts(1, 0, 2), 6)
    two = draws(StepParts(2, 0, 1), 3) | draws(StepParts(2, 1, 1), 3)

    assert two == alone
    assert len({tuple(values) for values in alone.values()}) == 6


def test_one_batch_per_step_leaves_the_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()

    assert StepSeeds(7, StepParts()).begin_batch(5) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_goes_on_where_a_step_has_as_many_targets():
    one = {"seed": 3, "training": {"per_device_train_batch_size": 512, "num_train_epochs": 2}}
    two = {"seed": 3, "num_processes": 2, "training": {"num_train_epochs": 2}}
    four = {"seed": 3, "num_processes": 2, "training": two["training"] | {"gradient_accumulation_steps": 2}}

    assert one_process(one) == one_process(two) == one
    assert one_process(four)["training"]["per_device_train_batch_size"] == 1024
    assert one_process({"training": {}}) == {"training": {}}


def test_seeds_made_of_several_numbers_do_not_meet():
    assert len({seed_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)}) == 125


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_validation_users_are_divided_by_whole_batches(processes):
    turns = [
        batches_in_turn(17, 4, SimpleNamespace(process_index=index, num_processes=processes))
        for index in range(processes)
    ]

    assert sorted((batch for mine in turns for batch in mine), key=lambda batch: batch.start) == [
        range(0, 4), range(4, 8), range(8, 12), range(12, 16), range(16, 17),
    ]  # fmt: skip
