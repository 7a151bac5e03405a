"""The compare stage: base, student and teacher on the held-out prompts, side by side, with paired intervals.

Everything is asked through the engine, so that what a killed run had been told is in the journal. One model is in
memory at a time: first the teacher answers every prompt once more (the ceiling), then its server stops, then base and
student answer and are asked how probable they find the teacher's answers, then the teacher is where its weights are here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from distill import console
from distill.embedded import read_base
from distill.engine import Outcome
from distill.engine.drive import Engine
from distill.errors import DistillError, RunFolderError
from distill.journal import Journal
from distill.metrics import Answered, Measure, Model, ModelMetric, Sample, Scores, TextMetric
from distill.providers import Provider
from distill.rows import read_sessions, write_json, write_rows
from distill.stats import LEVEL, RESAMPLES, Gap, Interval, Refused, gap_closed, mean_interval, paired_difference
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Session
