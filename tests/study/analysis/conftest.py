"""Runs of a perceptual attack and answers of modelled observers, as the files and exports have them."""

import dataclasses
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import special

from cprl_jax.config import defaults as config_lib
from cprl_jax.report.table import csv_text
from cprl_jax.runtime.files import file_name, write_arrays, write_file
from cprl_jax.study.settings import Settings

MODELS, FIDELITIES = ("brisque", "ma19"), ("chebyshev", "ssim")
IMAGES = tuple(f"image {number}.png" for number in range(5))
LEVELS = 10 ** (np.linspace(-12, 12, 7) / 20)  # distances around the planted threshold of 1


def settings(**changes):
    return dataclasses.asdict(Settings()) | changes


def answer(observer, step, **changes):
    """A row of the table of answers, as the export has it."""
    row = {
        "observer": observer,
        "step": f"{observer}-{step}",
        "role": "test",
        "trial": "yesno",
        "pair": "",
        "image": IMAGES[0],
        "expected": "",
        "answer": "same",
        "rt_ms": 800.0,
        "durations_ms": [1000.0, 500.0, 1000.0],
        "hidden": False,
    }
    return row | changes


def observer(number, **changes):
    return {"observer": number, "started": f"day {number}", "dark_seen": 4, "bright_seen": 4} | changes


def modelled(pairs, *, observers=15, seed=0, threshold=1.0, between=1.5, guess=0.08, lapse=0.02, spread=3.0, catches=8):
    """Answers of observers whose thresholds, in dB, vary by `between`; the pairs' distances are their strengths."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(1, observers + 1):
        own = 20 * np.log10(threshold) + random.normal(0, between)
        unit = {"chebyshev": 255.0}
        for place, pair in enumerate({pair["pair"]: pair for pair in pairs}.values()):
            strength = 20 * np.log10(pair["distance"] * unit.get(pair["fidelity"], 1.0))
            share = guess + (1 - guess - lapse) * special.ndtr((strength - own) / spread)
            said = "different" if random.random() < share else "same"
            rows.append(answer(number, place, pair=pair["pair"], image=pair["image"], answer=said))
        for place in range(catches):
            for role, expected, share in (("catch_same", "same", guess), ("catch_different", "different", 1 - lapse)):
                said = "different" if random.random() < share else "same"
                rows.append(answer(number, f"{role}{place}", role=role, expected=expected, answer=said))
    return rows


def export(pairs, answers, observers, **changes):
    return {"study": "abc", "settings": settings(**changes), "pairs": pairs, "answers": answers, "observers": observers}


def pairs_of(models=MODELS, fidelities=FIDELITIES, images=IMAGES):
    """A pair for each candidate."""
    rows = []
    for model in models:
        for fidelity in fidelities:
            for image in images:
                for candidate, level in enumerate(LEVELS):
                    distance = level / (255 if fidelity == "chebyshev" else 1)
                    names = {"model": model, "fidelity": fidelity, "image": image, "candidate": candidate}
                    rows.append({"pair": f"pair{len(rows)}", **names, "distance": distance})
    return rows


@pytest.fixture(scope="session")
def attack(tmp_path_factory):
    """The folder of a run with two models, two fidelities, five images and seven candidates of each."""
    folder = tmp_path_factory.mktemp("attack")
    random = np.random.default_rng(0)
    candidates, counterexamples, scores = [], [], []
    for image in IMAGES:
        pixels = random.integers(20, 230, (16, 16, 3), dtype=np.uint8)
        (folder / "originals").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "originals" / f"{file_name(image)}.png")
    before = dict(zip(IMAGES, random.permutation([2.0, 3.5, 5.0, 6.5, 8.0]), strict=True))
    for pair in pairs_of():
        names = {key: pair[key] for key in ("model", "fidelity", "image", "candidate")}
        change = (0.5 + pair["candidate"]) * random.choice([-0.3, 0.3])
        numbers = {"before": before[pair["image"]], "after": before[pair["image"]] + change, "change": change}
        numbers |= {"distance": pair["distance"], "ssim": 0.99, "max_change": 2.0, "zero_gradient_fraction": 0.0}
        name = f"cells/{pair['model']}/{pair['fidelity']}/{file_name(pair['image'])}.npz"
        numbers["network"] = pair["model"]
        candidates.append(names | numbers | {"below_threshold": 1, "selected": 0, "imperceptible": "", "file": name})
        if not (folder / name).exists():
            write_arrays(folder / name, {"images": np.zeros((len(LEVELS), 16, 16, 3), np.uint8)})
            mos = 10 * before[pair["image"]] + random.normal(0, 3)
            counterexamples.append(names | {"mos": mos, "seconds": 1.0, "found": 1})
        other = MODELS[1 - MODELS.index(pair["model"])]
        tested = {"model": other, "attacked": pair["model"]}
        scores.append(names | tested | {"before": before[pair["image"]], "after": before[pair["image"]] + 0.1})
    for name, rows in (("candidates", candidates), ("counterexamples", counterexamples), ("transfer_scores", scores)):
        write_file(folder / "report" / f"{name}.csv", csv_text(rows, ("model",)))
    config = config_lib.default()
    config.job = "perceptual_attack"
    config.perceptual.examples = 1
    write_file(folder / "config.json", config_lib.to_json(config))
    return folder


@pytest.fixture(scope="session")
def made():
    """The functions and names above."""
    return sys.modules[__name__]
