"""Disturbs whole runs of the command line in every way, over and over, and reports what did not hold.

A run is started again and again, each time with one event of `harm`, against an `endpoint` that misbehaves, until it is
finished; then it has to equal an undisturbed one. A seed draws the same events in the same order; at what moment of the
work they come also depends on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from distill.core.files import write_atomically
from distill.engine.mock_server import MockServer
from distill.run.layout import STAGES
from tests.benchmarks.arena import ROOT, Check, Findings, scratch
from tests.benchmarks.stress.endpoint import NOISE_SHARE, TIMEOUT_SECONDS, USD_PER_TOKEN, Endpoint, noises
from tests.benchmarks.stress.harm import EVENTS, Invocation, Site, can_fill_disks, invoke
from tests.benchmarks.stress.invariants import after_each, contents, when_finished

SECRETS = {"STRESS_KEY": "sk-Stress/8+f<&>\"'kQ==", "STRESS_HEADER": "Token s3cr3t/of+the-header=="}
EVENTS_A_RUN = 8
"""The most events before a run is left alone to finish."""
TRIES = 8
"""Invocations without an event in which a run has to finish."""
MOST_KEPT = 10
"""Folders of runs with findings that stay, beside the results."""
PRICE = {"input": USD_PER_TOKEN * 1e6, "output": USD_PER_TOKEN * 1e6}
BULKY_ROWS, BULKY_WORDS = 25, 80_000
"""Imported rows that are dropped again: enough text for curate to start processes of its own."""
NOISES = tuple(noises(Random(0), "key"))
TINY_MODEL = "from pathlib import Path; from tests.support import tiny; tiny.save_tiny_model(Path('model'))"


class Campaign:
    """All runs of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.chance, self.runs = seed, Random(seed), 0
        self.findings: list[str] = []
        self.ends: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By kind of event, how often each exit code came, and `too late` where the run had ended before."""

    def report(self, where: str, findings: Iterator[str]) -> None:
        """Keep what did not hold, and print it at once."""
        for line in findings:
            self.findings.append(f"seed {self.seed}, run {self.runs}, {where}: {line}")
            sys.stderr.write(f"{self.findings[-1]}\n")


def run(*, quick: bool, seed: int = 0, minutes: float = 10.0) -> Findings:
    """Each event over and over for `minutes`, every other run with training and comparison; once each with `quick`."""
    campaign, secrets = Campaign(seed), tuple(secret.split()[-1] for secret in SECRETS.values())
    with (
        tempfile.TemporaryDirectory(dir=scratch()) as folder,
        Endpoint(secrets, seed) as endpoint,
        MockServer() as elsewhere,
    ):
        sites = [_site(Path(folder) / "asking", endpoint, elsewhere, trains=False)]
        if not quick:
            sites.append(_site(Path(folder) / "training", endpoint, elsewhere, trains=True))
        references = [_reference(site) for site in sites]
        deadline, kinds = time.monotonic() + (0 if quick else 60 * minutes), _kinds(campaign)
        while kinds or len(endpoint.dealt) < len(NOISES) or time.monotonic() < deadline:
            if not kinds and not quick:
                kinds = _kinds(campaign)
            which = campaign.runs % len(sites)
            _disturb(campaign, sites[which], references[which], kinds)
    return _findings(campaign, endpoint, elsewhere)


def _kinds(campaign: Campaign) -> list[str]:
    """Every kind of event once, in random order."""
    kinds = [kind for kind in EVENTS if kind != "full disk" or can_fill_disks()]
    campaign.chance.shuffle(kinds)
    return kinds


def _site(folder: Path, endpoint: Endpoint, elsewhere: MockServer, *, trains: bool) -> Site:
    folder.mkdir()
    if trains:
        subprocess.run(
            [sys.executable, "-c", TINY_MODEL], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
        )
        row = '{"instruction": "Say a lot.", "output": "' + "word " * BULKY_WORDS + '"}\n'
        write_atomically(folder / "bulky.jsonl", [row] * BULKY_ROWS)
    write_atomically(folder / "recipe.yaml", [yaml.safe_dump(_recipe(endpoint.url, trains=trains))])
    stages = [stage for stage in STAGES if trains or stage not in ("train", "compare")]
    return Site(folder, folder / "recipe.yaml", stages, endpoint, elsewhere.url, SECRETS)


def _recipe(url: str, *, trains: bool) -> dict[str, Any]:
    keys = {"api_key_env": "STRESS_KEY", "headers_env": {"x-own": "STRESS_HEADER"}}
    asked = {"model": "stand-in", "base_url": url, **keys, "terms": "ours", "price": PRICE}
    asked |= {"timeout_seconds": TIMEOUT_SECONDS, "sampling": {"max_tokens": 48}}
    recipe = {
        "name": "stress",
        "budget_usd": 1e6,
        "teacher": asked,
        "judge": asked,
        "expand": {"strategy": "self_instruct", "tasks": 15, "window": 4},
        "collect": {"test": 4, "concurrency": 8, "max_failed": 0.5},
        "curate": [{"filter": "length", "max_words": 1000}, {"filter": "near_duplicate"}, {"filter": "judge"}],
    }
    if not trains:
        return recipe
    return recipe | {
        "sources": [{"from": "alpaca", "path": "bulky.jsonl"}],
        "student": {"model": "./model", "prune": {"layers": 3}},
        "train": {"method": "lora", "epochs": 4, "lora": {"r": 4}, "batch_rows": 4, "eval_rows": 0},
        "compare": {"metrics": ["likelihood", "overlap", "style"], "sampling": {"max_tokens": 8}},
    }


def _reference(site: Site) -> dict[str, str]:
    """The files of an undisturbed run."""
    _clear(site)
    invocation = invoke(site, Invocation("reference"))
    if invocation.code != 0:
        raise RuntimeError(f"the undisturbed run ended with {invocation.code}:\n{invocation.output}")
    site.seconds = invocation.ended - invocation.started
    shutil.copytree(site.run_dir, site.folder / "reference")
    return contents(site.run_dir)


def _clear(site: Site) -> None:
    """Make room for a new run."""
    site.endpoint.ledger.clear()
    for name in ("disk", "outputs", "tmp"):
        shutil.rmtree(site.folder / name, ignore_errors=True)
        (site.folder / name).mkdir()


def _disturb(campaign: Campaign, site: Site, reference: dict[str, str], kinds: list[str]) -> None:
    """One run from its first event to its end; takes the events from `kinds`."""
    campaign.runs += 1
    _clear(site)
    site.endpoint.noise_share = NOISE_SHARE
    before, invocations = len(campaign.findings), list[Invocation]()
    while len(invocations) < EVENTS_A_RUN + TRIES and not _is_finished(site, invocations):
        if kinds and len(invocations) < EVENTS_A_RUN:
            kind = kinds.pop()
            invocation = EVENTS[kind](site, Random(campaign.chance.random()), kind=kind)
            end = "hung" if invocation.code is None else f"exit {invocation.code}"
            campaign.ends[kind][end if invocation.had_effect else "too late"] += 1
        else:
            invocation = invoke(site, Invocation("no event"))
        invocations.append(invocation)
        campaign.report(invocation.kind, after_each(site, invocation))
    site.endpoint.noise_share = 0.0
    campaign.report("finished", when_finished(site, reference, invocations))
    if len(campaign.findings) > before:
        _keep(campaign, site)


def _is_finished(site: Site, invocations: Sequence[Invocation]) -> bool:
    """Whether every stage is done; one with requests that were refused for the moment is not."""
    if not invocations or invocations[-1].code != 0:
        return False
    stages = json.loads((site.run_dir / "run.json").read_text())["stages"]
    return all(stage["status"] == "done" for stage in stages.values())


def _keep(campaign: Campaign, site: Site) -> None:
    """Copy a run with findings to where results lie."""
    target = scratch().parent / "stress" / f"seed-{campaign.seed}-run-{campaign.runs}"
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    if len(list(target.parent.iterdir())) < MOST_KEPT:
        shutil.copytree(site.folder, target, ignore=shutil.ignore_patterns("model", "bulky.jsonl"))


def _findings(campaign: Campaign, endpoint: Endpoint, elsewhere: MockServer) -> Findings:
    ends = {**{kind: Counter[str]() for kind in EVENTS}, **campaign.ends}
    notes = [f"seed {campaign.seed}: {campaign.runs} runs", *campaign.findings]
    if not can_fill_disks():
        ends.pop("full disk")
        notes.append("SKIPPED: full disk, as no file system can be mounted here in a name space of our own")
    rows = [{"event": kind, "times": count.total(), "ended": _listed(count)} for kind, count in ends.items()]
    rows += [{"event": kind, "times": endpoint.dealt[kind], "ended": ""} for kind in NOISES]
    checks = [
        Check("findings", len(campaign.findings), 0),
        Check("times that the rarest event was drawn", min(row["times"] for row in rows), 1, at_least=True),
        Check("requests that followed a redirect", elsewhere.count, 0),
    ]
    return Findings(rows, checks, notes)


def _listed(ends: Counter[str]) -> str:
    return ", ".join(f"{end} ×{count}" for end, count in sorted(ends.items()))
