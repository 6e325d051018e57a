"""What a trust check says, and how large a difference between attacks has to be before it says so."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cprl_jax.attacks.ensemble import SETTLED, has_converged

PASSED, SUSPICIOUS, NOT_RUN = "passed", "suspicious", "not run"
SMALLEST = "smallest effect seen"
"""The key in a check's `numbers` of the smallest mean difference, in score points, that would have counted."""

# A difference between two attacks counts when its mean over the images exceeds both of these.
MARGIN = 0.05  # share of the strength of the attack that ought to be the stronger one
STANDARD_ERRORS = 2.0  # how many standard errors of the mean paired difference

VANISHED = 0.5  # mean share of values without gradient from which gradients count as missing
NOISY = 0.5  # share of the gradient's promise, and of the white box's strength, that noise must not exceed
AGREEING = 0.5  # share of its promise that a gradient must keep along the gradient of a neighbour
TINY = 1e-3  # share of the range of the scores below which a gradient's promise is tiny
END = 0.01  # how much of the range of the scores belongs to each of its ends
MOST = 0.5  # share of the images with a tiny gradient, or at the ends, from which the head counts as saturated


class Check(NamedTuple):
    """One check.

    Attributes:
      name: what must hold, one of `trust.NAMES`.
      verdict: "passed", "suspicious" or "not run".
      numbers: what it is judged by: shares, numbers of images and, in score points, mean strengths of attacks by their
        names. Of a comparison, `SMALLEST` as well.
      explanation: a sentence for a reader who knows what an attack is.
    """

    name: str
    verdict: str
    numbers: dict[str, float]
    explanation: str


