"""Disturbs whole runs of the command line in every way, over and over, and reports what did not hold.

A run is started again and again, each time with one event of `harm`, against an `endpoint` that misbehaves, until it is
finished; then it has to equal an undisturbed one. A seed draws the same events in the same order; at what moment of the
work they come also depends on the machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import yaml

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
QUICK_STAGES = ("expand", "collect", "curate", "report")
TRAINING = {
    "train": {"method": "lora", "epochs": 2, "learning_rate": 5e-3, "lora": {"r": 4}, "batch_rows": 4, "eval_rows": 0},
    "compare": {"metrics": ["likelihood", "overlap", "style"], "sampling": {"max_tokens": 8}},
}


@dataclass(slots=True)
class Campaign:
    """All runs of one seed."""

    seed: int
    chance: Random
    findings: list[str] = field(default_factory=list)
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    """By kind of event, how often each exit code came, and `too late` where the run had ended before."""
    runs: int = 0

    def note(self, invocation: Invocation, kind: str) -> None:
        """Count an event."""
        end = "hung" if invocation.code is None else f"exit {invocation.code}"
        self.ends.setdefault(kind, Counter())[end if invocation.had_effect else "too late"] += 1

    def report(self, where: str, found: Iterator[str]) -> None:
        """Keep what did not hold, and print it at once."""
        for line in found:
            self.findings.append(f"seed {self.seed}, {where}: {line}")
            sys.stderr.write(f"{self.findings[-1]}\n")


def run(*, quick: bool, seed: int = 0, minutes: float = 10.0) -> Findings:
    """Each event over and over for `minutes`, every other run with training and comparison; once each with `quick`."""
    campaign, minutes = Campaign(seed, Random(seed)), 0.0 if quick else minutes
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch())))
        endpoint = stack.enter_context(Endpoint(tuple(secret.split()[-1] for secret in SECRETS.values()), seed))
        elsewhere = stack.enter_context(MockServer(keep=False))
        sites = [
            _site(base, endpoint, elsewhere.url, trains=trains) for trains in ((False,) if quick else (False, True))
        ]
        references = [_reference(site) for site in sites]
        deadline, kinds = time.monotonic() + 60 * minutes, _kinds(campaign.chance)
        while kinds or time.monotonic() < deadline:
            kinds = kinds or _kinds(campaign.chance)
            which = campaign.runs % len(sites)
            _disturbed(campaign, sites[which], references[which], kinds)
        sent_elsewhere = elsewhere.count
    return _findings(campaign, endpoint, sent_elsewhere)


def _kinds(chance: Random) -> list[str]:
    """Every kind of event once, in random order."""
    kinds = [kind for kind in EVENTS if kind != "full disk" or can_fill_disks()]
    chance.shuffle(kinds)
    return kinds


def _site(base: Path, endpoint: Endpoint, elsewhere: str, *, trains: bool) -> Site:
    folder = base / ("training" if trains else "asking")
    folder.mkdir()
    if trains:
        code = "import sys; from tests.support.tiny import save_tiny_model; save_tiny_model(sys.argv[1])"
        subprocess.run(
            [
                sys.executable,
                "-c",
                code.replace("sys.argv[1]", f"__import__('pathlib').Path({str(folder / 'model')!r})"),
            ],
            cwd=ROOT,
            check=True,
        )
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(endpoint.url, folder / "model" if trains else None)))
    stages = tuple(STAGES) if trains else QUICK_STAGES
    return Site(folder, recipe, endpoint, elsewhere, SECRETS, stages=stages)


def _recipe(url: str, model: Path | None) -> dict[str, Any]:
    asked = {
        "model": "stand-in",
        "base_url": url,
        "api_key_env": "STRESS_KEY",
        "headers_env": {"x-own": "STRESS_HEADER"},
    }
    asked |= {"price": PRICE, "timeout_seconds": TIMEOUT_SECONDS, "sampling": {"max_tokens": 48}}
    recipe = {
        "name": "stress",
        "budget_usd": 1e6,
        "teacher": {**asked, "terms": "ours"},
        "judge": {**asked, "terms": "not trained on"},
        "expand": {"strategy": "self_instruct", "tasks": 20, "window": 4},
        "collect": {"test": 4, "concurrency": 8, "max_failed": 0.5},
        "curate": [{"filter": "empty"}, {"filter": "near_duplicate"}, {"filter": "judge"}],
    }
    return recipe if model is None else {**recipe, "student": {"model": str(model), "prune": {"layers": 3}}, **TRAINING}


def _reference(site: Site) -> dict[str, str]:
    """The files of an undisturbed run."""
    _clear(site)
    invocation = invoke(site, Invocation("reference", allowed=(0,)))
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
        (site.folder / name).mkdir(parents=True)


def _disturbed(campaign: Campaign, site: Site, reference: dict[str, str], kinds: list[str]) -> None:
    """One run from its first event to its end; takes the events from `kinds`."""
    campaign.runs += 1
    _clear(site)
    site.endpoint.noise_share = NOISE_SHARE
    before, invocations = len(campaign.findings), list[Invocation]()
    while kinds and len(invocations) < EVENTS_A_RUN and (not invocations or invocations[-1].code != 0):
        kind = kinds.pop()
        chance = Random(campaign.chance.random())
        invocations.append(EVENTS[kind](site, chance, kind=kind))
        campaign.note(invocations[-1], kind)
        campaign.report(f"run {campaign.runs}, {invocations[-1].kind}", after_each(site, invocations[-1]))
    for _ in range(TRIES):
        invocations.append(invoke(site, Invocation("no event", allowed=(0, 1))))
        campaign.report(f"run {campaign.runs}, no event", after_each(site, invocations[-1]))
        if invocations[-1].code == 0:
            break
    site.endpoint.noise_share = 0.0
    campaign.report(f"run {campaign.runs}, finished", when_finished(site, reference, invocations))
    if len(campaign.findings) > before:
        _keep(campaign, site)


def _keep(campaign: Campaign, site: Site) -> None:
    """Copy a run with findings to where results lie."""
    target = scratch().parent / "stress" / f"seed-{campaign.seed}-run-{campaign.runs}"
    shutil.rmtree(target, ignore_errors=True)
    if not target.parent.exists() or len(list(target.parent.iterdir())) < MOST_KEPT:
        shutil.copytree(site.folder, target, ignore=shutil.ignore_patterns("model"))


def _findings(campaign: Campaign, endpoint: Endpoint, sent_elsewhere: int) -> Findings:
    rows = [
        {"event": kind, "times": ends.total(), "too late": ends["too late"], "ended": _listed(ends)}
        for kind, ends in campaign.ends.items()
    ]
    rows += [
        {"event": kind, "times": count, "too late": "", "ended": ""} for kind, count in sorted(endpoint.dealt.items())
    ]
    missing = [
        kind for kind in [*EVENTS, *noises(Random(0), "x")] if kind not in campaign.ends and kind not in endpoint.dealt
    ]
    notes = [f"seed {campaign.seed}: {campaign.runs} runs", *campaign.findings]
    if not can_fill_disks():
        notes.append("SKIPPED: full disk, as no file system can be mounted here in a name space of our own")
        missing.remove("full disk")
    checks = [
        Check("findings", len(campaign.findings), 0),
        Check(f"kinds never drawn ({', '.join(missing) or 'none'})", len(missing), 0),
        Check("requests that followed a redirect", sent_elsewhere, 0),
    ]
    return Findings(rows, checks, notes)


def _listed(ends: Counter[str]) -> str:
    return ", ".join(f"{end} ×{count}" for end, count in sorted(ends.items()) if end != "too late")
