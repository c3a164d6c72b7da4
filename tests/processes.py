"""Functions called in several processes at once, as `torchrun` starts them, but forked: nothing is imported again."""

import multiprocessing
import os
import socket
import traceback

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType


def in_processes(function, *args, number=2):
    """
    What the function returns in each of the processes, which torch joins into a group of gloo on the CPU.

    Args: a function, its arguments, and how many processes. What is returned travels as pickles.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(number)]
    processes = [
        context.Process(target=_call, args=(function, args, index, number, port, sender))
        for index, (_, sender) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    for _, sender in ends:
        sender.close()  # so that a process that dies ends the waiting
    try:
        answers = [receiver.recv() for receiver, _ in ends]
    except EOFError:
        raise AssertionError("a process died without an answer") from None
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    for error, _ in answers:
        assert error is None, error
    return [answer for _, answer in answers]


def shard_on_a_cpu():
    """
    Have accelerate shard models by FSDP on CPUs, which it does for GPUs alone: these seem to be some. To be called
    in a  process of [`in_processes`].
    """
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.destroy_process_group = lambda self, group=None: None
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def _call(function, args, index, number, port, sender):
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(number), "ACCELERATE_USE_CPU": "true"}
    for state in (AcceleratorState, GradientState, PartialState):  # what the parent left in them
        state._reset_state()
    try:
        answer = (None, function(*args))
    except BaseException:  # noqa: BLE001
        answer = (traceback.format_exc(), None)
    sender.send(answer)
    sender.close()
    os._exit(0)
