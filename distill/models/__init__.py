"""What needs torch: models, training, generation, likelihoods, serving and export."""
