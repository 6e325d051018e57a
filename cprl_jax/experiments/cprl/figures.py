"""The figures of a CPRL run: SRCC over the radius, scores before and after, score landscapes, attack strengths."""

import numpy as np
from matplotlib.colors import Normalize

from cprl_jax.experiments.cprl.results import CLEAN, Results, conditions
from cprl_jax.report import figures
from cprl_jax.report.figures import INK, Panel, Strip, legend, line_of, panel_of, styled
from cprl_jax.report.values import number, shorten, value
from cprl_jax.robustness import trust

# How the file names of figures begin, those of `report.figures.training` among them.
NAMES = ("activations_", "certified_", "change", "example_", "landscape_", "scatter_", "srcc_", "training_", "trust_")


@styled
def curves(results: Results) -> list[Panel]:
    """One panel per attack with a radius: SRCC against MOS over it, from the clean value on, with its 95 % band."""
    panels, names = [], results.methods
    for attack in dict.fromkeys(attack for attack, radius in conditions(results.rows) if radius):
        title = results.attack_title(attack)
        figure, axes = panel_of(title, height=3.0)
        pairs = [CLEAN, *(pair for pair in conditions(results.rows) if pair[0] == attack)]
        radius = np.array([pair[1] for pair in pairs])
        for method in names:
            line = line_of(names, method)
            shown = [results.find(method, pair) for pair in pairs]
            srcc, low, high = (
                np.array([value(row, key) for row in shown]) for key in ("srcc", "srcc_low", "srcc_high")
            )
            seen = np.isfinite(srcc)
            axes.plot(radius[seen], srcc[seen], label=shorten(method, 24), markersize=4.5, **line)
            band = seen & np.isfinite(low) & np.isfinite(high)
            axes.fill_between(radius[band], low[band], high[band], color=line["color"], alpha=0.15, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.6)
        axes.set(xlabel="radius of the attack (1/255)", ylabel="SRCC against MOS", ylim=(-1.03, 1.03))
        axes.set_xticks(radius, [f"{tick:g}" for tick in radius])
        legend(figure, axes)
        panels.append(Panel(f"srcc_{attack}", f"SRCC against MOS under {title} by radius", figure))
    return panels


@styled
def scatters(results: Results) -> list[Panel]:
    """One panel per method: score before (x) and after (y) the attack, one dot per image, coloured by its MOS."""
    panels = []
    low, high = figures.limits([number(row[key]) for row in results.headline_scores for key in ("clean", "score")])
    for method in results.methods:
        rows = [row for row in results.headline_scores if row["method"] == method]
        clean, score, mos = (np.array([number(row[key]) for row in rows]) for key in ("clean", "score", "mos"))
        seen = np.isfinite(clean) & np.isfinite(score)
        if not seen.any():
            continue
        figure, axes = panel_of(shorten(method, 30), height=3.1)
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        look = {"norm": Normalize(0, 100), "cmap": "viridis", "linewidths": 0.3, "edgecolors": INK, "alpha": 0.9}
        look |= {"s": 20 if seen.sum() < 400 else 8, "rasterized": bool(seen.sum() > figures.MANY_POINTS)}
        dots = axes.scatter(clean[seen], score[seen], c=mos[seen], plotnonfinite=True, **look)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="score before", ylabel="score after")
        figures.colour_bar(figure, axes, dots, "MOS")
        alt = f"{method}: scores before and after {results.title(results.headline)}, coloured by MOS"
        panels.append(Panel(f"scatter_{method}", alt, figure))
    return panels


def changes(results: Results) -> list[Panel]:
    """How far the attack moved each image's score: a strip per method, with its middle half and median."""
    strips = []
    for method in results.methods:
        rows = [row for row in results.headline_scores if row["method"] == method]
        moved = np.array([number(row["score"]) - number(row["clean"]) for row in rows])
        moved = moved[np.isfinite(moved)]
        if moved.size:
            strips.append(Strip(method, figures.colour(results.methods, method), moved))
    alt = f"Change of each image's score under {results.title(results.headline)}"
    return figures.strips("change", alt, strips, xlabel="change of score (points of 100)")


