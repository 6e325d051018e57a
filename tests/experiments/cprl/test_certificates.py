"""Certificates of a run: what is kept, what is reported, and that a broken bound is shouted out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import checks
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.cprl import certificates as module
from cprl_jax.experiments.cprl import figures as pictures
from cprl_jax.experiments.cprl import findings, report, tables
from cprl_jax.robustness import certify
from cprl_jax.runtime.errors import UserError

NAMES = [f"image_{i}" for i in range(5)]
MOS = np.array([10.0, 80.0, 55.0, 30.0, 95.0], np.float32)
CROPS = np.random.default_rng(0).integers(0, 256, (5, 1, 16, 16, 3), dtype=np.uint8)


class Roughness(nn.Module):
    """A score that is cheap to compile: the mean difference of neighbouring pixels, and their mean."""

    @nn.compact
    def __call__(self, images, train=False):
        weights = self.param("head", nn.initializers.ones, (2,))
        rough = jnp.mean(jnp.abs(jnp.diff(images, axis=1)), axis=(1, 2, 3))
        return 50 + 20 * weights[0] * rough + 30 * weights[1] * jnp.mean(images, axis=(1, 2, 3))


@pytest.fixture(scope="module")
def config():
    config = config_lib.default()
    config.evaluation.batch_size = 8
    config.evaluation.certify.update(
        {"samples": 40, "confidence": 0.9, "radii": (0.02, 5.0), "attack_steps": 2, "attack_draws": 2}
    )
    return config


@pytest.fixture(scope="module")
def network():
    return Roughness(), {"params": {"head": jnp.ones(2)}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certificates")


def evaluate(config, network, folder, **changed):
    given = {"crops": CROPS, "names": NAMES, "mos": MOS} | changed
    return module.certificates(config, network, *given.values(), folder=folder)


@pytest.fixture(scope="module")
def found(config, network, folder):
    return evaluate(config, network, folder)


def test_every_radius_has_a_row_and_every_image_its_interval(found, config, network):
    near, far = found["summary"]
    assert [near["radius"], far["radius"]] == [0.02, 5.0]
    assert near["images"] == 5 and near["samples"] == 40 and near["broken"] == far["broken"] == 0
    assert near["grey_levels"] == pytest.approx(255 * 0.02 / np.sqrt(16 * 16 * 3))
    assert 0 < near["width"] < np.inf and far["width"] == np.inf, "no certificate beyond the largest radius"
    for row in found["summary"]:
        assert -1 <= row["certified_srcc"] <= row["attacked_srcc"] <= row["srcc"] <= 1
    assert far["certified_srcc"] == pytest.approx(-1)
    assert len(found["images"]) == 10
    # The smoothed scores are those of the first crops, by the seed.
    rows = [NAMES.index(row["name"]) for row in found["images"][:5]]
    settings = config.evaluation.certify
    smoothed = certify.median_smoothing(
        models.score_fn(*network),
        CROPS[rows][:, 0] / np.float32(255),
        sigma=settings.sigma,
        samples=40,
        confidence=0.9,
        key=jax.random.fold_in(jax.random.key(config.seed), 0),
    )
    np.testing.assert_allclose([row["score"] for row in found["images"][:5]], smoothed.score, rtol=1e-5)
    for row in found["images"][:5]:
        assert row["lower"] <= row["score"] <= row["upper"] and row["mos"] == MOS[NAMES.index(row["name"])]


def test_what_is_kept_is_computed_again_where_something_changed(found, config, network, folder, monkeypatch):
    assert {path.name for path in folder.iterdir()} == {
        *("clean.npz", "down-0.02.npz", "up-0.02.npz", "down-5.npz", "up-5.npz")
    }
    counted = []
    smooth = certify.median_smoothing
    monkeypatch.setattr(certify, "median_smoothing", lambda *a, **o: counted.append(1) or smooth(*a, **o))
    assert evaluate(config, network, folder) == found and not counted
    (folder / "up-5.npz").unlink()  # as of a run that was killed
    assert evaluate(config, network, folder) == found and len(counted) == 1
    longer = config.copy_and_resolve_references()
    longer.evaluation.certify.update({"attack_steps": 1, "radii": (0.02,)})
    evaluate(longer, network, folder)
    assert len(counted) == 3, "the attacks, not the clean scores"
    other = CROPS.copy()
    other[1, 0, 0, 0, 0] ^= 1
    evaluate(longer, network, folder, crops=other)
    assert len(counted) == 6


def test_nothing_is_done_unless_asked_for(network, tmp_path):
    off = evaluate(config_lib.default(), network, tmp_path / "none")
    assert off == {"summary": [], "images": []} and not (tmp_path / "none").exists()


def made_up(broken_by=0.0):
    """Four images whose samples are narrow, and attacks that move the last one as far as said."""
    centres = np.array([10.0, 20, 30, 40])
    samples = centres[:, None] + np.linspace(-1, 1, 101)
    moved = centres + np.array([0, 0, 0, broken_by])
    attacked = {way: {"score": moved, "low": moved - 0.1, "high": moved + 0.1} for way in ("down", "up")}
    row, columns = module.compare(certify.Smoothed(samples, 0.1, 0.99), attacked, centres, radius=0.05)
    each = [dict(zip(columns, values, strict=True)) for values in np.stack(list(columns.values()), axis=1)]
    shared = {"grey_levels": 0.1, "sigma": 0.1, "samples": 101, "confidence": 0.99}
    images = [{"radius": 0.05, "name": f"{i}", **one} for i, one in enumerate(each)]
    return {"summary": [row | shared], "images": images}


def test_a_broken_bound_is_an_alarm(made):
    whole = made.results(robustness=[{"method": "plain", "certificates": made_up()}])
    assert whole.certificates("summary")[0]["broken"] == 0
    assert whole.certificates("summary")[0]["certified_srcc"] == pytest.approx(1)
    assert not any("CERTIFICATES" in text for text in findings.warnings(whole))
    wrong = made.results(robustness=[{"method": "plain", "certificates": made_up(broken_by=-5.0)}])
    assert "plain: CERTIFICATES ARE BROKEN" in findings.warnings(wrong)[0]
    assert "of 1 of 4 images at l2 0.05" in findings.warnings(wrong)[0]
    assert "alarm" in [cell.tone for lines in tables.certificates(wrong).blocks().values() for cell in lines[0].cells]
    (panel,) = pictures.certificates(wrong)
    assert "BROKEN" in [line.get_label() for line in panel.figure.axes[0].lines]
    (panel,) = pictures.certificates(whole)
    assert panel.name == "certified_plain_0.05" and panel.name.startswith(pictures.NAMES)
    assert "BROKEN" not in [line.get_label() for line in panel.figure.axes[0].lines]
    assert not tables.certificates(made.results()) and pictures.certificates(made.results()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 10}, "certify.samples is 10; a confidence of 0.999 needs at least 11, or 0"),
        ({"samples": 20, "radii": ()}, "certify.radii is"),
        ({"radii": (0.1, 0.1)}, "certify.radii is"),
        ({"images": 2}, "certify.images is 2"),
    ],
    ids=["few", "none", "twice", "images"],
)
def test_wrong_settings_are_named(settings, message):
    config = config_lib.default()
    config.evaluation.certify.update(settings)
    with pytest.raises(UserError, match=message):
        checks.validate(config)


@pytest.mark.parametrize("broken_by", [0.0, -5.0])
def test_the_page_shows_what_was_proved_and_a_broken_bound_twice(made, tmp_path, broken_by):
    results = made.results(robustness=[{"method": "plain", "certificates": made_up(broken_by)}])
    report.write(tmp_path, results, title="t", summary="What was done.", config_text="c", notes=[])
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "What was done." in text and "Certified against attacked" in text
    assert text.count("CERTIFICATES ARE BROKEN") == (2 if broken_by else 0)
    assert ("CERTIFICATES ARE BROKEN" in report.terminal(results)) == bool(broken_by)
    assert (tmp_path / "figures" / "certified_plain_0.05.png").exists()
    assert (tmp_path / "certificates.csv").read_text().count("\n") == 2
    assert (tmp_path / "certified_scores.csv").read_text().count("\n") == 5
