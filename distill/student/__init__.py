"""What needs torch: models, training, generation, likelihoods, serving and export."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
"""Torch reads it when it is loaded. Threads that spin while they wait take the cores from those they wait for: beside
one other busy process, on two cores, the quickstart's student was trained at 10 tokens/s, and with this at 303."""