@styled
def certificates(results: Results) -> list[Panel]:
    """One panel per method and l2 radius: each image's certified interval, and where attacks moved its score.

    The images are in the order of their smoothed scores; those without finite bounds have no bar.
    """
    panels, rows = [], results.certificates("images")
    for method, radius in dict.fromkeys((row["method"], row["radius"]) for row in rows):
        shown = [row for row in rows if (row["method"], row["radius"]) == (method, radius)]
        shown.sort(key=lambda row: row["score"])
        columns = ("score", "lower", "upper", "attacked_down", "attacked_up", "broken")
        score, lower, upper, down, up, broken = (np.array([number(row[key]) for row in shown]) for key in columns)
        place, finite = np.arange(len(shown)), np.isfinite(lower) & np.isfinite(upper)
        figure, axes = panel_of(f"{shorten(method, 24)}, l2 {radius:g}", height=3.0)
        colour = figures.colour(results.methods, method)
        axes.vlines(place[finite], lower[finite], upper[finite], color=colour, alpha=0.35, linewidth=2.0)
        axes.plot(place, score, ".", color=INK, markersize=2.5, label="smoothed")
        axes.plot(place, down, "v", color=colour, markersize=2.5, label="attacked down")
        axes.plot(place, up, "^", color=colour, markersize=2.5, label="attacked up")
        if broken.any():
            axes.plot(place[broken > 0], score[broken > 0], "x", color="red", markersize=9, label="BROKEN")
        axes.set(xlabel="test images, by their smoothed score", ylabel="score", xticks=[])
        legend(figure, axes)
        alt = f"{method}: certified intervals at l2 {radius:g} and attacked scores, image by image"
        panels.append(Panel(f"certified_{method}_{radius:g}", alt, figure))
    return panels


@styled
def landscapes(results: Results) -> list[Panel]:
    """One panel per method: change of the score over the plane of the FGSM direction (x) and a random one (y).

    All share one scale of colours, so that the flatter model is the paler one (CPRL, Fig. 5, seen from above).
    """
    shown = results.landscapes
    scores = {method: np.asarray(landscape["scores"], np.float64) for method, landscape in shown.items()}
    # Changes from the score of the image itself, in the middle of the plane.
    changes = {method: plane - plane[plane.shape[0] // 2, plane.shape[1] // 2] for method, plane in scores.items()}
    sizes = [np.abs(change[np.isfinite(change)]).max(initial=0.0) for change in changes.values()]
    largest = max(sizes, default=0.0) or 1.0
    panels = []
    for method, change in changes.items():
        landscape = shown[method]
        x, y = (np.asarray(landscape[key], np.float64) for key in ("along_gradient", "along_random"))
        figure, axes = panel_of(shorten(method, 30), height=3.1)
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
        figures.colour_bar(figure, axes, picture, "change of score")
        alt = f"{method}: change of the score on a plane around {landscape['image']}"
        panels.append(Panel(f"landscape_{method}", alt, figure))
    return panels


@styled
def activations(results: Results) -> list[Panel]:
    """One panel per method: mean activations of the trunk's channels, the largest first, before and after PGD.

    Channels keep the place that they have without attack (first version of CPRL, Fig. 5).
    """
    panels = []
    for method, channels in results.activations.items():
        clean, attacked = (np.asarray(channels[key], np.float64) for key in ("clean", "attacked"))
        order = np.argsort(-clean, kind="stable")
        figure, axes = panel_of(shorten(method, 30), height=2.6)
        look = {"linewidth": 0.8, "rasterized": bool(clean.size > figures.MANY_POINTS)}
        axes.plot(attacked[order], color=figures.COLOURS[1], label=f"PGD at {channels['radius']:g}/255", **look)
        axes.plot(clean[order], color=figures.COLOURS[0], label="no attack", **look | {"linewidth": 1.6})
        axes.set(xlabel="channel, by its activation without attack", ylabel="mean activation")
        legend(figure, axes)
        alt = f"{method}: mean activation of each channel of the trunk without attack and under PGD"
        panels.append(Panel(f"activations_{method}", alt, figure))
    return panels


@styled
def strengths(results: Results) -> list[Panel]:
    """How far each attack of the trust checks moves the scores on average: a row per attack, a mark per method."""
    moved: dict[str, dict[str, float]] = {}
    for row in results.checks:
        if row["name"] not in trust.NOT_STRENGTHS:
            numbers = {label: number(strength) for label, strength in row["numbers"].items()}
            numbers.pop(trust.SMALLEST, None)
            moved.setdefault(row["method"], {}).update(numbers)
    labels = list(dict.fromkeys(label for attacks in moved.values() for label in attacks))
    if not labels:
        return []
    figure, axes = panel_of("", height=0.9 + 0.24 * len(labels))
    for method in moved:
        places = [place for place, label in enumerate(labels) if np.isfinite(moved[method].get(label, np.nan))]
        values = [moved[method][labels[place]] for place in places]
        look = line_of(results.methods, method) | {"linestyle": ""}
        axes.plot(values, places, label=shorten(method, 24), markersize=5, **look)
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.set(xlabel="mean strength (points of 100)", ylim=(len(labels) - 0.5, -0.5))
    axes.set_yticks(range(len(labels)), [shorten(label, 24) for label in labels])
    legend(figure, axes)
    return [Panel("trust_strengths", "Mean change of score by each attack of the trust checks, per method", figure)]
