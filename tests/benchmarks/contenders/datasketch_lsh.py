"""Contender: datasketch's MinHashLSH as its guide uses it: a signature a row, asked before it is put in."""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import time
from pathlib import Path

import datasketch

WORDS = re.compile(r"[a-z0-9]+")


def main() -> None:
    """Measure, on the same text and shingles, signature length and threshold as ours."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    with (given.folder / "sessions.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    started, before = time.perf_counter(), time.process_time()
    index = datasketch.MinHashLSH(threshold=0.7, num_perm=128)
    dropped = 0
    for row in rows:
        words = WORDS.findall("\n".join(message["content"] for message in row["messages"]).lower())
        shingles = {" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))}
        signature = datasketch.MinHash(num_perm=128)
        signature.update_batch([shingle.encode() for shingle in shingles])
        if index.query(signature):
            dropped += 1
        else:
            index.insert(row["id"], signature)
    spent, cpu = time.perf_counter() - started, time.process_time() - before
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = {"rows": len(rows), "dropped": dropped, "seconds": spent, "cpu": cpu, "mb": megabytes}
    sys.stdout.write(f"{json.dumps({**told, 'version': datasketch.__version__})}\n")


if __name__ == "__main__":
    main()
