"""`python -m tests.benchmarks [NAME …] [--quick]`: runs benchmarks, prints what they found and keeps it as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import (
    compare,
    curate,
    faults,
    journal,
    kill,
    memory,
    novelty,
    retry_after,
    stress,
    throughput,
    train,
    train_memory,
)
from tests.benchmarks.arena import Findings, table
from tests.benchmarks.rivals import folder

BENCHMARKS = {
    "throughput": throughput.run,
    "memory": memory.run,
    "journal": journal.run,
    "curate": curate.run,
    "compare": compare.run,
    "kill": kill.run,
    "stress": stress.run,
    "faults": faults.run,
    "retry-after": retry_after.run,
    "novelty": novelty.run,
    "train": train.run,
    "train-memory": train_memory.run,
}


def main() -> int:
    """Run what is named, or all; 1 if a target is missed."""
    given = _given()
    missed = 0
    for name in given.names or BENCHMARKS:
        started = time.monotonic()
        own = {"seed": given.seed, "minutes": given.minutes} if name == "stress" else {}
        found = BENCHMARKS[name](quick=given.quick, **own)
        title = f"{name}{', quick: sizes too small to judge by' if given.quick else ''}"
        sys.stdout.write(
            f"\n{title} ({time.monotonic() - started:.0f} s)\n{_shown(found)}\n{_keep(name, found, given)}\n"
        )
        sys.stdout.flush()
        missed += sum(not check.good for check in found.checks)
    return int(missed > 0)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--seed", type=int, default=0, help="of stress: which events are drawn")
    parser.add_argument("--minutes", type=float, default=10.0, help="of stress without --quick")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    return given


def _shown(found: Findings) -> str:
    lines = [table(found.rows), *found.notes]
    for check in found.checks:
        bound = "at least" if check.at_least else "at most"
        lines.append(
            f"{'ok    ' if check.good else 'MISSED'} {check.what}: {check.found:.4g} ({bound} {check.target:g})"
        )
    return "\n".join(lines)


def _keep(name: str, found: Findings, given: argparse.Namespace) -> Path:
    """Write everything down, with the machine it was found on; the file."""
    now = datetime.now(UTC)
    path = folder() / "results" / f"{name}-{now:%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    said = {"benchmark": name, "at": now.isoformat(), "quick": given.quick, **machine, **asdict(found)}
    path.write_text(json.dumps(said, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
