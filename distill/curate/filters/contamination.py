"""Drops sessions that share an n-gram with a benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import Field

from distill import recipe
from distill.curate.filters import Compared, texts_of
from distill.errors import RecipeError
from distill.formats.containers import kind_of, rows, text_lines
from distill.formats.json_rows import RejectedRow, any_row
from distill.text.tokens import n_grams
from distill.text.words import comparable, whole
from distill.types import Session, Verdict

LEAST = 8
"""Fewest words of a run (GPT-3 takes runs of 8 to 13, by the length of a benchmark's rows)."""

T = TypeVar("T")
Hit: TypeAlias = tuple[str, str]
"""The shared words, and the benchmark row as `file:number`."""


class Contamination:
    """Runs of 13 words, as GPT-3 was cleaned (Brown et al. 2020, arXiv 2005.14165, appendix C); datatrove takes 12.

    A benchmark row of 8 to 12 words is one run; a shorter one must be a whole turn, with the same signs (`+`, `#`).
    Words are compared without case and punctuation, in any script. Runs in more than `common` rows are the benchmark's
    own phrasing and are ignored, as GPT-3 ignores runs found more than ten times. The filter finds copies, not
    paraphrases: it misses MT-Bench's questions with one word in ten changed, and finds them with one in fourteen.
    Common code may equal that of a reference answer; `keys: [turns]` excludes MT-Bench's reference answers.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: contamination`."""

        path_fields: ClassVar[tuple[str, ...]] = ("files",)
        files: Annotated[list[str], Field(min_length=1)]
        """Benchmarks: JSON, CSV or Parquet (every text in a row, however deep), or text with one item per line."""
        keys: tuple[str, ...] = ()
        """Keys whose texts are read; all when empty."""
        words: Annotated[int, Field(ge=LEAST, le=50)] = 13
        """Length of a run (GPT-3: 13)."""
        common: Annotated[int, Field(ge=1)] = 10
        """Runs in more rows than this are ignored (GPT-3: 10)."""
        on: Compared = "both"
        """`prompt` (the user's turns), `answer`, or `both`."""
        drop: bool = True
        """Drop contaminated sessions; otherwise they are labelled."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options
        self._runs: dict[int, str] | None = None
        self._starts: set[int] = set()
        self._lengths: list[int] = []
        self._whole: dict[tuple[str, ...], str] = {}

    def __reduce__(self) -> tuple[type[Contamination], tuple[Contamination.Options]]:
        """Pickles the options only: hashes of texts differ between processes."""
        return type(self), (self.options,)

    def measure(self, session: Session) -> Hit | None:
        """The first shared run and the benchmark row it is from; reads the files at the first call."""
        if self._runs is None:
            self._runs = self._read_runs()
        for text in texts_of(session, self.options.on):
            if (hit := self._hit(text, self._runs)) is not None:
                return hit
        return None

    def decide(self, value: Sequence[str] | None) -> Verdict:
        """Drop or label a session with a shared run; the neighbour is the benchmark's row."""
        words, row = value or (None, None)
        return Verdict(
            rule="contamination",
            keep=value is None or not self.options.drop,
            reason="ok" if value is None else "contaminated",
            value=words,
            threshold=self.options.words,
            neighbour=row,
        )

    def _hit(self, text: str, runs: dict[int, str]) -> Hit | None:
        tokens = comparable(text)
        if len(tokens) < LEAST:
            row = self._whole.get(whole(text))
            return None if row is None else (" ".join(tokens), row)
        starts = [hash(start) for start in n_grams(tokens, LEAST)]
        if self._starts.isdisjoint(starts):
            return None
        for place, start in enumerate(starts):
            if start in self._starts:
                for length in self._lengths:
                    run = tuple(tokens[place : place + length])
                    if len(run) == length and (row := runs.get(hash(run))) is not None:
                        return " ".join(run), row
        return None

    def _read_runs(self) -> dict[int, str]:
        """Runs by their hash (64 bits: at a million runs and a billion look-ups, one false hit in 20,000 times)."""
        rows: dict[int, str] = {}
        count: Counter[int] = Counter()
        lengths = set()
        for row, text in self._items():
            tokens = comparable(text)
            if 2 <= len(tokens) < LEAST:
                self._whole.setdefault(whole(text), row)
            elif len(tokens) >= LEAST:
                lengths.add(length := min(len(tokens), self.options.words))
                hashes = {hash(run) for run in n_grams(tokens, length)}
                self._starts.update(map(hash, n_grams(tokens, LEAST)))
                count.update(hashes)
                for each in hashes:
                    rows.setdefault(each, row)
        self._lengths = sorted(lengths, reverse=True)
        return {each: row for each, row in rows.items() if count[each] <= self.options.common}

    def _items(self) -> Iterator[tuple[str, str]]:
        for name in self.options.files:
            for number, texts in _rows(Path(name), self.options.keys):
                for text in texts:
                    yield f"{Path(name).name}:{number}", text


def _rows(path: Path, keys: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The number and the texts of each row, or line of a text. Raises `RecipeError` where one cannot be read."""
    try:
        if kind_of(path) == "lines":
            yield from ((line, [text]) for line, text in _valid(text_lines(path), path))
        else:
            found = _valid(rows(path, any_row), path)
            yield from ((number, _texts(row.value, keys)) for number, row in enumerate(found, start=1))
    except RecipeError as error:
        raise RecipeError(f"curate.contamination.files: {error}") from error


def _valid(rows: Iterable[T | RejectedRow], path: Path) -> Iterator[T]:
    for row in rows:
        if isinstance(row, RejectedRow):
            raise RecipeError(f"{path}, line {row.line}: {row.detail}")
        yield row


def _texts(value: Any, keys: Sequence[str]) -> list[str]:
    """All texts in a row, or those under the keys."""
    if isinstance(value, str):
        return [] if keys else [value]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each, keys)]
    if isinstance(value, dict):
        return [text for key, each in value.items() for text in _texts(each, [] if key in keys else keys)]
    return []
