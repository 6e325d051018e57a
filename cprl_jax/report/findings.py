"""What the rows say, in words: a verdict, and the reasons to distrust a number. Rules on given numbers only."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cprl_jax.report.results import (
    AGAINST,
    CLEAN,
    Condition,
    Row,
    attack_name,
    condition,
    condition_name,
    conditions,
    decimals,
    find,
    headline,
    methods,
    value,
)

VANISHED = 0.5  # share of pixels without gradient from which an attack is called blind
NARROW = 2.0  # standard deviation of predictions, in MOS points, under which a model says the same of every image
SQUASHED = 0.5  # spread relative to the widest model's
NOTHING = 0.15  # SRCC below which nothing is left of a ranking
FALSE_COMFORT = 0.25  # SRCC by which PGD must undercut FGSM
NOISE = 0.1  # SRCC by which an attack that ought to be stronger may come out weaker


def gradient_vanished(row: Row | None) -> bool:
    """Whether the attack had no gradient to follow on most pixels, so that its failure proves nothing."""
    return value(row, "zero_gradient_fraction") > VANISHED


def says_the_same(rows: Sequence[Row], method: str) -> bool:
    """Whether a model's clean scores hardly differ between images, so that there is little to attack."""
    return value(find(rows, method, CLEAN, "mos"), "score_std") < NARROW


def doubtful(rows: Sequence[Row], method: str, pair: Condition) -> bool:
    """Whether a method's numbers there do not mean what they seem to; they are never marked as the best."""
    found = (find(rows, method, pair, against) for against in AGAINST)
    return says_the_same(rows, method) or any(map(gradient_vanished, found))


