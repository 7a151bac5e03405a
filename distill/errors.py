"""Every error that a user can meet, one line each: what was found, what was expected, what to do.

DistillError                    exit 1
├── RecipeError                 exit 2   the recipe, a `--set` or an option is wrong
│   └── SeedsError                       a seeds or tasks file is empty or malformed
├── RunFolderError                       the run folder cannot be used as asked
│   └── RunLocked                        another process writes in it
├── MissingPackage                       an optional package is not installed
├── UnsupportedSystem                    the operating system lacks what a command needs
├── ModelError                           weights are missing, corrupt, refused or cannot be cached
├── MaskError                            the loss mask has a token too many or too few
├── EndpointError                        an endpoint cannot be used at all: unreachable, 401, 404 model
├── ServerError                          a loopback server of distill did not start, or died
├── StageIncomplete                      a stage ended with more failures than it may have
├── ConsentNeeded               exit 2   finished work would be done again, at a cost that nobody has agreed to
├── BudgetStop                  exit 3   the money ran out; what was bought is kept
└── Interrupted                 exit 130 Ctrl-C; what was finished is kept
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence


def shorten(text: str, limit: int) -> str:
    """The text, cut to `limit` characters with a mark where it is longer."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def one_line(text: str, limit: int = 200) -> str:
    """The text on one line of at most `limit` characters."""
    return shorten(" ".join(text.split()), limit)


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first names, with a mark where there are more."""
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters except tab and line feed, direction marks, zero-width characters (except the joiners that scripts
and emoji need), lone surrogates (which UTF-8 cannot encode) and tag characters."""


def visible(text: str) -> str:
    """The text with characters that hide or reorder others shown as ⟦U+202E⟧; line ends become line feeds."""
    return _HIDDEN.sub(lambda match: f"⟦U+{ord(match[0]):04X}⟧", text.replace("\r\n", "\n"))


class DistillError(Exception):
    """An error to be shown as its one line, without a traceback."""

    exit_code = 1


class RecipeError(DistillError):
    """The recipe or the command line is invalid."""

    exit_code = 2


class SeedsError(RecipeError):
    """A seeds or tasks file is missing, empty or malformed."""


class RunFolderError(DistillError):
    """The run folder belongs to another recipe, is damaged, or cannot be written."""


_MACHINE_FAULTS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EIO, errno.ENOMEM,
)  # fmt: skip


def disk_fault(error: OSError) -> RunFolderError | None:
    """The error to show for a fault of the machine (disk, rights, names, open files, memory); `None` for any other."""
    if error.errno not in _MACHINE_FAULTS:
        return None
    name = one_line(str(error.filename or "a file"))
    return RunFolderError(f"{error.strerror}: {name}; mend that and run the same command again")


class RunLocked(RunFolderError):
    """Another process is writing in this run folder."""


class MissingPackage(DistillError):
    """An optional package is needed and not installed."""


class UnsupportedSystem(DistillError):
    """The operating system lacks what a command needs."""


class ModelError(DistillError):
    """Model files are missing, corrupt, of a refused kind, or cannot be stored."""


class MaskError(DistillError):
    """A row's loss mask does not fit its template; nothing has been trained."""


class EndpointError(DistillError):
    """An endpoint cannot serve any request: unreachable, unauthorised, or without the model."""


class ServerError(DistillError):
    """A server started by distill did not become healthy, or died."""


class StageIncomplete(DistillError):
    """A stage ended with more failures than the recipe allows."""


class ConsentNeeded(DistillError):
    """A finished stage would cost money or over ten minutes once more, and `--yes` was not given; nothing has run."""

    exit_code = 2


class BudgetStop(DistillError):
    """The budget is spent; everything bought is in the journal."""

    exit_code = 3


class Interrupted(DistillError):
    """The user stopped the run; everything finished is kept."""

    exit_code = 130
