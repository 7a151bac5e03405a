"""What a student learns from: a file per objective, chosen by `train.objective.kind`."""
