"""Damaged streams: real JPEG files with restart markers, and the simulation of JPEG 2000."""

import io

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data.distortions import _transmission
from cprl_jax.data.scenes import photograph_path


@pytest.fixture(scope="module")
def photograph():
    with Image.open(photograph_path("coffee.png")) as opened:
        return np.asarray(opened.convert("RGB").resize((75, 50), Image.Resampling.LANCZOS))


def test_choice_of_damage():
    growth, order = np.array([5.0, 0.0, 3.0, 9.0, 1.0]), np.array([3, 0, 1, 4, 2])
    mild = _transmission.choose_damage(growth, order, start=1.0, budgets=(8.0,))
    severe = _transmission.choose_damage(growth, order, start=1.0, budgets=(8.0, 19.0))
    np.testing.assert_array_equal(mild, [True, False, False, False, True])
    np.testing.assert_array_equal(severe, [True, False, True, True, True])


def test_segments_put_together_are_the_file(photograph):
    file = _transmission._encode(photograph, 3)
    header, segments = _transmission._segments(file)
    assert len(segments) == -(-10 * 7 // 3)
    with Image.open(io.BytesIO(file)) as decoded:
        np.testing.assert_array_equal(_transmission._decode(header, segments), np.asarray(decoded))


def test_burst_makes_no_marker():
    rng = np.random.default_rng(0)
    for _ in range(200):
        segment = rng.choice([0x00, 0x7F, 0xFE, 0x31], 12).astype(np.uint8).tobytes().replace(b"\x7f", b"\xff\x00")
        broken = _transmission._burst(segment, rng)
        assert len(broken) == len(segment) and broken.count(b"\xff") == segment.count(b"\xff")
        assert all(broken[i + 1] == 0 for i in range(len(broken) - 1) if broken[i] == 0xFF)
    assert _transmission._burst(b"", rng) == b""


def test_jpeg_damage_stays_between_markers(photograph):
    """Blocks that no damaged segment holds are those of the intact file; the budget is kept."""
    clean = np.asarray(Image.open(io.BytesIO(_transmission._encode(photograph, 1))))
    budget = 150.0 * photograph.size
    result = _transmission.jpeg_errors(photograph, (budget,), 5)
    changed = (result != clean).any(axis=-1)
    blocks = np.array([[changed[r : r + 8, c : c + 8].any() for c in range(0, 75, 8)] for r in range(0, 50, 8)])
    assert 0.02 < blocks.mean() < 0.6
    error = np.sum((result.astype(float) - photograph) ** 2)
    assert 0.5 * budget < error <= budget


def test_more_damage_contains_less(photograph):
    budgets = tuple(value * photograph.size for value in (40.0, 160.0))
    clean, mild, severe = (_transmission.jpeg_errors(photograph, b, 5) for b in ((0.0,), budgets[:1], budgets))
    damaged = (mild != clean).any(axis=-1)
    assert damaged.any() and np.array_equal(mild[damaged], severe[damaged])


def test_jpeg2000_damage(photograph):
    budget = 100.0 * photograph.size
    np.testing.assert_allclose(_transmission.jpeg2000_errors(photograph, (0.0,), 1), photograph, atol=0.01)
    result = _transmission.jpeg2000_errors(photograph, (budget,), 1)
    error = np.sum((result - photograph) ** 2)
    assert 0.7 * budget < error < 1.2 * budget


@pytest.mark.parametrize("scale", [0.0, 0.3, 5.0, 700.0])
def test_lost_planes_stay_in_range(scale):
    block = scale * np.random.default_rng(0).uniform(-1, 1, (8, 8))
    lost = _transmission._lost_planes(block, np.random.default_rng(1))
    assert np.isfinite(lost).all()
    assert np.abs(lost).max() <= 2 * max(np.abs(block).max(), 1e-9)
