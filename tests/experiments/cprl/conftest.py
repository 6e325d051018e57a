"""Made-up results for the tests of findings, tables, figures and the report."""

from types import SimpleNamespace

import numpy as np
import pytest

from cprl_jax.experiments.cprl.results import Results


def row(method="plain", attack="none", radius=0.0, against="mos", srcc=0.8, **others):
    """One row of a table with believable numbers."""
    values = {"method": method, "attack": attack, "radius": radius, "against": against}
    values |= {"srcc": srcc, "plcc": srcc - 0.01, "rmse": 10 + 20 * (1 - srcc)}
    values |= {"srcc_low": srcc - 0.1, "srcc_high": srcc + 0.1, "ssim": 0.99, "max_change": radius}
    values |= {"zero_gradient_fraction": 0.0, "score_std": 20.0, "images": 40}
    return values | others


def rows(srcc):
    """Rows of both comparisons from {method: {(attack, radius): SRCC}}."""
    return [
        row(method, attack, radius, against, value)
        for method, conditions in srcc.items()
        for (attack, radius), value in conditions.items()
        for against in ("mos", "prediction")
    ]


COLLAPSE = {
    "plain": {("none", 0): 0.86, ("fgsm", 1.0): -0.2, ("fgsm", 2.0): -0.4, ("pgd", 1.0): -0.31, ("pgd", 2.0): -0.52},
    "cprl": {("none", 0): 0.84, ("fgsm", 1.0): 0.7, ("fgsm", 2.0): 0.6, ("pgd", 1.0): 0.65, ("pgd", 2.0): 0.52},
}


def scores(methods=("plain", "cprl"), conditions=(("none", 0.0), ("fgsm", 2.0), ("pgd", 2.0)), images=12):
    random = np.random.default_rng(0)
    mos, found = random.uniform(5, 95, images), []
    for method in methods:
        clean = mos + random.normal(0, 8, images)
        for attack, radius in conditions:
            after = clean if attack == "none" else clean - radius * 6 * np.sign(mos - 50)
            for i in range(images):
                found.append(
                    {
                        "method": method,
                        "attack": attack,
                        "radius": radius,
                        "name": f"image_{i:02d}.png",
                        "mos": mos[i],
                        "clean": clean[i],
                        "score": after[i],
                        "ssim": 0.98,
                        "max_change": radius,
                    }
                )
    return found


def example(method="plain", name="image_00.png", size=(24, 32), radius=2.0):
    random = np.random.default_rng(1)
    image = random.integers(20, 230, (*size, 3), dtype=np.uint8)
    attacked = np.float32(image / 255) + np.float32(radius / 255) * np.sign(random.normal(size=image.shape))
    return {
        "method": method,
        "name": name,
        "attack": "pgd",
        "radius": radius,
        "mos": 71.25,
        "before": 68.04,
        "after": 21.3,
        "image": image,
        "attacked": attacked.astype(np.float32),
    }


def history(steps=60):
    """As read from a CSV: text, with validation columns filled now and then."""
    return [
        {
            "step": str(step),
            "loss": repr(10 / step + 1),
            "validation_srcc": repr(0.8 - 1 / step) if step % 10 == 0 else "",
            "validation_attacked_srcc": "",
        }
        for step in range(1, steps + 1)
    ]


def robustness(method="plain", flat=1.0, masked=False):
    """One method's entry: a sloping landscape, checks and areas under the curves."""
    along = np.linspace(-4, 4, 5)
    strengths = {"FGSM": 0.0 if masked else 4.0, "PGD-10": 0.0 if masked else 5.0}
    verdict = "suspicious" if masked else "passed"
    return {
        "method": method,
        "integrals": {"fgsm": 0.4, "pgd": 0.25},
        "landscape": {
            "image": "image_03.png",
            "scores": 50 + flat * (2 * along[:, None] + 0.1 * along[None, :]),
            "along_gradient": along,
            "along_random": along,
            "zero_gradient_fraction": float(masked),
        },
        "checks": [
            {
                "name": "gradients exist",
                "verdict": verdict,
                "numbers": {"mean share": float(masked), "blind images": 0},
                "explanation": f"{100 * masked} % of the values have no gradient.",
            },
            {"name": "many steps beat one", "verdict": verdict, "numbers": strengths, "explanation": "As expected."},
            {"name": "transfer does not beat white box", "verdict": "not run", "numbers": {}, "explanation": "None."},
        ],
    }


TITLES = {"fgsm": "FGSM", "pgd": "PGD"}


def results(table=None, **others):
    """Everything that a report shows, with the titles of two attacks."""
    return Results(rows(COLLAPSE) if table is None else table, **{"attack_titles": TITLES, **others})


@pytest.fixture(scope="session")
def made():
    """The makers above; test folders are no packages, so that nothing can be imported from here."""
    return SimpleNamespace(
        row=row,
        rows=rows,
        scores=scores,
        example=example,
        history=history,
        collapse=rows(COLLAPSE),
        robustness=robustness,
        results=results,
    )
