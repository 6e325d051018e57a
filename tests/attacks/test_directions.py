import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import attacks

SCORES, CLEAN = jnp.array([10.0, 50.0, 90.0]), jnp.array([49.0, 50.0, 51.0])


def signs(direction, clean=CLEAN):
    """+1 where ascending the objective raises the score, -1 where it lowers it."""
    return list(np.asarray(jax.grad(lambda scores: jnp.sum(direction(scores, clean)))(SCORES)))


def test_up_and_down():
    assert signs(attacks.up()) == [1, 1, 1]
    assert signs(attacks.down()) == [-1, -1, -1]
    np.testing.assert_array_equal(attacks.down()(SCORES, CLEAN), -SCORES)


def test_reflect_goes_by_the_label_and_up_at_the_middle():
    assert signs(attacks.reflect([50.1, 50.0, 49.9])) == [-1, 1, 1]
    assert signs(attacks.reflect(np.array([5, 3, 1]), mid=3.0)) == [-1, 1, 1]
    assert signs(attacks.reflect(70.0)) == [-1, -1, -1]


def test_target_free_goes_by_the_clean_score_and_up_at_the_middle():
    assert signs(attacks.target_free()) == [1, 1, -1]
    assert signs(attacks.target_free(mid=49.5)) == [1, -1, -1]


def test_reflect_refuses_another_number_of_labels():
    with pytest.raises(ValueError, match="one label per image"):
        attacks.reflect([1.0, 2.0])(SCORES, CLEAN)


def test_directions_are_pytrees_that_compile_once():
    traces = []

    @jax.jit
    def objective(direction, scores, clean):
        traces.append(1)
        return direction(scores, clean)

    for shift in (0.0, 1.0):
        objective(attacks.reflect(np.array([50.1, 50.0, 49.9]) + shift), SCORES, CLEAN)
        objective(attacks.target_free(50.0 + shift), SCORES, CLEAN)
        objective(attacks.up(), SCORES, CLEAN)
        objective(attacks.down(), SCORES, CLEAN)
    assert len(traces) == 4
