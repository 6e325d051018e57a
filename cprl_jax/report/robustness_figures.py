"""The figures that tell a robust model from one that hides its gradient: score landscapes, attack strengths.

`robustness` is what `cprl_jax.report.write` takes, one entry per method; `names` is as in `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cprl_jax.report.figures import INK, Panel, legend, line_of, panel_of, styled
from cprl_jax.report.results import number, shorten

# Shares of pixels, and a radius at which every attack wins: not on one scale with the rest.
NOT_STRENGTHS = ("gradients exist", "an unbounded attack wins")


@styled
def landscapes(robustness: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Panel]:
    """One panel per method: change of the score over the plane of the FGSM direction (x) and a random one (y).

    All share one scale of colours, so that the flatter model is the paler one (CPRL, Fig. 5, seen from above).
    """
    shown = [entry for entry in robustness if entry.get("landscape")]
    changes = [_change(entry["landscape"]) for entry in shown]
    largest = max((np.abs(change[np.isfinite(change)]).max(initial=0.0) for change in changes), default=0.0) or 1.0
    panels = []
    for entry, change in sorted(zip(shown, changes, strict=True), key=lambda pair: names.index(pair[0]["method"])):
        found = entry["landscape"]
        x, y = (np.asarray(found[key], np.float64) for key in ("along_gradient", "along_random"))
        figure, axes = panel_of(shorten(entry["method"], 30), height=3.1)
        step_x, step_y = (x[-1] - x[0]) / (x.size - 1), (y[-1] - y[0]) / (y.size - 1)
        edges = (x[0] - step_x / 2, x[-1] + step_x / 2, y[0] - step_y / 2, y[-1] + step_y / 2)
        picture = axes.imshow(
            change.T, origin="lower", extent=edges, cmap="PuOr", vmin=-largest, vmax=largest, interpolation="nearest"
        )
        if np.all(np.isfinite(change)) and np.ptp(change) > 0:
            lines = axes.contour(x, y, change.T, levels=np.linspace(-largest, largest, 13), colors=INK, linewidths=0.5)
            lines.set_alpha(0.6)
        axes.plot(0, 0, marker="+", color=INK, markersize=9)
        axes.grid(False)
        axes.set(xlabel="along the gradient's sign (1/255)", ylabel="along random signs (1/255)")
        bar = figure.colorbar(picture, ax=axes, shrink=0.9, aspect=24)
        bar.set_label("change of score")
        bar.outline.set_visible(False)
        alt = f"{entry['method']}: change of the score on a plane around {found['image']}"
        panels.append(Panel(f"landscape_{entry['method']}", alt, figure))
    return panels


@styled
def strengths(robustness: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Panel]:
    """How far each attack of the trust checks moves the scores on average: a row per attack, a mark per method."""
    found = {
        entry["method"]: {
            label: number(strength)
            for check in entry["checks"]
            if check["name"] not in NOT_STRENGTHS
            for label, strength in check["numbers"].items()
        }
        for entry in robustness
        if entry.get("checks")
    }
    labels = list(dict.fromkeys(label for attacks in found.values() for label in attacks))
    if not labels:
        return []
    figure, axes = panel_of("", height=0.9 + 0.24 * len(labels))
    for method in (name for name in names if name in found):
        places = [place for place, label in enumerate(labels) if np.isfinite(found[method].get(label, np.nan))]
        values = [found[method][labels[place]] for place in places]
        axes.plot(values, places, label=shorten(method, 24), markersize=5, **line_of(names, method) | {"linestyle": ""})
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.set(xlabel="mean strength (points of 100)", ylim=(len(labels) - 0.5, -0.5))
    axes.set_yticks(range(len(labels)), [shorten(label, 24) for label in labels])
    legend(figure, axes)
    return [Panel("trust_strengths", "Mean change of score by each attack of the trust checks, per method", figure)]


def _change(landscape: Mapping[str, Any]) -> np.ndarray:
    """Scores less that of the image itself, in the middle of the plane."""
    scores = np.asarray(landscape["scores"], np.float64)
    return scores - scores[scores.shape[0] // 2, scores.shape[1] // 2]
