"""What the rows say, in words: differences tested in pairs, a verdict, and the reasons to distrust a number."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cprl_jax.evaluation import statistics
from cprl_jax.experiments.cprl.results import (
    AGAINST,
    CLEAN,
    DIFFERENCE_KEYS,
    Condition,
    Results,
    baseline,
    condition,
    conditions,
)
from cprl_jax.report.values import Row, bounds, decimals, distinct, listed, number, side_of_zero, value

VANISHED = 0.5  # share of pixels without gradient from which an attack is called blind
NARROW = 2.0  # standard deviation of a model's scores, in MOS points, under which it says the same of every image
SQUASHED = 0.5  # standard deviation relative to the largest of all models
NOTHING = 0.15  # SRCC below which nothing is left of a ranking
FALSE_COMFORT = 0.25  # SRCC by which PGD must undercut FGSM
NOISE = 0.1  # SRCC by which an attack that ought to be stronger may come out weaker


def differences(scores: Sequence[Row], *, seed: int, resamples: int, chosen: str = "") -> list[dict[str, Any]]:
    """SRCC against MOS of each method less that of the baseline, under each condition, on the same images.

    Args:
      scores: see `Results`.
      seed, resamples: for the paired bootstrap.
      chosen: the baseline; '' = see `results.baseline`.

    Returns:
      `method`, `baseline`, `attack`, `radius`, `difference` and its 95 % interval `low`,
      `high`; NaN where a score is not finite, or there are fewer than three images.
    """
    rows: dict[tuple[str, Condition], dict[str, Row]] = {}
    for row in scores:
        rows.setdefault((row["method"], condition(row)), {})[row["name"]] = row
    methods = distinct(scores, "method")
    reference = baseline(methods, chosen) if methods else ""
    compared = []
    for pair in conditions(scores):
        for method in (name for name in methods if name != reference):
            names = [name for name in rows.get((method, pair), {}) if name in rows.get((reference, pair), {})]
            first, second, mos = (
                np.array([number(rows[model, pair][name][key]) for name in names])
                for model, key in ((method, "score"), (reference, "score"), (method, "mos"))
            )
            numbers: Sequence[float] = (math.nan,) * 3
            if names:
                options = {"seed": seed, "resamples": resamples}
                numbers = statistics.paired_difference(first, second, mos, statistics.srcc, **options)
            compared.append(dict(zip(DIFFERENCE_KEYS, (method, reference, *pair, *numbers), strict=True)))
    return compared


# ------------------------------------------------------------------------------------------------------------- doubts


def gradient_vanished(row: Row | None) -> bool:
    """Whether the attack had no gradient to follow on most pixels, so that its failure proves nothing."""
    return value(row, "zero_gradient_fraction") > VANISHED


def not_converged(row: Row | None) -> bool:
    """Whether an attack that checks this would have moved the scores farther with more iterations."""
    return value(row, "converged") < 1


def doubtful(results: Results, method: str, pair: Condition) -> bool:
    """Whether a method's numbers there do not mean what they seem to; they are never marked as the best."""
    rows = [results.find(method, pair, against) for against in AGAINST]
    return any(gradient_vanished(row) or not_converged(row) for row in rows) or _deviation(results, method) < NARROW


def warnings(results: Results) -> list[str]:
    """Reasons to distrust the table, one sentence or two each, most serious first; empty if none of the rules applies.

    The rules: an attack broke a certificate; a model says nearly the same of every image; a gradient is exactly zero
    on more than half of the pixels; FGSM is withstood but not PGD; signs of a masked gradient or of an attack that did
    not converge, which are PGD weaker than FGSM, or a larger radius weaker than a smaller one (Carlini et al., On
    Evaluating Adversarial Robustness, 2019), wherever some of the ranking seems to survive; an attack says itself that
    it has not converged; scores are squashed compared with those of another model; a method does not pass a trust
    check.
    """
    rules = (broken, _narrow, _vanished, _false_comfort, _weak_attack, _unconverged, _squashed, _masked)
    return list(filter(None, (rule(results, method) for rule in rules for method in results.methods)))


def _deviation(results: Results, method: str) -> float:
    """The standard deviation of a model's clean scores."""
    return value(results.find(method, CLEAN), "score_std")


