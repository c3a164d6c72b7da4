"""Functions called in several processes at once, as `torchrun` starts them, but forked: nothing is imported again."""

import multiprocessing
import os
import socket
import traceback

from accelerate.state import AcceleratorState, GradientState, PartialState


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
