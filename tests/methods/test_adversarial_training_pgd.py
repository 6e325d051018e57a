"""Adversarial training with PGD, against a step in PyTorch and float64; FGSM as its case of one step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cprl_jax import methods
from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS
from cprl_jax.training.optimizers import make_optimizer
from cprl_jax.training.state import create_state
from cprl_jax.training.step import make_step


class TwoLayers(nn.Module):
    """score = 50 + 10 (tanh(x U + u) V + v)."""

    @nn.compact
    def __call__(self, images, train=False):
        hidden = jnp.tanh(nn.Dense(5, name="backbone")(images.reshape(images.shape[0], -1)))
        return 50 + 10 * nn.Dense(1, name="head")(hidden)[:, 0]


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (6, 5, 4, 3), np.uint8),
        "mos": generator.uniform(0, 100, 6).astype(np.float32),
    }


def start():
    params = TwoLayers().init(jax.random.key(1), jnp.zeros((1, 5, 4, 3)))["params"]
    optimizer = make_optimizer(config_lib.default().train, steps=10)
    return create_state({"params": params}, optimizer.init(params)), optimizer


def run(method, data, **settings):
    config = config_lib.default()
    config.evaluation.mid, config.train.correlation_weight = 40.0, 0.0
    config[method].update(settings)
    state, optimizer = start()
    return jax.jit(make_step(TwoLayers(), optimizer, config, method=method))(state, data)[1]


def in_torch(data, *, epsilon, step, steps, weight, noise):
    """(loss, norm of its gradient) of a step of adversarial training with PGD that starts at x + epsilon noise."""
    params = jax.tree.map(
        lambda leaf: torch.tensor(np.asarray(leaf, np.float64), requires_grad=True), start()[0].params
    )
    clean = torch.tensor(data["image"] / 255.0).flatten(1)
    mos = torch.tensor(data["mos"], dtype=torch.float64)

    def scores(x):
        hidden = torch.tanh(x @ params["backbone"]["kernel"] + params["backbone"]["bias"])
        return 50 + 10 * (hidden @ params["head"]["kernel"] + params["head"]["bias"])[:, 0]

    x = (clean + epsilon * torch.tensor(noise)).clamp(0, 1)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((torch.where(mos > 40, -1.0, 1.0) * scores(x)).sum(), x)
        moved = x + step * gradient.sign()
        x = torch.clamp(torch.minimum(torch.maximum(moved, clean - epsilon), clean + epsilon), 0, 1)
    loss = (1 - weight) * (scores(clean) - mos).abs().mean() + weight * (scores(x.detach()) - mos).abs().mean()
    gradients = torch.autograd.grad(loss, jax.tree.leaves(params))
    return loss.item(), sum((g**2).sum().item() for g in gradients) ** 0.5


@pytest.mark.parametrize("random_start", [False, True], ids=["from_the_image", "random_start"])
def test_a_step_is_the_one_in_torch(data, random_start):
    noise = np.zeros((6, 60))
    if random_start:  # of each image, from the key that the step gives it
        key = jax.random.fold_in(jax.random.key(0), 0)
        keys = [jax.random.fold_in(key, example) for example in range(6)]
        noise = np.stack([np.asarray(jax.random.uniform(key, (5, 4, 3), minval=-1.0)).ravel() for key in keys])
    settings = dict(epsilon=6.0, step_size=2.5, attack_steps=3, weight=0.3)
    found = run("at_pgd", data, random_start=random_start, **settings)
    loss, norm = in_torch(data, epsilon=6 / 255, step=2.5 / 255, steps=3, weight=0.3, noise=noise.astype(np.float64))
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["gradient_norm"], norm, rtol=1e-4)
    assert found["adversarial_loss"] > found["mos_loss"] and found["direction_agreement"] == 1


def test_one_step_from_the_image_is_fgsm_and_none_is_plain_training(data):
    fgsm = run("at", data, epsilon=4.0)
    one = run("at_pgd", data, epsilon=4.0, attack_steps=1, random_start=False)
    np.testing.assert_allclose(one["loss"], fgsm["loss"], rtol=1e-6)
    none = run("at_pgd", data, attack_steps=0)
    np.testing.assert_allclose(none["loss"], run("plain", data)["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "gradients", "title"),
    [
        ({}, 9, "PGD of 7 steps at 2/255"),
        ({"attack_steps": 1, "random_start": False, "epsilon": 1.0}, 3, "FGSM at 1/255"),
        ({"attack_steps": 1}, 3, "PGD of 1 step at 2/255"),
        ({"attack_steps": 1, "random_start": False, "step_size": 0.5}, 3, "PGD of 1 step at 2/255"),
        ({"attack_steps": 0}, 1, "clean images alone"),
    ],
    ids=["default", "fgsm", "random_start", "short_step", "none"],
)
def test_its_budget_and_its_row(settings, gradients, title):
    config = config_lib.default()
    config.at_pgd.update(settings)
    assert METHODS["at_pgd"].gradients(config.at_pgd) == gradients
    assert methods.title("at_pgd", config.at_pgd) == f"adversarial training ({title})"


@pytest.mark.slow
def test_a_step_on_a_network(one_step):
    one_step("at_pgd", attack_steps=1)
