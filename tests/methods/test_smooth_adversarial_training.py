"""Smooth adversarial training: what it learns, and what its row says."""

import pytest

from cprl_jax import methods
from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS
from cprl_jax.models.smooth_activations import LEARNED


@pytest.mark.slow
def test_a_step_on_a_network_learns_beta(one_step):
    before, after, _ = one_step("sat", activation=LEARNED, attack_steps=0)
    roots = [tree.params["backbone"]["stage2_conv1_silu_root_beta"] for tree in (before, after)]
    assert roots[0] == 20 and roots[1] != 20


def test_its_row_names_the_activation_and_the_attack():
    config = config_lib.default()
    assert methods.title("sat", config.sat) == "smooth adversarial training (silu, FGSM at 2/255)"
    config.sat.update({"activation": "smooth_relu", "attack_steps": 0})
    assert methods.title("sat", config.sat) == "smooth adversarial training (smooth_relu, clean images alone)"
    assert METHODS["sat"].gradients(config.sat) == 1
