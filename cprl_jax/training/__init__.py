"""Training: one state, one loop, optimisers, history and checkpoints."""
