"""Files and folders that are old or new, never half: whatever kills the writer, and wherever the folder lies."""

import contextlib
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from hf_genrec import files
from hf_genrec.files import (
    DamagedFileError,
    hidden_folder,
    read_json,
    read_table,
    replaced,
    restored,
    single_writer,
    updated_folder,
    write_json,
    write_table,
)


NAMES = [f"part-{number}.json" for number in range(7)]


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    fill(target, 0)
    (target / "notes.txt").write_text("mine", encoding="utf-8")
    (target / "checkpoints" / "step-3").mkdir(parents=True)
    (target / "checkpoints" / "step-3" / "state").write_bytes(b"123")
    return target


def fill(folder, version):
    for name in NAMES:
        (folder / name).write_text(str(version), encoding="utf-8")


def versions(folder):
    return {(folder / name).read_text(encoding="utf-8") for name in NAMES}


def update(folder, version):
    with updated_folder(folder, dropped=("part-6.json",)) as fresh:
        fill(fresh, version)


@pytest.mark.parametrize("write", [replaced, updated_folder])
def test_weights_are_readable_like_any_other_file(tmp_path, write):
    plain, target = tmp_path / "plain", tmp_path / "new"
    plain.touch()

    with write(target / "model.safetensors" if write is replaced else target) as fresh:
        save_file({"row": np.ones(3)}, fresh if write is replaced else fresh / "model.safetensors")

    assert stat.S_IMODE((target / "model.safetensors").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


def test_files_are_exchanged_together_and_others_stay(folder, tmp_path):
    folder.chmod(0o750)
    before = (folder / "notes.txt").stat().st_ino

    update(folder, 1)

    assert versions(folder) == {"1"}
    assert (folder / "notes.txt").stat().st_ino == before
    assert (folder / "checkpoints" / "step-3" / "state").read_bytes() == b"123"
    assert folder.stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path) == ["run"]


def no_exchange(monkeypatch, folder):
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)


def working_directory(monkeypatch, folder):
    monkeypatch.chdir(folder / "checkpoints")


def no_hard_links(monkeypatch, folder):
    link = os.link

    def some(source, target, **options):
        if "state" in str(source):
            raise PermissionError(1, "Operation not permitted")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", some)


def mount_point(monkeypatch, folder):
    monkeypatch.setattr(os.path, "ismount", lambda path: True)


@pytest.mark.parametrize("obstacle", [no_exchange, working_directory, no_hard_links, mount_point])
def test_files_are_replaced_where_the_folder_cannot_be_exchanged(folder, tmp_path, monkeypatch, obstacle):
    obstacle(monkeypatch, folder)

    update(folder, 1)

    assert versions(folder) == {"1"}
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (folder / "checkpoints" / "step-3" / "state").read_bytes() == b"123"
    assert os.listdir(tmp_path) == ["run"]
    assert not hidden(folder)


def test_error_leaves_the_folder_as_it_was(folder, tmp_path):
    with pytest.raises(TypeError, match="serializable"), updated_folder(folder) as fresh:
        write_json(object(), fresh / NAMES[0])

    assert versions(folder) == {"0"}
    assert os.listdir(tmp_path) == ["run"]


def killed(act, seconds):
    """Whether a process that acts over and over is killed in the midst of it after some time."""
    child = os.fork()
    if child == 0:
        try:
            number = 1
            while True:
                act(number)
                number += 1
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_kills_leave_the_old_files_or_the_new_ones_and_what_they_left_hidden_is_removed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_YOUNG", 0)
    shuffled = random.Random(0)

    for _ in range(12):
        assert killed(lambda number: update(folder, number), shuffled.uniform(0.001, 0.03))
        assert len(versions(folder)) == 1

    update(folder, "last")
    assert versions(folder) == {"last"}
    assert (folder / "checkpoints" / "step-3" / "state").read_bytes() == b"123"
    assert os.listdir(tmp_path) == ["run"]


def test_kill_between_two_renames_loses_nothing(folder, tmp_path, monkeypatch):
    no_exchange(monkeypatch, folder)
    shuffled = random.Random(1)

    for _ in range(10):
        assert killed(lambda number: update(folder, number), shuffled.uniform(0.001, 0.03))
        assert len(versions(restored(folder))) == 1


def test_hidden_folder_of_a_living_process_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_YOUNG", 0)
    (tmp_path / ".partial-of-a-killed-run").mkdir()

    with hidden_folder(tmp_path / "a") as first, hidden_folder(tmp_path / "b") as second:
        assert sorted(os.listdir(tmp_path)) == sorted([first.name, second.name])
    assert os.listdir(tmp_path) == []


