"""Configurations, quick random variables, and torch builds of the networks as independent oracles."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cprl_jax import models


@pytest.fixture
def config_model():
    """Makes a `config.model` with the given fields changed; score = output of the network."""

    def make(name="resnet", **changes):
        config = ml_collections.ConfigDict(
            {
                "name": name,
                "backbone": "resnet18",
                "weights": "",
                "dtype": "float32",
                "dropout": 0.0,
                "score_mean": 0.0,
                "score_std": 1.0,
                "sort_mask": {"rate": 0.0, "min_channels": 128, "stages": (2, 3), "selection": "fast"},
            }
        )
        if name in models.NETWORKS and models.NETWORKS[name].fit is not None:
            config.sort_mask.update(stages=())
        config.update(changes)
        return config

    return make


@pytest.fixture
def random_variables():
    """Makes random variables of a module without compiling its initialisation."""

    def make(module, image_size=32, seed=0):
        generator = np.random.default_rng(seed)
        shapes = jax.eval_shape(lambda: models.initialize(module, jax.random.key(0), image_size))

        def leaf(path, shape):
            if path[-1].key == "kernel":
                spread = np.sqrt(2.0 / np.prod(shape.shape[:-1]))
                return generator.normal(size=shape.shape, scale=spread).astype(np.float32)
            low, high = (0.5, 1.5) if path[-1].key in ("scale", "var", "std", "variance") else (-0.1, 0.1)
            return generator.uniform(low, high, shape.shape).astype(np.float32)

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return make


@pytest.fixture
def torch_network():
    """Builds a torch network by name, with random weights and random batch statistics, in evaluation mode."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional
    blocks = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}

    class Block(nn.Module):
        def __init__(self, inputs, width, stride, bottleneck):
            super().__init__()
            outputs = 4 * width if bottleneck else width
            if bottleneck:
                self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
                self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
                self.bn2 = nn.BatchNorm2d(width)
                self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            else:
                self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
                self.bn1 = nn.BatchNorm2d(width)
                self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            self.bottleneck = bottleneck
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.bottleneck:
                y = self.bn3(self.conv3(torch.relu(y)))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self, backbone, outputs=1):
            super().__init__()
            bottleneck = backbone == "resnet50"
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            channels = 64
            for stage, count in enumerate(blocks[backbone]):
                layers = []
                for index in range(count):
                    layers.append(Block(channels, 64 << stage, 2 if stage and not index else 1, bottleneck))
                    channels = (64 << stage) * (4 if bottleneck else 1)
                setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            if outputs:
                self.fc = nn.Linear(channels, outputs)

        def maps(self, images):
            mean, std = (torch.tensor(c).reshape(1, 3, 1, 1) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            x = torch.relu(self.bn1(self.conv1((images - mean) / std)))
            maps = [functional.max_pool2d(x, 3, 2, 1)]
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                maps.append(stage(maps[-1]))
            return maps[1:]

        def outputs(self, images):
            return self.fc(self.maps(images)[-1].mean((2, 3)))

        def forward(self, images):
            return self.outputs(images)[:, 0]

    class MetaIQA(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.resnet_layer = ResNet(backbone, outputs=1000)
            self.net = nn.Module()
            for number, (inputs, outputs) in enumerate(((1000, 1024), (1024, 512)), start=1):
                setattr(self.net, f"fc{number}", nn.Linear(inputs, outputs))
                setattr(self.net, f"bn{number}", nn.BatchNorm1d(outputs))
                setattr(self.net, f"relu{number}", nn.PReLU())
            self.net.fc3 = nn.Linear(512, 1)

        def forward(self, images):
            x = self.resnet_layer.outputs(images)
            x = self.net.relu1(self.net.bn1(self.net.fc1(x)))
            x = self.net.relu2(self.net.bn2(self.net.fc2(x)))
            return torch.sigmoid(self.net.fc3(x))[:, 0]

    class DistortionResNet(ResNet):
        def __init__(self, backbone):
            super().__init__(backbone, outputs=0)
            scale = 4 if backbone == "resnet50" else 1
            for stage, channels in enumerate((16, 32, 64), start=1):
                pool = nn.Sequential(nn.Conv2d(32 * 2**stage * scale, channels, 1, bias=False), nn.AvgPool2d(7, 7))
                setattr(self, f"lda{stage}_pool", pool)
            self.lda1_fc, self.lda2_fc, self.lda3_fc = nn.Linear(1024, 16), nn.Linear(512, 16), nn.Linear(256, 16)
            self.lda4_fc = nn.Linear(512 * scale, 176)

        def forward(self, images):
            maps = self.maps(images)
            pooled = [self.lda1_pool(maps[0]), self.lda2_pool(maps[1]), self.lda3_pool(maps[2])]
            pooled.append(functional.avg_pool2d(maps[3], 7, 7))
            linears = (self.lda1_fc, self.lda2_fc, self.lda3_fc, self.lda4_fc)
            return torch.cat([fc(x.flatten(1)) for fc, x in zip(linears, pooled, strict=True)], 1), maps[3]

    class HyperIQA(nn.Module):
        widths = (224, 112, 56, 28, 14, 1)

        def __init__(self, backbone):
            super().__init__()
            self.res = DistortionResNet(backbone)
            channels = 2048 if backbone == "resnet50" else 512
            layers = []
            for inputs, outputs in ((channels, 1024), (1024, 512), (512, 112)):
                layers += [nn.Conv2d(inputs, outputs, 1), nn.ReLU()]
            self.conv1 = nn.Sequential(*layers)
            for layer in range(1, 6):
                inputs, outputs = self.widths[layer - 1 : layer + 1]
                if layer < 5:
                    setattr(self, f"fc{layer}w_conv", nn.Conv2d(112, inputs * outputs // 49, 3, padding=1))
                else:
                    self.fc5w_fc = nn.Linear(112, inputs)
                setattr(self, f"fc{layer}b_fc", nn.Linear(112, outputs))

        def forward(self, images):
            x, semantics = self.res(images)
            hyper = self.conv1(semantics)
            pooled = hyper.mean((2, 3))
            scores = []
            for i in range(len(images)):  # one image after the other, as matrix times vector
                v = x[i]
                for layer in range(1, 6):
                    inputs, outputs = self.widths[layer - 1 : layer + 1]
                    if layer < 5:
                        weights = getattr(self, f"fc{layer}w_conv")(hyper[i : i + 1])
                    else:
                        weights = self.fc5w_fc(pooled[i])
                    v = weights.reshape(outputs, inputs) @ v + getattr(self, f"fc{layer}b_fc")(pooled[i])
                    v = torch.sigmoid(v) if layer < 5 else v
                scores.append(v[0])
            return torch.stack(scores)

    class Fire(nn.Module):
        def __init__(self, inputs, squeeze, expand):
            super().__init__()
            self.squeeze = nn.Conv2d(inputs, squeeze, 1)
            self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
            self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

        def forward(self, x):
            x = torch.relu(self.squeeze(x))
            return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)

    class SqueezeNet(nn.Module):
        def __init__(self):
            super().__init__()

            def pool():
                return nn.MaxPool2d(3, 2, ceil_mode=True)

            self.features = nn.Sequential(
                nn.Conv2d(3, 64, 3, 2),
                nn.ReLU(),
                pool(),
                Fire(64, 16, 64),
                Fire(128, 16, 64),
                pool(),
                Fire(128, 32, 128),
                Fire(256, 32, 128),
                pool(),
                Fire(256, 48, 192),
                Fire(384, 48, 192),
                Fire(384, 64, 256),
                Fire(512, 64, 256),
            )
            self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 10, 1))

        def forward(self, x):
            """The maps after the first convolution and fire modules 3, 5 and 9, of an already normalised input."""
            maps = []
            for index, layer in enumerate(self.features):
                x = layer(x)
                if index in (1, 4, 7, 12):
                    maps.append(x)
            return maps

    def build(name, seed=0):
        torch.manual_seed(seed)
        kind, _, backbone = name.partition("-")
        network = {
            "resnet": lambda: ResNet(backbone),
            "classifier": lambda: ResNet(backbone, outputs=10),
            "hyperiqa": lambda: HyperIQA(backbone),
            "metaiqa": lambda: MetaIQA(backbone),
            "squeezenet": SqueezeNet,
        }[kind]()
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return network.eval()

    return build


@pytest.fixture
def torch_vgg16():
    """Makes the `features` of torchvision's VGG-16, with random weights that keep the size of what goes through."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def make(last_pool=True, seed=0):
        torch.manual_seed(seed)
        layers, channels = [], 3
        for convolutions, features in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU()]
                nn.init.kaiming_normal_(layers[-2].weight)
                channels = features
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers[: None if last_pool else -1])

    return make


@pytest.fixture
def check_image_gradients(getkey):
    """Checks that gradients in awkward images are finite, those in a natural one not 0, and each image is by itself."""

    def check(module, variables, size):
        rows, columns = jnp.meshgrid(*(jnp.linspace(0, 1, size),) * 2, indexing="ij")
        natural = jnp.stack([rows, columns, 0.5 + 0.4 * jnp.sin(9 * columns)], axis=-1)
        natural = jnp.clip(natural + 0.05 * jax.random.normal(getkey(), natural.shape), 0, 1)
        flat = [jnp.full_like(natural, value) for value in (0.0, 0.4, 1.0)]
        images = jnp.stack([natural, (natural > 0.5).astype(natural.dtype), *flat])

        @jax.jit
        def gradients(variables, images, cotangent):
            return jax.vjp(models.score_fn(module, variables), images)[1](cotangent)[0]

        of_all = gradients(variables, images, jnp.ones(len(images)))
        assert np.isfinite(of_all).all() and np.abs(of_all[0]).max() > 0 and np.abs(of_all[1]).max() > 0
        of_first = gradients(variables, images, jnp.zeros(len(images)).at[0].set(1.0))
        np.testing.assert_array_equal(of_first[1:], 0)
        np.testing.assert_allclose(of_first[0], of_all[0], atol=1e-5 * np.abs(of_all[0]).max())

    return check


@pytest.fixture
def loaded(tmp_path, config_model, random_variables):
    """(module, variables) of ours with the weights of a torch network, by way of a .pth file."""

    def load(network, name, image_size, **changes):
        import torch

        config = config_model(name, **changes)
        path = tmp_path / "network.pth"
        torch.save(network.state_dict(), path)
        module = models.create(config)
        return module, models.load_weights(random_variables(module, image_size), path, config_model=config)

    return load


@pytest.fixture
def check_start(getkey):
    """Checks that random variables give scores near the middle of the scale, and that all of them learn."""

    def check(module, *, within):
        variables = models.initialize(module, getkey(), 32)
        images = jax.random.uniform(getkey(), (2, 64, 32, 3))

        @jax.jit
        def train(params):
            def total(params):
                scores = module.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)})
                return jnp.sum(scores), scores

            return jax.grad(total, has_aux=True)(params)

        gradients, scores = train(variables["params"])
        np.testing.assert_allclose(scores, 50.0, atol=within)
        assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))

    return check
