"""Screening of observers against the package `sureal`, and what the recommendation says in words."""

import types

import numpy as np
import pytest

from cprl_jax.study.analysis import bt500


def sample(missing: bool):
    """60 conditions and 20 observers, the last three less consistent, on a scale from 1 to 5."""
    random = np.random.default_rng(20)
    quality, bias = random.uniform(1, 5, (60, 1)), random.normal(0, 0.3, 20)
    noise = np.array([0.4] * 17 + [0.8, 2.0, 3.0])
    scores = np.clip(np.round(quality + bias + noise * random.standard_normal((60, 20))), 1, 5)
    return np.where(np.random.default_rng(21).random(scores.shape) < 0.1, np.nan, scores) if missing else scores


# Of `sample`, by sureal 0.9.0: SubjrejMosModel and SubjectMLEModelProjectionSolver, as in the test below.
SUREAL = {
    False: {
        "rejected": [19],
        "far": [1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 3, 6, 11],
        "asymmetry": {17: 0.333333, 18: 0.666667, 19: 0.272727},
        "bias": {0: 0.5025, 7: -0.664167, 19: 0.0525},
        "inconsistency": {0: 0.433692, 17: 0.730098, 18: 1.151638, 19: 1.684735},
        "quality": [2.073926, 2.749681, 1.495964, 2.970826, 2.571136],
    },
    True: {
        "rejected": [17, 19],
        "far": [1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 4, 5, 10],
        "asymmetry": {17: 0.0, 18: 0.6, 19: 0.0},
        "bias": {0: 0.480263, 7: -0.654524, 19: 0.049451},
        "inconsistency": {0: 0.459785, 17: 0.764293, 18: 1.175762, 19: 1.640581},
        "quality": [2.096278, 2.744688, 1.529587, 2.991103, 2.501402],
    },
}


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing"])
def test_the_numbers_are_those_of_sureal(missing):
    scores, expected = sample(missing), SUREAL[missing]
    screening = bt500.screen(scores)
    assert np.flatnonzero(screening.rejected).tolist() == expected["rejected"]
    np.testing.assert_allclose(screening.share, np.array(expected["far"]) / 60)
    observers = bt500.bias_and_inconsistency(scores)
    for values, numbers in (
        (screening.asymmetry, expected["asymmetry"]),
        (observers.bias, expected["bias"]),
        (observers.inconsistency, expected["inconsistency"]),
    ):
        np.testing.assert_allclose(values[list(numbers)], list(numbers.values()), atol=1e-6)
    np.testing.assert_allclose(observers.quality[:5], expected["quality"], atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_other_samples_where_sureal_is_installed(seed):
    reader = pytest.importorskip("sureal.dataset_reader")
    from sureal import subjective_model

    scores = np.random.default_rng(seed).permutation(sample(True), axis=1)[:, :15]
    dataset = types.SimpleNamespace(
        dataset_name="sample",
        ref_score=5.0,
        ref_videos=[{"content_id": 0, "path": "r", "content_name": "c"}],
        dis_videos=[
            {"content_id": 0, "asset_id": row, "path": f"d{row}", "os": list(values)}
            for row, values in enumerate(scores)
        ],
    )
    result = subjective_model.SubjrejMosModel(reader.RawDatasetReader(dataset)).run_modeling()
    screening = bt500.screen(scores)
    assert screening.rejected.tolist() == result["observer_rejected"]
    np.testing.assert_allclose(screening.share, result["observer_rejected_1st_stats"])


def test_an_observer_on_one_side_stays_and_one_on_both_goes():
    random = np.random.default_rng(3)
    quality = random.uniform(1, 5, (40, 1))
    scores = quality + 0.1 * random.standard_normal((40, 40))  # more than 20: else nobody is sqrt(20) deviations away
    scores[:, 0] += 3.0
    assert not bt500.screen(scores).rejected.any()
    scores[::2, 0] -= 6.0
    assert np.flatnonzero(bt500.screen(scores).rejected).tolist() == [0]


def test_where_all_agree_nobody_is_far():
    scores = np.full((30, 5), 0.1)
    screening = bt500.screen(scores)
    assert not screening.rejected.any() and (screening.share == 0).all()


def test_what_is_no_table_of_scores_is_refused():
    with pytest.raises(ValueError, match=r"\[conditions, observers\]"):
        bt500.screen(np.zeros(3))
    with pytest.raises(ValueError, match="must have a score"):
        bt500.bias_and_inconsistency(np.full((2, 2), np.nan))