class Judge:
    """Compares what attacks achieve on images with these clean scores; all numbers are in score points, per image."""

    def __init__(self, clean: Float[np.ndarray, " batch"]):
        self.clean = clean
        # What counts as no strength at all: far below what matters, far above float32's rounding.
        self.floor = 1e-3 * max(float(clean.std()), 1e-3 * float(np.abs(clean).max()))

    def smallest(self, first: np.ndarray, second: np.ndarray) -> float:
        """How much stronger the first attack, which should not be, has to be on average before it counts."""
        return max(MARGIN * abs(float(second.mean())), self.floor, STANDARD_ERRORS * _standard_error(first - second))

    def stronger(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether the first attack, which should not be the stronger one, noticeably is."""
        return bool((first - second).mean() > self.smallest(first, second))

    def grows(self, name: str, gains: dict[str, np.ndarray], *, must_move: bool = True) -> Check:
        """Suspicious if one attack is noticeably stronger than the next, or the last one achieves nothing."""
        numbers = _means(gains)
        if not np.isfinite(list(numbers.values())).all():
            return Check(name, SUSPICIOUS, numbers, "Attacked images have scores that are not finite numbers.")
        pairs = list(itertools.pairwise(gains))
        smallest = max(self.smallest(gains[a], gains[b]) for a, b in pairs)
        listed = f"{_listed(numbers)} points; a difference counts from {smallest:.2g} points on"
        numbers[SMALLEST] = smallest
        if broken := [f"{a} moves scores farther than {b}" for a, b in pairs if self.stronger(gains[a], gains[b])]:
            return Check(name, SUSPICIOUS, numbers, f"{' and '.join(broken)}, although it should not ({listed}).")
        if must_move and gains[pairs[-1][1]].mean() <= self.floor:
            return Check(name, SUSPICIOUS, numbers, f"None of these attacks moves any score ({listed}).")
        return Check(name, PASSED, numbers, f"{listed}.")

    def reaches(self, name: str, gains: dict[float, np.ndarray], reach: np.ndarray) -> Check:
        """Suspicious if the strength stops growing with the radius while the floor is still ahead.

        Args:
          gains: by the radius in 1/255, from the smallest on.
          reach: how far the scores are from the floor, the best score for the attacker among the other images.
        """
        numbers = _means({f"PGD at {radius:g}/255": gain for radius, gain in gains.items()})
        listed, floor = _listed(numbers), float(reach.mean())
        error, stalled = 0.0, ""
        for smaller, larger in itertools.pairwise(gains):
            if stalled or gains[smaller].mean() >= floor:
                break
            growth = gains[larger] - gains[smaller]
            error = max(error, STANDARD_ERRORS * _standard_error(growth))
            # The strength of a linear score would grow as the radius does.
            expected = max(MARGIN * (larger / smaller - 1) * float(gains[smaller].mean()), self.floor)
            if not growth.mean() + STANDARD_ERRORS * _standard_error(growth) >= expected:
                stalled = f"From {smaller:g}/255 to {larger:g}/255 the strength does not grow"
        numbers |= {"floor": floor, SMALLEST: error}
        listed = f"{listed} points; the floor, the best among the other images' scores, is {floor:.3g} points away"
        if stalled:
            text = f"{stalled}, although scores are not at their floor ({listed}; known to within {error:.2g} points)."
            return Check(name, SUSPICIOUS, numbers, text)
        reached = any(gain.mean() >= floor for gain in gains.values())
        end = "and is reached" if reached else "and lies beyond these radii"
        return Check(name, PASSED, numbers, f"{listed} {end}; growth is known to within {error:.2g} points.")

    def converged(self, name: str, white_box: np.ndarray, doubled: np.ndarray) -> Check:
        """Suspicious if as many iterations again raise the strength by more than 1 %, or there is none."""
        numbers = _means({"white box": white_box, "iterations doubled": doubled})
        listed = f"{_listed(numbers)} points"
        numbers[SMALLEST] = SETTLED * max(numbers["white box"], 0.0)
        if bool(has_converged(np.zeros_like(white_box), white_box, doubled)):
            text = f"{listed}; a rise counts from 1 %, {numbers[SMALLEST]:.2g} points, on."
            return Check(name, PASSED, numbers, text)
        if not numbers["white box"] > self.floor:
            return Check(name, SUSPICIOUS, numbers, f"No attack along gradients moves any score ({listed}).")
        text = f"Twice the iterations move scores farther by 1 % or more ({listed}): the worst case is not known yet."
        return Check(name, SUSPICIOUS, numbers, text)

    def quiet(self, name: str, noise: np.ndarray, white_box: np.ndarray, promise: np.ndarray) -> Check:
        """Suspicious if noise moves the scores as an attack should, or as no noise can along that gradient.

        Args:
          noise: mean absolute change of the score under noise inside the radius.
          promise: what the gradient at the image promises to an attacker, the radius times its l1 norm: the change of a
            score that were linear inside the radius.
        """
        numbers = _means({"noise": noise, "white box": white_box, "gradient's promise": promise})
        listed = f"{_listed(numbers)} points"
        limits = [NOISY * other for other in (white_box, promise)]
        numbers[SMALLEST] = min(float(limit.mean()) + self.smallest(noise, limit) for limit in limits)
        listed += f"; noise counts from {numbers[SMALLEST]:.2g} points on"
        if not np.isfinite(list(numbers.values())).all() or any(self.stronger(noise, limit) for limit in limits):
            text = (
                "Noise inside the radius moves scores more than half as far as the attacks do, or as the gradient says "
                f"that anything could ({listed}): scores jump, and gradients do not tell where."
            )
            return Check(name, SUSPICIOUS, numbers, text)
        return Check(name, PASSED, numbers, f"{listed}.")

    def deterministic(self, name: str, again: np.ndarray, elsewhere: np.ndarray) -> Check:
        """Suspicious if scores of the same images differ.

        Args:
          again, elsewhere: absolute differences of the scores in the same batch, and in other ones.
        """
        numbers = {"same batch": float(again.max()), "another batch": float(elsewhere.max()), SMALLEST: self.floor}
        text = (
            f"Scored again, an image's score differs by up to {numbers['same batch']:.2g} points, and in another batch "
            f"by up to {numbers['another batch']:.2g}; a difference counts from {self.floor:.2g} points on."
        )
        if not np.maximum(numbers["same batch"], numbers["another batch"]) <= self.floor:  # also what is no number
            text += " Attacks follow the noise of one draw: average the score over draws (attacks.adaptive)."
            return Check(name, SUSPICIOUS, numbers, text)
        return Check(name, PASSED, numbers, text)

    def spread(self, name: str, promise: np.ndarray) -> Check:
        """Suspicious if gradients are tiny next to the range of the scores, or most scores are at the ends of it."""
        if self.clean.size < 2:
            return Check(name, NOT_RUN, {}, "One image has no range of scores.")
        width = float(np.ptp(self.clean))
        tiny = promise <= TINY * width
        inner = np.sort(self.clean)[1:-1]  # two scores are the ends of any range
        at_ends = (inner - self.clean.min() <= END * width) | (self.clean.max() - inner <= END * width)
        piled = np.count_nonzero(at_ends) >= max(2, MOST * inner.size)
        numbers = {
            "gradient's promise": float(promise.mean()),
            "range of scores": width,
            "share with a tiny gradient": float(tiny.mean()),
            "other scores at the ends": int(np.count_nonzero(at_ends)),
        }
        text = (
            f"Scores range over {width:.3g} points, of which gradients promise {promise.mean():.2g} inside the radius; "
            f"{np.count_nonzero(tiny)} of {promise.size} images have a tiny gradient (a promise of less than "
            f"{100 * TINY:g} % of the range), and {np.count_nonzero(at_ends)} of {inner.size} scores lie at its ends, "
            f"the {100 * END:g} % next to the lowest and the highest."
        )
        if tiny.mean() >= MOST or piled or not np.isfinite(width):
            return Check(name, SUSPICIOUS, numbers, f"{text} So it is behind a saturated head.")
        return Check(name, PASSED, numbers, text)


def gradients_exist(name: str, fractions: Float[np.ndarray, " batch"]) -> Check:
    """Suspicious if most values have no gradient, or an image has none at all; `fractions` are shares without one."""
    blind = int(np.count_nonzero(fractions == 1))
    numbers = {"mean share": float(fractions.mean()), "largest share": float(fractions.max()), "blind images": blind}
    share = f"{100 * fractions.mean():.3g} %"
    text = f"{share} of the values have no gradient; {blind} of {fractions.size} images have none at all"
    if fractions.mean() > VANISHED or blind:
        return Check(name, SUSPICIOUS, numbers, f"{text}. Attacks are blind there.")
    return Check(name, PASSED, numbers, f"{text}.")


def neighbours_agree(name: str, kept: Float[np.ndarray, " batch"], distance: float) -> Check:
    """Suspicious if a gradient means nothing a little farther on.

    Args:
      kept: share of its promise that the gradient of each image keeps along the signs of a neighbour's gradient: 1 if
        they agree, about 0 if they have nothing in common.
      distance: largest change of a value between the neighbours, in 1/255.
    """
    numbers = {"mean agreement": float(kept.mean()), "lowest agreement": float(kept.min())}
    text = (
        f"Along the gradient of a neighbour {distance:.2g}/255 away, a gradient keeps {100 * kept.mean():.3g} % of its "
        f"promise on average, and {100 * kept.min():.3g} % at least"
    )
    if not kept.mean() >= AGREEING:
        return Check(name, SUSPICIOUS, numbers, f"{text}. It leads nowhere beyond that.")
    return Check(name, PASSED, numbers, f"{text}.")


def _standard_error(differences: np.ndarray) -> float:
    return float(differences.std(ddof=1) / np.sqrt(differences.size)) if differences.size > 1 else 0.0


def _means(gains: dict[str, np.ndarray]) -> dict[str, float]:
    return {label: float(gain.mean()) for label, gain in gains.items()}


def _listed(numbers: dict[str, float]) -> str:
    return ", ".join(f"{label} {mean:.3g}" for label, mean in numbers.items())