def broken(results: Results, method: str) -> str:
    """What to say of a method whose certificates an attack has left; ''."""
    rows = [row for row in results.certificates("summary") if row["method"] == method and value(row, "broken") > 0]
    if not rows:
        return ""
    where = listed([f"of {row['broken']:g} of {row['images']:g} images at l2 {row['radius']:g}" for row in rows])
    return (
        f"{method}: CERTIFICATES ARE BROKEN, those {where}. An attack left bounds that none can leave, so the program "
        "is wrong: trust no certificate of this run, and please report it."
    )


def _narrow(results: Results, method: str) -> str:
    if not _deviation(results, method) < NARROW:
        return ""
    return (
        f"{method} says nearly the same of every image: its scores have a standard deviation of "
        f"{decimals(_deviation(results, method), 2)} on the 0..100 scale. Hardly moving under attack is no merit then."
    )


def _vanished(results: Results, method: str) -> str:
    blind = [row for row in results.rows_of(method) if gradient_vanished(row)]
    if not blind:
        return ""
    share = max(value(row, "zero_gradient_fraction") for row in blind)
    where = listed([results.title(condition(row)) for row in blind])
    return (
        f"{method}: gradient vanished, robustness not established. Up to {100 * share:.0f} % of the pixels have a "
        f"gradient of exactly zero, so the attack could not see where to push: {where}."
    )


def _false_comfort(results: Results, method: str) -> str:
    cases = [
        f"at {radius:g}/255 FGSM leaves SRCC {decimals(fgsm, 2)}, PGD {decimals(pgd, 2)}"
        for radius, fgsm, pgd in _fgsm_and_pgd(results, method)
        if fgsm >= NOTHING > pgd and fgsm - pgd > FALSE_COMFORT
    ]
    return f"{method} holds against FGSM, falls to PGD: false comfort ({listed(cases)})." if cases else ""


def _weak_attack(results: Results, method: str) -> str:
    signs = [
        f"PGD does less harm than FGSM at {radius:g}/255 (SRCC {decimals(pgd, 2)} against {decimals(fgsm, 2)})"
        for radius, fgsm, pgd in _fgsm_and_pgd(results, method)
        if pgd >= NOTHING and pgd - fgsm > NOISE
    ]
    for attack in distinct(results.rows, "attack"):
        for (small, before), (large, after) in itertools.pairwise(_curve(results, method, attack).items()):
            if after >= NOTHING and after - before > NOISE:
                signs.append(
                    f"{results.attack_title(attack)} does less harm at {large:g}/255 than at {small:g}/255 "
                    f"(SRCC {decimals(after, 2)} against {decimals(before, 2)})"
                )
    return f"{method}: {listed(signs)}. A stronger attack may find what this one missed." if signs else ""


def _unconverged(results: Results, method: str) -> str:
    where = [results.title(condition(row)) for row in results.rows_of(method) if not_converged(row)]
    if not where:
        return ""
    return f"{method}: {listed(where)} had not converged. More iterations would lower the number."


def _squashed(results: Results, method: str) -> str:
    deviations = {name: _deviation(results, name) for name in results.methods}
    widest = max(deviations, key=lambda name: deviations[name] if math.isfinite(deviations[name]) else -1)
    if not NARROW <= deviations[method] < SQUASHED * deviations[widest]:
        return ""
    return (
        f"{method} squashes its scores: their standard deviation is {decimals(deviations[method], 1)}, that of "
        f"{widest} is {decimals(deviations[widest], 1)}. Part of what looks like small changes under attack "
        "is just that; trust SRCC over RMSE."
    )


def _masked(results: Results, method: str) -> str:
    if not (doubts := _suspicious(results, method)):
        return ""
    return (
        f"{method} does not pass every check for masked gradients: {listed(doubts)}. Its attacked scores may hold "
        "because the attacks were misled or too weak, not because it is robust."
    )


def _suspicious(results: Results, method: str) -> list[str]:
    """The trust checks that a method does not pass, as they read where it does: "an unbounded attack wins"."""
    checks = [row for row in results.checks if row["method"] == method]
    return [f'"{row["name"]}"' for row in checks if row["verdict"] == "suspicious"]


def _curve(results: Results, method: str, attack: str) -> dict[float, float]:
    """Radius -> SRCC against MOS, where it is finite."""
    points = [(condition(row)[1], value(row, "srcc")) for row in results.rows_of(method) if row["attack"] == attack]
    return {radius: srcc for radius, srcc in points if math.isfinite(srcc)}


