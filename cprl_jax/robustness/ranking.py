"""How far can a ranking fall when every score may move inside its reachable interval?

An attack on single images says how far each score can be moved. A ranking is attacked on the whole set: some images go
up, others down, and the middle ones go wherever that hurts most.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy import stats

_EXACT = 8  # images up to which all rankings are searched
_WORTH_A_ROUND = 1e-4  # of SRCC, of the search among more


class LowestSRCC(NamedTuple):
    """`bound` <= the lowest SRCC that there is <= `achieved`; both in [-1, 1], NaN where the scores cannot differ.

    Attributes:
      achieved: SRCC of `scores` with the labels, found by search: the truth up to 8 images.
      bound: no scores in the intervals have a lower one.
      scores: one for each image, inside its interval.
    """

    achieved: float
    bound: float
    scores: Float[np.ndarray, " images"]


def lowest_srcc(
    lower: Float[np.ndarray, " images"], upper: Float[np.ndarray, " images"], mos: Float[np.ndarray, " images"]
) -> LowestSRCC:
    """The lowest Spearman correlation with the labels that scores can have, each anywhere in [lower, upper].

    Ties count as in `scipy.stats.spearmanr`: they share their mean rank. With q the ranks of the labels, r those of the
    scores, both less their mean, n images and N = (n^3 - n) / 12,

        SRCC = C / sqrt(V Q),   C = sum_i r_i q_i = 1/2 sum_{i<j} sign(s_i - s_j) (q_i - q_j),   V = |r|^2,   Q = |q|^2,

    since a score's rank counts the scores below it, and ties half. V = N - D, where D sums (k^3 - k) / 12 over the
    groups of k equal scores.

    **The bound** takes the worst sign that each pair of intervals allows: C >= C0. (1) V lies between the values with
    no ties but those of equal points, and with each image tied with as many as any point of its interval lies in; so
    SRCC is at least C0 / sqrt(V Q), with the larger V where C0 >= 0, else with the smaller one. (2) With the worse sign
    also for pairs that can at best tie: C >= C1. Ties within a group give up at least what they take from V, beyond E,
    the same sum over equal scores of equal labels: as labels that differ do so in rank by at least half of the number
    of images that have either, C >= C1 + (D - E). Since |C1| <= Q <= N - E, (C1 + D - E) / sqrt(N - D) grows with
    D - E, so SRCC is at least C1 / sqrt((N - E) Q) with the largest possible E, where C1 < 0. `bound` is the larger.

    **The search** keeps an order of the images and puts one after the other to its best place in it, until a round
    gains less than 0.0001; then it ties neighbours in the order where that lowers the correlation. Up to 8 images it is
    exhaustive. 10,000 images take seconds (`python benchmarks/ranking.py`).

    Args:
      lower, upper: ends of the intervals, such as scores under attacks downwards and upwards.
      mos: labels, on any scale.

    Raises:
      ValueError: naming the argument: not one finite number per image, fewer than two images, lower above upper,
        labels that are all the same.
    """
    lower, upper, mos = _checked(lower, upper, mos)
    q = _ranks(mos)
    blocks = _exact(lower, upper, q) if len(q) <= _EXACT else _search(lower, upper, q)
    scores = _inside(blocks, lower, upper)
    achieved = _correlation(_ranks(scores), q)
    # Rounding alone can bring the bound above what was achieved.
    return LowestSRCC(achieved, min(_bound(lower, upper, q), achieved), scores)


def certified_srcc(
    lower: Float[np.ndarray, " images"], upper: Float[np.ndarray, " images"], mos: Float[np.ndarray, " images"]
) -> float:
    """The Spearman correlation with the labels that no scores inside certified intervals undercut.

    It is the bound of `lowest_srcc`: what no attack can break where none can leave the intervals. Intervals that hold
    with a probability each, as those of `certify.Smoothed`, must hold for all images at once: `together=True`.

    Args:
      lower, upper: certified ends; -inf and inf where nothing is certified, which means anywhere.
      mos: labels, on any scale.

    Returns:
      in [-1, 1]; NaN where all scores are certainly equal.

    Raises:
      ValueError: as `lowest_srcc`; infinite ends are allowed on their side alone.
    """
    lower, upper = (np.array(ends, np.float64) for ends in (lower, upper))
    # An end beyond all finite ones allows the same orders as an infinite one.
    finite = [ends[np.isfinite(ends)] for ends in (lower, upper)]
    least, most = np.min(np.append(*finite), initial=0), np.max(np.append(*finite), initial=0)
    lower[np.isneginf(lower)], upper[np.isposinf(upper)] = least - 1 - abs(least), most + 1 + abs(most)
    lower, upper, mos = _checked(lower, upper, mos)
    return _bound(lower, upper, _ranks(mos))


def _checked(lower, upper, mos) -> list[np.ndarray]:
    arrays = {"lower": lower, "upper": upper, "mos": mos}
    arrays = {name: np.asarray(values, np.float64) for name, values in arrays.items()}
    for name, values in arrays.items():
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"{name} must be one number for each of two images or more, got shape {values.shape}.")
    for name, values in arrays.items():
        if len(values) != len(arrays["mos"]):
            raise ValueError(f"{name} has {len(values)} numbers for {len(arrays['mos'])} labels in mos.")
        if missing := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(
                f"{name} must be finite: {missing} of {len(values)} numbers are not; leave those images out."
            )
    if wrong := np.count_nonzero(arrays["lower"] > arrays["upper"]):
        raise ValueError(f"lower must not be above upper: it is for {wrong} of {len(arrays['lower'])} images.")
    if np.ptp(arrays["mos"]) == 0:
        raise ValueError("mos must not be the same for all images: there is no ranking to lower.")
    return list(arrays.values())


def _ranks(values: Float[np.ndarray, " images"]) -> Float[np.ndarray, " images"]:
    """Mean ranks less their mean: whole numbers and halves, so that sums of their products are exact."""
    return stats.rankdata(values) - (len(values) + 1) / 2


def _correlation(r: Float[np.ndarray, " images"], q: Float[np.ndarray, " images"]) -> float:
    """Of centred ranks; NaN where one side is constant."""
    squares = (r @ r) * (q @ q)
    return float(np.clip(r @ q / np.sqrt(squares), -1, 1)) if squares else np.nan


# -------------------------------------------------------------------------------------------------------------- bound


def _bound(lower, upper, q) -> float:
    fixed = lower == upper
    _, points, equal = np.unique(lower[fixed], return_inverse=True, return_counts=True)
    most_spread, least_spread = _spread(len(q), equal[points]), _spread(len(q), _deepest(lower, upper))
    if most_spread == 0:
        return np.nan
    same_label = np.concatenate([_deepest(lower[q == level], upper[q == level]) for level in np.unique(q)])
    labels = q @ q
    apart, touching = _forced(lower, upper, q)
    worst, worst_tied = apart - labels, apart + touching - labels  # C1 and C0: all pairs at their worst are -Q
    bounds = [-1.0]
    if worst_tied >= 0:
        bounds.append(worst_tied / np.sqrt(most_spread * labels))
    elif least_spread > 0:
        bounds.append(worst_tied / np.sqrt(least_spread * labels))
    if worst < 0:
        bounds.append(worst / np.sqrt(_spread(len(q), same_label) * labels))
    return float(min(max(bounds), 1))


def _spread(count: int, ties: Int64[np.ndarray, " images"]) -> float:
    """V, or what is below it, where each image is in a group of so many equal scores; those in none may be left out."""
    return (count**3 - count - int((ties**2 - 1).sum())) / 12


def _deepest(lower, upper) -> Int64[np.ndarray, " images"]:
    """For each interval, the largest number of intervals, it among them, that some point of it lies in."""
    starts = np.sort(lower)  # at some start, the number is at its largest
    depth = np.searchsorted(starts, starts, "right") - np.searchsorted(np.sort(upper), starts, "left")
    first, last = np.searchsorted(starts, lower, "left"), np.searchsorted(starts, upper, "right")
    level = np.frexp(last - first)[1] - 1  # two windows of 2**level starts cover each interval
    deepest, windows = np.empty(len(lower), int), depth
    for size in range(level.max() + 1):
        here = level == size
        deepest[here] = np.maximum(windows[first[here]], windows[last[here] - 2**size])
        windows = np.maximum(windows[: -(2**size)], windows[2**size :])
    return deepest


def _forced(lower, upper, q) -> tuple[float, float]:
    """Sums of q_i - q_j over pairs with q_i > q_j whose scores are in that order: always, and (half of it) or tied."""
    order = np.argsort(q, kind="stable")
    return _forced_sorted(lower[order], upper[order], q[order])


def _forced_sorted(lower, upper, q) -> tuple[float, float]:
    if len(q) <= 64:
        differences = np.maximum(q[:, np.newaxis] - q, 0)
        above, level = lower[:, np.newaxis] > upper, lower[:, np.newaxis] == upper
        return differences[above].sum(), differences[level].sum() / 2
    half = len(q) // 2
    parts = [_forced_sorted(lower[part], upper[part], q[part]) for part in (slice(half), slice(half, None))]
    order = np.argsort(upper[:half])
    sums = np.concatenate([[0], np.cumsum(q[:half][order])])
    totals = []
    for side in ("left", "right"):  # labels of the upper half less those of the lower one that end below, or at, it
        below = np.searchsorted(upper[:half][order], lower[half:], side)
        totals.append(q[half:] @ below - sums[below].sum())
    return parts[0][0] + parts[1][0] + totals[0], parts[0][1] + parts[1][1] + (totals[1] - totals[0]) / 2


# ------------------------------------------------------------------------------------------------------------- search

Blocks = list[Int64[np.ndarray, " images"]]
"""Images in the order of their scores, equal ones together: max(lower) <= min(upper) inside a block, and lower < upper
for an image and one of a later block. Exactly then there are such scores: see `_inside`."""


def _inside(blocks: Blocks, lower, upper) -> Float[np.ndarray, " images"]:
    """Scores in this order, inside the intervals."""
    least = np.maximum.accumulate([lower[block].max() for block in blocks])
    most = np.minimum.accumulate([upper[block].min() for block in blocks][::-1])[::-1]
    # From the least to the most that a score can be: both grow, and where they meet no other block can be.
    levels = least + np.arange(1, len(blocks) + 1) / (len(blocks) + 1) * (most - least)
    scores = np.empty(len(lower))
    for block, level in zip(blocks, levels, strict=True):
        scores[block] = level
    return np.clip(scores, lower, upper)


def _exact(lower, upper, q) -> Blocks:
    """The best of all rankings, ties included, built up from the lowest score.

    C and V are sums over the blocks of terms that depend on the images below and in a block alone. So for each set of
    images at the bottom, and each D of theirs, the lowest C of theirs is all that counts.
    """
    count = len(q)
    sets = np.arange(2**count)
    members = (sets[:, np.newaxis] >> np.arange(count)) % 2 == 1
    sizes, labels = members.sum(axis=1), (members @ q).tolist()
    highest = np.where(members, lower, -np.inf).max(axis=1).tolist()
    lowest = np.where(members, upper, np.inf).min(axis=1).tolist()
    sizes, everything = sizes.tolist(), 2**count - 1
    tied = [one for one in range(1, 2**count) if highest[one] <= lowest[one]]
    best: list[dict[int, tuple[float, tuple[int, ...]]]] = [{} for _ in sets]
    best[0][0] = (0.0, ())
    for below in range(everything):
        for block in tied if best[below] else ():
            if block & below or highest[below] >= lowest[block]:
                continue
            size, union = sizes[block], best[below | block]
            gain = labels[block] * (sizes[below] + size / 2)
            for missing, (product, blocks) in best[below].items():
                key = missing + size**3 - size
                if key not in union or product + gain < union[key][0]:
                    union[key] = (product + gain, (*blocks, block))
    ranked = {
        product / np.sqrt(count**3 - count - missing): blocks
        for missing, (product, blocks) in best[everything].items()
        if missing < count**3 - count
    }
    chosen = ranked[min(ranked)] if ranked else (everything,)
    return [np.flatnonzero(members[block]) for block in chosen]


def _search(lower, upper, q) -> Blocks:
    """A good ranking: an order improved image by image from the best of some starts, then with ties."""
    # Equal points are tied in every ranking: one item, with the number and the sum of the labels of its images.
    fixed, item = lower == upper, np.empty(len(q), int)
    points, item[fixed] = np.unique(lower[fixed], return_inverse=True)
    item[~fixed] = len(points) + np.arange(np.count_nonzero(~fixed))
    _, first = np.unique(item, return_index=True)
    order = _Order(lower[first], upper[first], np.bincount(item), np.bincount(item, q))
    order.improve()
    by_item = np.split(np.argsort(item, kind="stable"), np.cumsum(np.bincount(item))[:-1])
    return [np.concatenate([by_item[one] for one in block]) for block in order.with_ties()]


class _Order:
    """Items in an order that their intervals allow, one score for each; what it lowers is C.

    Args:
      lower, upper: intervals.
      sizes, labels: of an item, the number of its images and the sum of their centred label ranks.
    """

    def __init__(self, lower, upper, sizes, labels):
        self._sizes, self._labels, self._lower, self._upper = sizes.astype(float), labels, lower, upper
        # Whole numbers in place of the ends: item i has to come after j where upper_j < lower_i. At equal values, ends
        # of intervals come before points, and those before beginnings.
        _, values = np.unique([lower, upper], return_inverse=True)
        low, high = 4 * values.reshape(2, -1)
        point = low == high
        self._low, self._high = np.where(point, low + 1, low + 3), np.where(point, high + 2, high)
        share = stats.rankdata(labels / sizes) / len(labels)
        starts = [share, *(share > part for part in (0.25, 0.5, 0.75))]
        scores = [np.clip(upper - start * (upper - lower), lower, upper) for start in starts]
        orders = [np.lexsort((self._low, each)) for each in scores]
        self._set(min(orders, key=self.product))

    def product(self, order) -> float:
        """C."""
        sizes = self._sizes[order]
        return self._labels[order] @ (np.cumsum(sizes) - sizes / 2)

    def _set(self, order) -> None:
        count = len(order)
        self.order, self._place = order.copy(), np.empty(count, int)
        self._sums = np.zeros((2, count + 1))  # of sizes and labels, before each place
        self._highest_below = np.full(count + 1, -1)  # the largest beginning before each place
        self._lowest_above = np.full(count + 1, np.iinfo(int).max)  # the smallest end from each place on
        self._update(0, count)

    def _update(self, start: int, end: int) -> None:
        """What follows from a new order of the places [start, end)."""
        items = self.order[start:end]
        self._place[items] = np.arange(start, end)
        for sums, values in zip(self._sums, (self._sizes, self._labels), strict=True):
            np.cumsum(values[items], out=sums[start + 1 : end + 1])
            sums[start + 1 : end + 1] += sums[start]
        highest, lowest = self._highest_below[start : end + 1], self._lowest_above[start : end + 1]
        highest[1:] = self._low[items]
        np.maximum.accumulate(highest, out=highest)
        lowest[:-1] = self._high[items]
        np.minimum.accumulate(lowest[::-1], out=lowest[::-1])

    def improve(self) -> None:
        """Puts one item after the other to where C is lowest, the others as they are, until that hardly helps."""
        extreme_first = np.argsort(-np.abs(self._labels / self._sizes), kind="stable").tolist()
        product, before = self.product(self.order), np.inf
        while before - product > _WORTH_A_ROUND * self._sums[0, -1] ** 3 / 12:
            for item in extreme_first:
                self._move(item)
            product, before = self.product(self.order), product

    def _move(self, item: int) -> None:
        place, size, label = self._place[item], self._sizes[item], self._labels[item]
        # Allowed: behind all that have to come before it, before all that have to come behind.
        first = self._lowest_above.searchsorted(self._low[item], "right")
        last = self._highest_below.searchsorted(self._high[item], "left")
        # Passing others, it gains their number of ranks, and each of them loses its own.
        costs = label * self._sums[0, first:last] - size * self._sums[1, first:last]
        here = place - first
        costs[here + 1 :] -= costs[here + 1] - costs[here]
        best = int(costs.argmin())
        if not costs[best] < costs[here] - 1e-9 * len(self.order):
            return
        if best < here:
            start, end = first + best, place + 1
            self.order[start + 1 : end] = self.order[start : end - 1]
            self.order[start] = item
        else:
            start, end = place, first + best
            self.order[start : end - 1] = self.order[start + 1 : end]
            self.order[end - 1] = item
        self._update(start, end)

    def with_ties(self) -> Blocks:
        """The items as groups of neighbours in the order, those joined whose equal scores lower C / sqrt(V)."""
        sizes, labels = self._sums
        edges = chosen = np.arange(len(self.order) + 1)
        lowest = np.inf
        while True:
            ties = np.diff(sizes[edges])
            product = np.diff(labels[edges]) @ (sizes[edges[:-1]] + ties / 2)
            spread = (sizes[-1] ** 3 - (ties**3).sum()) / 12
            if not spread or not product / np.sqrt(spread) < lowest:
                return np.split(self.order, chosen[1:-1])
            chosen, lowest = edges, product / np.sqrt(spread)
            edges = self._joined(product / (2 * spread))

    def _joined(self, weight: float) -> Int64[np.ndarray, " edges"]:
        """Where the groups begin and end that have the lowest C - weight V.

        Near some C and V, C / sqrt(V) changes as this does with weight C / (2 V). Each group adds to it by itself, so
        that the best groups up to a place follow from those up to the places before it.
        """
        sizes, labels = self._sums
        lower, upper = self._lower[self.order], self._upper[self.order]
        costs, starts, first = np.zeros(len(sizes)), np.zeros(len(sizes), int), 0
        for end in range(1, len(sizes)):
            apart = np.flatnonzero(upper[first : end - 1] < lower[end - 1])
            first += apart[-1] + 1 if apart.size else 0
            before = slice(first, end)
            of_group = (labels[end] - labels[before]) * (sizes[end] + sizes[before]) / 2
            options = costs[before] + of_group + weight / 12 * (sizes[end] - sizes[before]) ** 3
            starts[end] = first + options.argmin()
            costs[end] = options.min()
        edges = [len(sizes) - 1]
        while edges[-1]:
            edges.append(starts[edges[-1]])
        return np.array(edges[::-1])
