import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest


MAPPED_FOLDERS = ["modeling", "hub_cards", "spaces_demo"]


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def copy_checkout(repository: Path, folder: Path, *, has_symlinks: bool) -> Path:
    """The files that a build reads; without symlinks git leaves text files in their place."""
    folder.mkdir()
    for name in ["pyproject.toml", "LICENSE", "README.md"]:
        if (repository / name).exists():
            shutil.copy(repository / name, folder)
        else:
            (folder / name).write_text("", encoding="utf-8")
    ignore = shutil.ignore_patterns("__pycache__", *MAPPED_FOLDERS)
    shutil.copytree(repository / "hf_genrec", folder / "hf_genrec", ignore=ignore)
    for name in MAPPED_FOLDERS:
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        link = folder / "hf_genrec" / name
        if has_symlinks:
            link.symlink_to(f"../{name}", target_is_directory=True)
        else:
            link.write_text(f"../{name}", encoding="utf-8")
    return folder


def expected_files(repository: Path) -> set[str]:
    files = {"hf_genrec/py.typed"}
    package = repository / "hf_genrec"
    sources = [file for file in package.rglob("*.py") if file.relative_to(package).parts[0] not in MAPPED_FOLDERS]
    files |= {file.relative_to(repository).as_posix() for file in sources}
    for name in MAPPED_FOLDERS:
        files |= {
            f"hf_genrec/{name}/{file.name}"
            for pattern in ("*.py", "*.md", "*.txt")
            for file in (repository / name).glob(pattern)
        }
    return files


def test_image_of_the_server_copies_what_a_build_reads(repository):
    text = (repository / "scripts/docker/Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in text.splitlines() if line.startswith("COPY ") for name in line.split()[1:-1]}

    assert copied == {"pyproject.toml", "LICENSE", "README.md", "constraints.txt", "hf_genrec", *MAPPED_FOLDERS}


def test_symlinks_are_committed_and_point_to_the_mapped_folders(repository):
    for name in MAPPED_FOLDERS:
        link = repository / "hf_genrec" / name
        assert link.is_symlink()
        assert link.readlink().as_posix() == f"../{name}"


def test_every_package_folder_is_listed(repository, project):
    folders = {
        ".".join(file.parent.relative_to(repository).parts)
        for file in (repository / "hf_genrec").rglob("__init__.py")
        if file.relative_to(repository / "hf_genrec").parts[0] not in MAPPED_FOLDERS
    }

    assert folders | {f"hf_genrec.{name}" for name in MAPPED_FOLDERS} == set(project["tool"]["setuptools"]["packages"])


def test_version_is_written_once_more_only_in_the_package(project):
    import hf_genrec

    assert project["project"]["version"] == hf_genrec.__version__


def read_pins(file: Path) -> dict[str, str]:
    from packaging.utils import canonicalize_name

    pins = [line.split("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in pins}


def test_constraints_fit_the_declared_lower_bounds(repository, project):
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = read_pins(repository / "constraints.txt")
    extras = project["project"]["optional-dependencies"]
    requirements = map(Requirement, project["project"]["dependencies"] + extras["dev"] + extras["embeddings"])

    missing = [str(r) for r in requirements if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0.dev0"))]

    assert missing == []


def test_lower_bounds_are_the_oldest_versions_that_were_tried(repository, project):
    requirements = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["embeddings"]

    tried = {f"{name}>={version}" for name, version in read_pins(repository / "constraints-min.txt").items()}

    assert set(requirements) - {"torch"} == tried


def test_torch_is_never_pinned_so_that_an_installed_one_stays(project):
    assert [r for r in project["project"]["dependencies"] if r.startswith("torch")] == ["torch"]


@pytest.mark.parametrize("has_symlinks", [True, False], ids=["with symlinks", "without symlinks"])
def test_wheel_holds_exactly_the_package(repository, tmp_path, has_symlinks):
    checkout = copy_checkout(repository, tmp_path / "checkout", has_symlinks=has_symlinks)

    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"  # as pip calls it
    subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == expected_files(repository)
    assert {name.split("/", 1)[1] for name in information} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }
