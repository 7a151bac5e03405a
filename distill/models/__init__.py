"""Models on this machine: loading, generation, likelihoods, serving."""
