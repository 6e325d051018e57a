"""The perceptual-attack experiment: candidates, counterexamples and the paper's tables."""
