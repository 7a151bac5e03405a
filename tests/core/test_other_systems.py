"""Windows and macOS: the package imports, and the base commands run, without what only Linux or POSIX has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distill.engine.mock_server import MockServer

HIDE = """
import importlib, os, pkgutil, signal, sys, types

for name in ("aiohttp", "asyncio", "filelock", "httpx2", "multiprocessing.pool", "numpy", "openai", "psutil",
             "pydantic", "re2", "rich.progress", "sqlite3", "subprocess", "tempfile", "typer"):
    importlib.import_module(name)  # what is not ours has code of its own for each system

MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty"}
OS = {"fork", "getuid", "geteuid", "getgid", "setsid", "killpg", "getpgid", "mkfifo", "sched_getaffinity", "sysconf",
      "statvfs", "fchmod", "chown", "uname", "nice", "getloadavg", "wait4", "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC"}
SIGNAL = {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGQUIT", "pthread_sigmask", "setitimer",
          "pthread_kill", "SIG_BLOCK", "SIG_SETMASK"}


def is_ours(depth):
    return sys._getframe(depth).f_globals.get("__name__", "").partition(".")[0] == "distill"


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class Lacking(types.ModuleType):
    def __init__(self, module, names):
        self.__dict__.update({name: value for name, value in vars(module).items() if name not in names}, _whole=module)

    def __getattr__(self, name):
        if is_ours(2):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._whole, name)


sys.meta_path.insert(0, Hidden())
for name in MODULES:
    sys.modules.pop(name, None)
is_windows = sys.argv[1] == "win32"
sys.modules["os"] = Lacking(os, OS if is_windows else {"sched_getaffinity"})
sys.modules["signal"] = Lacking(signal, SIGNAL if is_windows else ())
sys.platform = sys.argv[1]

import distill

TORCH = {"torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate"}
sys.modules.update(dict.fromkeys(TORCH))  # not installed
names = [one.name for one in pkgutil.walk_packages(distill.__path__, "distill.") if not one.name.endswith("__main__")]
absent = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in TORCH:
            raise
        absent.append(name)
assert len(names) - len(absent) > 200, absent

from distill.cli.main import _code
from distill.core import interrupts

for command in sys.argv[2:]:
    with interrupts.listening():
        print(command, "→", _code(command.split()))
"""

ROWS = "frage,antwort\n" + "".join(f"Frage {n}?,Antwort {n}.\n" for n in range(4))


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_the_base_commands_use_nothing_that_only_linux_has(platform, tmp_path):
    commands = ["check r.yaml", "run r.yaml --stages collect,curate", "show runs/r"]
    commands += [
        "export runs/r --to openai --out o/o.jsonl",
        "import rows.csv --prompt frage --answer antwort --out s.jsonl",
    ]
    commands += ["doctor", "explain-miss runs/r", "serve smollm2"]
    (tmp_path / "tasks.txt").write_text("".join(f"Say something about {word}.\n" for word in ("tea", "rain", "a bus")))
    (tmp_path / "rows.csv").write_text(ROWS)
    with MockServer() as server:
        teacher = f"teacher: {{model: any, base_url: '{server.url}', terms: ours, sampling: {{max_tokens: 16}}}}"
        (tmp_path / "r.yaml").write_text(
            f"name: r\n{teacher}\ncollect: {{tasks: tasks.txt, test: 1}}\ncurate: [{{filter: empty}}]\n"
        )
        finished = subprocess.run(
            [sys.executable, "-c", HIDE, platform, *commands],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert "Traceback" not in finished.stderr, finished.stderr
    codes = [line.rpartition(" ")[2] for line in finished.stdout.splitlines() if " → " in line]
    assert codes == ["0", "0", "0", "0", "0", "0", "0", "1"], finished
    assert b"\r" not in (tmp_path / "o" / "o.jsonl").read_bytes()
    assert len((tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    if platform == "win32":
        assert (
            "error: models on this machine need Linux or macOS; on Windows, run distill within WSL2" in finished.stderr
        )
