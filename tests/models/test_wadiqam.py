"""WaDIQaM-NR against a torch build of the published layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models.wadiqam import WaDIQaM

CHANNELS = (3, 32, 32, 64, 64, 128, 128, 256, 256, 512, 512)
# pyiqa's places of the ten convolutions and the four linear layers, by the names of the first torch version.
PYIQA = {
    **{f"conv{n}": f"features.{index}" for n, index in enumerate((0, 2, 5, 7, 10, 12, 15, 17, 20, 22), start=1)},
    **{"fc1q_nr": "fc_q.0", "fc2q_nr": "fc_q.3", "fc1w_nr": "fc_w.0", "fc2w_nr": "fc_w.3"},
}


@pytest.fixture
def network():
    """The layers by their published names, with random weights: an image [3, height, width] to its score."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            for number in range(1, 11):
                conv = nn.Conv2d(CHANNELS[number - 1], CHANNELS[number], 3, padding=1)
                nn.init.kaiming_normal_(conv.weight)
                setattr(self, f"conv{number}", conv)
            for head in "qw":
                setattr(self, f"fc1{head}_nr", nn.Linear(512, 512))
                setattr(self, f"fc2{head}_nr", nn.Linear(512, 1))

        def patch(self, x):
            x = x[None]
            for number in range(1, 11):
                x = torch.relu(getattr(self, f"conv{number}")(x))
                x = functional.max_pool2d(x, 2) if number % 2 == 0 else x
            x = x.flatten()
            score = self.fc2q_nr(torch.relu(self.fc1q_nr(x)))
            return score, torch.relu(self.fc2w_nr(torch.relu(self.fc1w_nr(x)))) + 1e-6

        def forward(self, image):
            corners = [(y, x) for y in range(0, image.shape[1] - 31, 32) for x in range(0, image.shape[2] - 31, 32)]
            scores, weights = zip(*(self.patch(image[:, y : y + 32, x : x + 32]) for y, x in corners), strict=True)
            return sum(s * w for s, w in zip(scores, weights, strict=True)) / sum(weights)

    torch.manual_seed(1)
    return Network().eval()


def torch_scores(network, images):
    import torch

    with torch.no_grad():
        return np.array([network(image).item() for image in torch.tensor(images.transpose(0, 3, 1, 2))])


def test_scores_are_torch_s_by_the_names_of_both_publishers(network, tmp_path, config_model, random_variables):
    import torch

    state = network.state_dict()
    pyiqa = {f"{PYIQA[layer]}.{leaf}": value for (layer, leaf), value in ((k.split("."), v) for k, v in state.items())}
    torch.save(state, tmp_path / "first.pth")
    torch.save({"params": pyiqa}, tmp_path / "pyiqa.pth")
    config = config_model("wadiqam", score_mean=50.0, score_std=20.0)
    module = models.create(config)
    first, second = (
        models.load_weights(random_variables(module), tmp_path / f"{name}.pth", config_model=config)
        for name in ("first", "pyiqa")
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert sum(leaf.size for leaf in jax.tree.leaves(first)) == sum(p.numel() for p in network.parameters())

    images = np.random.default_rng(0).uniform(size=(3, 70, 64, 3)).astype(np.float32)
    images *= np.linspace(0.2, 1, 70, dtype=np.float32).reshape(1, -1, 1, 1)  # patches that differ
    network.fc2w_nr.bias.data.fill_(0.3)
    first["params"]["weight"]["bias"] = np.full(1, 0.3, np.float32)
    expected = torch_scores(network, images)
    assert np.std(expected) > 1e-4
    scores = jax.jit(models.score_fn(module, first))(images)
    np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())


def test_image_gradients(random_variables, check_image_gradients):
    module = WaDIQaM()
    variables = random_variables(module)
    check_image_gradients(module, variables, 32)
    variables["params"]["weight"]["kernel"][:] = 0.0
    variables["params"]["weight"]["bias"][:] = -1.0  # no patch has a weight
    check_image_gradients(module, variables, 32)


@pytest.mark.slow
def test_initial_scores_and_training(check_start):
    # The weights' head learns, too.
    check_start(WaDIQaM(score_mean=50.0, score_std=20.0, dropout=0.5), within=40.0)


def test_masks_cover_its_middle(config_model):
    config = config_model("wadiqam", sort_mask={"rate": 0.1, "min_channels": 0, "stages": ()})
    assert models.masked_convolutions(models.create(config), 32) == [f"backbone/conv{n}" for n in (6, 7, 8)]


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 32x32 pixels, got 31x40"):
        jax.eval_shape(WaDIQaM().init, jax.random.key(0), jnp.zeros((1, 31, 40, 3)))