def warnings(rows: Sequence[Row], robustness: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Reasons to distrust the table, one sentence or two each, most serious first; empty if none of the rules applies.

    A model that says nearly the same of every image; a gradient that is exactly zero on more than half of the pixels;
    FGSM withstood but not PGD; scores squashed compared with those of the widest model; and signs of a masked
    gradient or an attack that did not converge: PGD weaker than FGSM, or a larger radius weaker than a smaller one
    (Carlini et al., On Evaluating Adversarial Robustness, 2019), wherever some of the ranking seems to survive; and the
    trust checks in `robustness` that a method does not pass.
    """
    rules = (_narrow, _vanished, _false_comfort, _weak_attack, _squashed)
    found = [text for rule in rules for method in methods(rows) for text in rule(rows, method)]
    return found + [
        f"{entry['method']} does not pass every check for masked gradients: {_join(suspicious(entry))}. Its attacked "
        "scores may hold because the attacks were misled, not because it is robust."
        for entry in robustness
        if suspicious(entry)
    ]


def _narrow(rows: Sequence[Row], method: str) -> list[str]:
    if not says_the_same(rows, method):
        return []
    spread = decimals(value(find(rows, method, CLEAN, "mos"), "score_std"), 2)
    return [
        f"{method} says nearly the same of every image: its scores have a standard deviation of {spread} on the "
        f"0..100 scale. Hardly moving under attack is no merit then."
    ]


def _vanished(rows: Sequence[Row], method: str) -> list[str]:
    blind = [row for row in _of(rows, method) if gradient_vanished(row)]
    if not blind:
        return []
    share = max(value(row, "zero_gradient_fraction") for row in blind)
    return [
        f"{method}: gradient vanished, robustness not established. Up to {100 * share:.0f} % of the pixels have a "
        f"gradient of exactly zero, so {_where([condition(row) for row in blind])} could not see where to push."
    ]


def _false_comfort(rows: Sequence[Row], method: str) -> list[str]:
    cases = [
        f"at {radius:g}/255 FGSM leaves SRCC {decimals(fgsm, 2)}, PGD {decimals(pgd, 2)}"
        for radius, fgsm, pgd in _both_attacks(rows, method)
        if fgsm >= NOTHING > pgd and fgsm - pgd > FALSE_COMFORT
    ]
    return [f"{method} holds against FGSM, falls to PGD: false comfort ({_join(cases)})."] if cases else []


def _weak_attack(rows: Sequence[Row], method: str) -> list[str]:
    signs = [
        f"PGD does less harm than FGSM at {radius:g}/255 (SRCC {decimals(pgd, 2)} against {decimals(fgsm, 2)})"
        for radius, fgsm, pgd in _both_attacks(rows, method)
        if pgd >= NOTHING and pgd - fgsm > NOISE
    ]
    for attack in dict.fromkeys(pair[0] for pair in conditions(_of(rows, method)) if pair != CLEAN):
        curve = [(row["radius"], value(row, "srcc")) for row in _curve(rows, method, attack)]
        for (small, before), (large, after) in zip(curve, curve[1:], strict=False):
            if after >= NOTHING and after - before > NOISE:
                signs.append(
                    f"{attack_name(attack)} does less harm at {large:g}/255 than at {small:g}/255 "
                    f"(SRCC {decimals(after, 2)} against {decimals(before, 2)})"
                )
    if not signs:
        return []
    return [f"{method}: {_join(signs)}. A stronger attack may find what this one missed."]


def _squashed(rows: Sequence[Row], method: str) -> list[str]:
    spreads = {name: value(find(rows, name, CLEAN, "mos"), "score_std") for name in methods(rows)}
    widest = max(spreads, key=lambda name: spreads[name] if math.isfinite(spreads[name]) else -1)
    own, most = spreads[method], spreads[widest]
    if not NARROW <= own < SQUASHED * most:
        return []
    return [
        f"{method} squashes its scores: their standard deviation is {decimals(own, 1)}, that of {widest} is "
        f"{decimals(most, 1)}. Part of what looks like small changes under attack is just that; trust SRCC over RMSE."
    ]


def verdict(rows: Sequence[Row]) -> str:
    """One paragraph: how far each model's ranking falls under the headline attack, and whether hardening paid."""
    names, pair = methods(rows), headline(conditions(rows))
    if not names:
        return "There are no results to report."
    clean = {name: value(find(rows, name, CLEAN, "mos"), "srcc") for name in names}
    if pair is None:
        listed = _join([f"{decimals(clean[name], 2)} for {name}" for name in names])
        return f"No attack was run. On the images as they are, SRCC against the labels (1: the same order) is {listed}."
    attacked = {name: find(rows, name, pair, "mos") for name in names}
    falls = [
        f"{name} {decimals(clean[name], 2)} → {decimals(value(attacked[name], 'srcc'), 2)}, "
        f"{_fate(clean[name], value(attacked[name], 'srcc'))}"
        + (" (see the warnings)" if doubtful(rows, name, pair) else "")
        for name in names
    ]
    trusted = [name for name in names if name == _baseline(names) or not doubtful(rows, name, pair)]
    return (
        f"How much of a model's ranking survives when an attacker may change every pixel by at most {pair[1]:g}/255? "
        f"In SRCC against the labels (1: the same order, 0: no relation, -1: the reverse), before → after "
        f"{attack_name(pair[0])}: {'; '.join(falls)}.{_comparison(trusted, clean, attacked)}"
    )


def trust_verdict(robustness: Sequence[Mapping[str, Any]]) -> str:
    """How many of the trust checks each method passed, and which it did not; '' where none were run."""
    parts = []
    for entry in robustness:
        run = [found for found in entry.get("checks", ()) if found["verdict"] != "not run"]
        doubts = suspicious(entry)
        if run and doubts:
            parts.append(f"{entry['method']} fails {len(doubts)} of {len(run)}: {_join(doubts)}")
        elif run:
            parts.append(f"{entry['method']} passes all {len(run)}")
    if not parts:
        return ""
    return f"Checks for masked gradients: {'; '.join(parts)}."


def suspicious(entry: Mapping[str, Any]) -> list[str]:
    """The trust checks that a method does not pass, as they read where it does: "an unbounded attack wins"."""
    return [f'"{found["name"]}"' for found in entry.get("checks", ()) if found["verdict"] == "suspicious"]


def _fate(clean: float, attacked: float) -> str:
    if not math.isfinite(attacked):
        return "which has no value"
    if clean < NOTHING:
        return "but there was no ranking to lose"
    if attacked < -NOTHING:
        return "turned upside down"
    if attacked < NOTHING:
        return "nothing left of it"
    if not math.isfinite(clean):
        return "with nothing to compare it to"
    kept = attacked / clean if clean > 0 else math.inf
    if kept >= 0.9:
        return "which holds"
    return "most of it survives" if kept >= 0.6 else "part of it survives" if kept >= 0.3 else "little of it survives"


def _baseline(names: list[str]) -> str:
    return "plain" if "plain" in names else names[0]


def _comparison(names: list[str], clean: dict[str, float], attacked: dict[str, Row | None]) -> str:
    """The best of the others next to the baseline: 'plain' if it is there, else the first method."""
    scored = [name for name in names if math.isfinite(value(attacked[name], "srcc"))]
    baseline = _baseline(names)
    others = [name for name in scored if name != baseline]
    if baseline not in scored or not others:
        return ""
    best = max(others, key=lambda name: value(attacked[name], "srcc"))
    gain = value(attacked[best], "srcc") - value(attacked[baseline], "srcc")
    if gain <= 0:
        return f" Nothing does better under this attack than {baseline}."
    price = clean[baseline] - clean[best]
    words = f" {best} ends {decimals(gain, 2)} above {baseline}"
    if price >= 0.005:
        words += f", at a price of {decimals(price, 2)} on untouched images"
    elif price <= -0.005:
        words += f", and {decimals(-price, 2)} better on untouched images too"
    elif math.isfinite(price):
        words += ", at no price on untouched images"
    low, high = value(attacked[best], "srcc_low"), value(attacked[baseline], "srcc_high")
    if math.isfinite(low) and math.isfinite(high):
        apart = "do not overlap" if low > high else "overlap, so the difference may be chance"
        words += f"; the 95 % intervals {apart}"
    return f"{words}."


def _of(rows: Sequence[Row], method: str) -> list[Row]:
    """A method's rows against MOS, in table order: each condition once."""
    pairs = conditions(rows)
    own = [row for row in rows if row["method"] == method and row["against"] == "mos"]
    return sorted(own, key=lambda row: pairs.index(condition(row)))


def _curve(rows: Sequence[Row], method: str, attack: str) -> list[Row]:
    return [row for row in _of(rows, method) if row["attack"] == attack and math.isfinite(value(row, "srcc"))]


def _both_attacks(rows: Sequence[Row], method: str) -> list[tuple[float, float, float]]:
    """(radius, SRCC under FGSM, SRCC under PGD) where both were run."""
    pgd = {condition(row)[1]: value(row, "srcc") for row in _curve(rows, method, "pgd")}
    fgsm = [(condition(row)[1], value(row, "srcc")) for row in _curve(rows, method, "fgsm")]
    return [(radius, srcc, pgd[radius]) for radius, srcc in fgsm if radius in pgd]


def _where(pairs: list[Condition]) -> str:
    """'FGSM at 1 and 2/255 and PGD at 2/255'."""
    attacks = dict.fromkeys(attack for attack, _ in pairs if attack != "none")
    parts = []
    for attack in attacks:
        radii = [f"{radius:g}" for name, radius in pairs if name == attack]
        parts.append(f"{attack_name(attack)} at {_join(radii)}/255")
    return _join(parts) or condition_name(CLEAN)


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
