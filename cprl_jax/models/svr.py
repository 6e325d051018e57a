"""Support vector regression of an image's features: read from libsvm's files, or fitted by scikit-learn.

Evaluated in JAX, so that gradients reach the image. Drucker et al., "Support Vector Regression Machines", NIPS 1996.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.io
import scipy.sparse
from jaxtyping import Array, Float
from scipy import stats

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path

GAMMA = 0.05  # of the kernel, in all published models of BRISQUE
COSTS = tuple(4.0**power for power in range(-3, 6))  # C, for labels of standard deviation near 1
GAMMAS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # for features scaled to -1..1
EPSILON = 0.1  # half the width of the tube without loss, in the same unit
FOLDS = 5  # of the scenes, whose mean SRCC C and gamma are chosen by
FEWEST = 3  # images in each


class Svr(NamedTuple):
    """A support vector regression with the kernel exp(-gamma |f - v|^2), as libsvm stores it, and its features' ranges.

    The ranges are those of the training set, `lowest` to `highest` of each feature, which are scaled to -1 and 1.
    """

    vectors: Float[Array, "vectors features"]
    coefficients: Float[Array, " vectors"]
    rho: Float[Array, ""]
    gamma: Float[Array, ""]
    lowest: Float[Array, " features"]
    highest: Float[Array, " features"]


def predict(svr: Svr, found: Float[Array, "batch features"]) -> Float[Array, " batch"]:
    """sum_i coefficient_i exp(-gamma |f - vector_i|^2) - rho, f being the features `found` scaled to the ranges."""
    scaled = scale(found, svr.lowest, svr.highest)
    difference = scaled[:, None, :] - svr.vectors[None, :, :]
    kernel = jnp.exp(-svr.gamma * jnp.sum(difference * difference, axis=-1))
    return jnp.sum(kernel * svr.coefficients.reshape(1, -1), axis=-1) - svr.rho


def scale(found: Array, lowest: Array, highest: Array) -> Array:
    """Features [batch, features], of which `lowest` and `highest` become -1 and 1."""
    return 2.0 * (found - lowest.reshape(1, -1)) / (highest - lowest).reshape(1, -1) - 1.0


class Labelled(NamedTuple):
    """Features of images, their labels in units near their standard deviation, and the scene that each shows."""

    features: Float[np.ndarray, "images features"]
    labels: Float[np.ndarray, " images"]
    scenes: np.ndarray


def fit_rbf(images: Labelled) -> tuple[Svr, dict[str, float]]:
    """The regression whose C and gamma have the highest SRCC in cross-validation, fitted to all images.

    No scene is in two of the `FOLDS`.

    Returns:
      it, and what was chosen: `cost` (C), `gamma`, and their `validation_srcc`, the mean over the folds.

    Raises:
      UserError: fewer scenes or images than the folds need.
    """
    (lowest, highest), chosen, vectors = _fit(images, _gaussian, GAMMAS)
    values = vectors, chosen.coefficients, chosen.rho, chosen.gamma, lowest, highest
    return Svr(*(np.asarray(value, np.float32) for value in values)), chosen.numbers()


class Line(NamedTuple):
    """A linear regression: f @ weights + offset, f being the features as they are."""

    weights: Float[Array, " features"]
    offset: Float[Array, ""]


def fit_linear(images: Labelled) -> tuple[Line, dict[str, float]]:
    """As `fit_rbf`, with a linear kernel, and the scaling of the features in the weights.

    A feature that is the same in all images has weight 0.
    """
    (lowest, highest), chosen, vectors = _fit(images, _linear, (1.0 / images.features.shape[1],))
    scaled = chosen.gamma * (chosen.coefficients @ vectors)  # weights of the scaled features
    weights = np.where(np.ptp(images.features, axis=0) == 0, 0.0, 2.0 * scaled / (highest - lowest))
    offset = -chosen.rho - np.sum(scaled) - weights @ lowest
    return Line(weights.astype(np.float32), np.float32(offset)), chosen.numbers()


class _Chosen(NamedTuple):
    rows: np.ndarray  # the support vectors
    coefficients: np.ndarray
    rho: float
    gamma: float
    cost: float
    srcc: float

    def numbers(self) -> dict[str, float]:
        return {"cost": self.cost, "gamma": self.gamma, "validation_srcc": self.srcc, "support_vectors": len(self.rows)}


def _gaussian(a: np.ndarray, b: np.ndarray, gamma: float) -> np.ndarray:
    squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None] - 2.0 * a @ b.T
    return np.exp(-gamma * np.maximum(squares, 0.0))


def _linear(a: np.ndarray, b: np.ndarray, gamma: float) -> np.ndarray:
    return gamma * (a @ b.T)


def check_enough(scenes: np.ndarray) -> None:
    """Raises UserError where there are too few scenes (one entry for each image) to choose parameters by."""
    count = len(np.unique(scenes))
    if count < FOLDS or len(scenes) < FEWEST * FOLDS:
        raise UserError(
            f"the parameters of the regression are chosen in {FOLDS} folds of the training and validation scenes, "
            f"of which there are {count} with {len(scenes)} images; give at least {FOLDS} with {FEWEST * FOLDS}"
        )


def _fit(images: Labelled, kernel: Callable, gammas: Sequence[float]):
    """((lowest, highest), the choice, its support vectors)."""
    from sklearn.model_selection import GroupKFold  # here: slow to import, and rarely needed
    from sklearn.svm import SVR

    check_enough(images.scenes)
    features, labels = images.features.astype(np.float64), images.labels.astype(np.float64)
    lowest, highest = features.min(axis=0), features.max(axis=0)
    highest = np.where(highest > lowest, highest, lowest + 1.0)
    features = 2.0 * (features - lowest) / (highest - lowest) - 1.0
    folds = list(GroupKFold(FOLDS).split(features, groups=images.scenes))

    def validation_srcc(gram, cost):
        found = []
        for train, validation in folds:
            fitted = SVR(kernel="precomputed", C=cost, epsilon=EPSILON).fit(gram[np.ix_(train, train)], labels[train])
            guesses = fitted.predict(gram[np.ix_(validation, train)])
            alike = np.ptp(guesses) == 0 or np.ptp(labels[validation]) == 0
            found.append(0.0 if alike else stats.spearmanr(guesses, labels[validation]).statistic)
        return float(np.mean(found))

    best = None
    for gamma in gammas:
        gram = kernel(features, features, gamma)
        for cost in COSTS:
            srcc = validation_srcc(gram, cost)
            if best is None or srcc > best[0]:
                best = srcc, gamma, cost
    srcc, gamma, cost = best
    fitted = SVR(kernel="precomputed", C=cost, epsilon=EPSILON).fit(kernel(features, features, gamma), labels)
    rho, rows = -float(fitted.intercept_[0]), fitted.support_
    return (lowest, highest), _Chosen(rows, fitted.dual_coef_[0], rho, gamma, cost, srcc), features[rows]


def load_svr(
    path: str | os.PathLike,
    *,
    ranges: str | os.PathLike | None = None,
    rho: float | None = None,
    gamma: float | None = None,
    features: int = 36,
) -> Svr:
    """Reads a regression that libsvm trained: from its own text files, or from a .mat or .npz file.

    Of a text, `path` is what svm-train wrote ('svm_type epsilon_svr ...'; LIVE's `allmodel`), `ranges` what svm-scale
    wrote ('x', '-1 1', ...; LIVE's `allrange`). Arrays have the names that libsvm's interfaces use: `SVs`
    [vectors, features] (sparse or not), `sv_coef` [vectors], `rho`, and optionally `gamma` (0.05 in all published
    models of BRISQUE), and `scale` [2, features], the lowest and highest of each feature, which may lie in a file of
    its own. For the files of Zhang et al.: `load_svr("svm_model.mat", ranges="scale.mat", rho=30.168717)`.

    Args:
      path: of the regression.
      ranges: of the file with the ranges; None if they are in the same file.
      rho, gamma: where the file does not have them, or instead of what it has.
      features: how many there are; BRISQUE's by default.

    Raises:
      UserError: no such file, another kind of file or of regression, a variable that is missing, not finite or of a
        wrong shape, or a range whose highest is not above its lowest.
    """
    file = _read(path, features)
    place = path if ranges is None else ranges
    bounds = _variable(place, file if ranges is None else _read(ranges, features), "scale")
    vectors, coefficients = _variable(path, file, "SVs"), _variable(path, file, "sv_coef").reshape(-1)
    if rho is None:
        rho = _number(path, file, "rho")
    if gamma is None:
        gamma = _number(path, file, "gamma") if "gamma" in file else GAMMA
    if vectors.shape != (len(coefficients), features):
        needed = (len(coefficients), features)
        raise UserError(f"{path}: SVs has shape {vectors.shape}; by the length of sv_coef it must be {needed}")
    if bounds.shape != (2, features):
        raise UserError(f"{place}: scale has shape {bounds.shape}; it must be (2, {features}), lowest and highest")
    if not (bounds[1] > bounds[0]).all():
        index = int(np.argmin(bounds[1] - bounds[0]))
        raise UserError(
            f"{place}: scale goes from {bounds[0, index]} to {bounds[1, index]} for feature {index} (from 0); the "
            "second row must be above the first"
        )
    values = (vectors, coefficients, rho, gamma, *bounds)
    return Svr(*(jnp.asarray(value, jnp.float32) for value in values))


def _read(path: str | os.PathLike, features: int) -> dict[str, Any]:
    path = user_path(path, field="the file of a regression")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in (".mat", ".npz"):
        return _read_text(path, features)
    try:
        if path.suffix == ".mat":
            return scipy.io.loadmat(path)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # zipfile, zlib, NumPy and SciPy each have their own
        raise UserError(
            f"{path}: not a {path.suffix} file of plain arrays ({type(error).__name__}: {error})"
        ) from error


def _read_text(path, features: int) -> dict[str, Any]:
    """What svm-train or svm-scale wrote, by the names of the interfaces' arrays."""
    lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    first = lines[0][0] if lines else ""
    if first not in ("svm_type", "x"):
        raise UserError(
            f"{path}: unknown kind of file; allowed: .mat, .npz, and libsvm's texts, a model, which begins with "
            "'svm_type', or ranges, which begin with 'x'"
        )
    try:
        return (_model if first == "svm_type" else _ranges)(lines, features)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: no text of libsvm for {features} features ({error})") from None


def _model(lines: Sequence[Sequence[str]], features: int) -> dict[str, Any]:
    end = lines.index(["SV"])
    header = {line[0]: line[1] for line in lines[:end]}
    if header["svm_type"] not in ("epsilon_svr", "nu_svr") or header["kernel_type"] != "rbf":
        raise ValueError(
            f"it is {header['svm_type']} with the kernel {header['kernel_type']}; allowed: epsilon_svr or nu_svr, rbf"
        )
    vectors = np.zeros((len(lines) - end - 1, features))
    for row, (_, *entries) in zip(vectors, lines[end + 1 :], strict=True):
        for entry in entries:
            index, value = entry.split(":")
            row[_place(index, features)] = float(value)
    coefficients = np.array([float(line[0]) for line in lines[end + 1 :]])
    return {"SVs": vectors, "sv_coef": coefficients, "rho": float(header["rho"]), "gamma": float(header["gamma"])}


def _ranges(lines: Sequence[Sequence[str]], features: int) -> dict[str, Any]:
    if [float(value) for value in lines[1]] != [-1.0, 1.0]:
        raise ValueError(f"it scales to {' to '.join(lines[1])}; allowed: -1 to 1")
    bounds = np.zeros((2, features))  # one that is missing, having been constant, is refused by its range
    for index, lowest, highest in lines[2:]:
        bounds[:, _place(index, features)] = float(lowest), float(highest)
    return {"scale": bounds}


def _place(index: str, features: int) -> int:
    if not 1 <= int(index) <= features:
        raise ValueError(f"there is a feature {index}")
    return int(index) - 1


def _variable(path: str | os.PathLike, file: dict[str, Any], name: str) -> np.ndarray:
    if name not in file:
        present = ", ".join(sorted(key for key in file if not key.startswith("__")))
        hint = {"scale": "; give the file that has it as ranges=", "rho": "; give it as rho="}.get(name, "")
        raise UserError(f"{path}: no variable {name!r} in it, but {present}{hint}")
    value = file[name].toarray() if scipy.sparse.issparse(file[name]) else np.asarray(file[name])
    if not np.issubdtype(value.dtype, np.number) or not np.isfinite(value).all():
        raise UserError(f"{path}: {name} must hold finite numbers")
    return value.astype(np.float64)


def _number(path: str | os.PathLike, file: dict[str, Any], name: str) -> float:
    value = _variable(path, file, name)
    if value.size != 1:
        raise UserError(f"{path}: {name} has shape {value.shape}; it must be one number")
    return float(value.reshape(()))