def test_two_writers_leave_the_files_of_one(folder):
    children = []
    for number in (1, 2):
        child = os.fork()
        if child == 0:
            for _ in range(20):
                update(folder, number)
            os._exit(0)
        children.append(child)

    seen = set()
    while children:
        with_version = versions_of_one_moment(folder)
        seen.add(len(with_version))
        pid, status = os.waitpid(children[0], os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            children.pop(0)
    assert seen == {1}
    assert versions(folder) <= {"1", "2"}
    assert len(versions(folder)) == 1


def versions_of_one_moment(folder):
    """As a reader who holds the folder open sees it."""
    while True:
        try:
            opened = os.open(folder, os.O_RDONLY)
            found = {open(os.open(name, os.O_RDONLY, dir_fd=opened), encoding="utf-8").read() for name in NAMES}
            os.close(opened)
            return found
        except FileNotFoundError:  # the old folder has just been removed
            os.close(opened)


@contextmanager
def writer_elsewhere(folder):
    """Another process that writes a run folder until the block ends, when it is killed; its number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with single_writer(folder):
                os.write(writer, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.read(reader, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_second_writer_of_a_run_folder_is_refused_with_the_name_of_the_first(folder):
    with writer_elsewhere(folder) as child:
        for _ in range(2):
            with pytest.raises(BlockingIOError, match=rf"run is being written by process {child} on .*another folder"):
                with single_writer(folder):
                    pass

        update(folder, 3)  # the folder is exchanged, the lock goes on

        with pytest.raises(BlockingIOError, match=f"process {child} on"), single_writer(folder):
            pass


def test_killed_writer_leaves_no_lock(folder, tmp_path):
    with writer_elsewhere(folder):
        pass
    with single_writer(folder), single_writer(folder):  # nested, as a command and what it calls
        update(folder, 3)
    with single_writer(tmp_path / "new"):
        pass

    assert hidden(tmp_path) == []
    assert os.listdir(tmp_path) == ["run"]


def test_writers_take_turns_without_ever_being_two(folder):
    def write_alone(number):
        done = 0
        while done < 30:
            with contextlib.suppress(BlockingIOError), single_writer(folder):
                assert not (folder / "busy").exists()
                (folder / "busy").touch()
                (folder / "busy").unlink()
                done += 1

    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            try:
                write_alone(number)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)

    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert hidden(folder) == []


def test_another_thread_is_another_writer(folder):
    with single_writer(folder), ThreadPoolExecutor(1) as threads:
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
            threads.submit(single_writer(folder).__enter__).result()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte, where the system lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill_disk(target):
    with updated_folder(target) as fresh:
        fill(fresh, 2)
        (fresh / "weights").write_bytes(b"2" * 700_000)


def test_disk_that_is_full_keeps_the_old_files_and_gets_its_room_back(small_disk):
    target = small_disk / "run"
    with updated_folder(target) as fresh:
        fill(fresh, 1)
        (fresh / "weights").write_bytes(b"1" * 400_000)
    free = os.statvfs(small_disk).f_bfree

    with pytest.raises(OSError, match="No space left"):
        fill_disk(target)
    with pytest.raises(OSError, match="No space left"):
        write_table(pa.table({"x": list(range(200_000))}), target / "weights", compression="none")

    assert versions(target) == {"1"}
    assert (target / "weights").read_bytes() == b"1" * 400_000
    assert os.statvfs(small_disk).f_bfree == free
    assert hidden(small_disk) == []


def test_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(pa.table({"x": [1]}), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_table(pa.table({"x": list(range(5000))}), path)
        with pytest.raises(OSError, match="File too large"):
            write_json(list(range(5000)), tmp_path / "list.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)

    assert read_table(path)["x"].to_pylist() == [1]
    assert os.listdir(tmp_path) == ["table.parquet"]


def test_folder_that_may_not_be_written_to_is_an_error_of_the_system(tmp_path, monkeypatch):
    mkdir = files.Path.mkdir

    def refuse(path, *args, **options):  # the tests may run as root, who may write anywhere
        if path.name.startswith(".partial-"):
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(files.Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"\.partial-x\.json"), replaced(tmp_path / "x.json"):
        pass


def test_another_letter_in_a_table_is_noticed(tmp_path):
    path = tmp_path / "items.parquet"
    write_table(pa.table({"title": ["tea", "cup", "pot"]}), path, compression="none")
    path.write_bytes(path.read_bytes().replace(b"pot", b"pit", 1))

    with pytest.raises(DamagedFileError, match=r"items\.parquet is no readable Parquet file: .*CRC"):
        read_table(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"\x00"])
def test_damaged_json_names_the_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)

    with pytest.raises(DamagedFileError, match=r"config\.json is no readable JSON file: .*Write or fetch it again\."):
        read_json(path)


def test_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.parquet")


def test_what_is_saved_is_synced_to_the_disk_files_first_then_the_folders_that_name_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))

    write_json({"seed": 7}, tmp_path / "training.json")
    of_a_file, synced[:] = list(synced), []
    with updated_folder(tmp_path / "run") as fresh:
        (fresh / "config.json").write_text("{}", encoding="utf-8")
    of_a_folder = list(synced)

    def places(*names):
        return [(tmp_path / name).stat().st_ino for name in names]

    assert of_a_file == places("training.json", ".")
    assert of_a_folder == places("run/config.json", "run", ".")
