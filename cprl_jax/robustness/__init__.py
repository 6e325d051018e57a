"""How robust is a score function, and can that number be trusted?

`certify` proves how far any attack can move the scores of a model behind noise, `interval_bounds` how far they can
move in a small network; `metrics` turns scores before and after an attack into numbers, `landscape` evaluates the
scores around one image, `ranking` says how far a ranking can fall when each score may move inside an interval, and
`trust` looks for signs that attacks fail because the gradient is hidden, not because the model is robust.
"""

from cprl_jax.robustness import certify, interval_bounds, landscape, metrics, ranking, trust

__all__ = ["certify", "interval_bounds", "landscape", "metrics", "ranking", "trust"]
