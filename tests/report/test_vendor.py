"""The libraries that lie in the repository: each file is the published one that the table beside it names."""

from __future__ import annotations

from distill.core.hashing import file_sha256
from distill.report.stage import LIBRARIES, PAGE

VENDOR = PAGE / "vendor"


def table() -> dict[str, list[str]]:
    """The cells of vendor/README.md after the first, by file."""
    lines = (VENDOR / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    return {name: cells for name, *cells in rows}


def test_every_vendored_file_is_the_one_of_the_table() -> None:
    files = {str(file.relative_to(VENDOR)): file_sha256(file) for file in VENDOR.rglob("*") if file.is_file()}
    del files["README.md"]
    assert {name: cells[-1] for name, cells in table().items()} == files
    assert {f"vendor/{name}" for name in files} >= set(LIBRARIES)


def test_every_vendored_library_has_its_version_source_and_licence() -> None:
    for name in LIBRARIES:
        library = name.removeprefix("vendor/").removesuffix(".min.js")
        source, version, path, licence, _ = table()[f"{library}.min.js"]
        assert f"[{library}](https://github.com/" in source
        assert [part.isdigit() for part in version.split(".")] == [True] * 3
        assert path.endswith(".js")
        assert table()[f"{library}.LICENSE"][1:4] == [version, "LICENSE", licence]