def _fgsm_and_pgd(results: Results, method: str) -> list[tuple[float, float, float]]:
    """(radius, SRCC under FGSM, SRCC under PGD) where both were run."""
    fgsm, pgd = (_curve(results, method, attack) for attack in ("fgsm", "pgd"))
    return [(radius, fgsm[radius], pgd[radius]) for radius in fgsm if radius in pgd]


# ----------------------------------------------------------------------------------------------------------- verdicts


def verdict(results: Results) -> str:
    """One paragraph: how far each model's ranking falls under the headline attack, and whether hardening paid."""
    names, pair = distinct(results.rows, "method"), results.headline
    if not names:
        return "There are no results to report."
    clean = {name: value(results.find(name, CLEAN), "srcc") for name in names}
    if pair is None:
        each = listed([f"{decimals(clean[name], 2)} for {name}" for name in names])
        return f"No attack was run. On the images as they are, SRCC against the labels (1: the same order) is {each}."
    attacked = {name: value(results.find(name, pair), "srcc") for name in names}
    falls = [
        f"{name} {decimals(clean[name], 2)} → {decimals(attacked[name], 2)}, {_fate(clean[name], attacked[name])}"
        + (" (see the warnings)" if doubtful(results, name, pair) else "")
        for name in names
    ]
    limit = f"change every pixel by at most {pair[1]:g}/255" if pair[1] else "change the image"
    sentences = [
        f"How much of a model's ranking survives when an attacker may {limit}? In SRCC against the labels (1: the same "
        f"order, 0: no relation, -1: the reverse), before → after {results.attack_title(pair[0])}: {'; '.join(falls)}."
    ]
    # Differences to the baseline that have an interval.
    tested = [row for row in results.differences if math.isfinite(value(row, "low") + value(row, "high"))]
    differences = {(row["method"], condition(row)): row for row in tested}
    for name in names:
        if (row := differences.get((name, pair))) and not doubtful(results, name, pair):
            sentences.append(_comparison(row, differences.get((name, CLEAN))))
    return " ".join(sentences)


def _comparison(attacked: Row, clean: Row | None) -> str:
    """How a method ends beside the baseline under the headline attack, and at what price without attack."""
    name, reference = attacked["method"], attacked["baseline"]
    ends, interval = _apart(attacked)
    if not ends:
        return f"{name} cannot be told from {reference} ({interval})."
    price, clean_interval = _apart(clean) if clean else ("", "")
    words = f", on untouched images {price} it {clean_interval}" if price else ""
    return f"{name} ends {ends} {reference} {interval}{words}."


def _apart(row: Row) -> tuple[str, str]:
    """('0.89 above', '[0.80, 0.97]'), or ('', '+0.01 [-0.03, 0.05]') where the interval holds 0."""
    difference, low, high = (value(row, key) for key in ("difference", "low", "high"))
    match side_of_zero(low, high, 2):
        case 1:
            return f"{decimals(difference, 2)} above", bounds(low, high)
        case -1:
            return f"{decimals(-difference, 2)} below", bounds(-high, -low)
    return "", f"{decimals(difference, 2, signed=True)} {bounds(low, high)}"


def _fate(clean: float, attacked: float) -> str:
    if not math.isfinite(attacked):
        return "which has no value"
    if clean < NOTHING:
        return "but there was no ranking to lose"
    if attacked < NOTHING:
        return "reversed" if attacked < -NOTHING else "nothing left of it"
    if not math.isfinite(clean):
        return "with nothing to compare it to"
    kept = attacked / clean
    if kept >= 0.9:
        return "which holds"
    return "most of it survives" if kept >= 0.6 else "part of it survives" if kept >= 0.3 else "little of it survives"


def trust_verdict(results: Results) -> str:
    """How many of the trust checks each method passed, and which it did not; '' where none were run."""
    parts = []
    for method in distinct(results.checks, "method"):
        run = sum(row["method"] == method and row["verdict"] != "not run" for row in results.checks)
        doubts = _suspicious(results, method)
        if run:
            failed = f"fails {len(doubts)} of {run}: {listed(doubts)}" if doubts else f"passes all {run}"
            parts.append(f"{method} {failed}")
    return f"Checks for masked gradients: {'; '.join(parts)}." if parts else ""
