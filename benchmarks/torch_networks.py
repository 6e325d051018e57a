"""Networks of cprl_jax in PyTorch, in training: the same layers under the same names, without dropout and masks.

`load` copies our variables into them. The output is that of the last layer: the score is score_mean + score_std *
output.
"""

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cprl_jax.models.common import IMAGENET
from cprl_jax.models.compact import DETAIL_GAIN, SMALLEST_ENERGY, WIDTHS
from cprl_jax.models.metaiqa import CLASSES, HIDDEN
from cprl_jax.models.squeezenet import FIRE_MODULES


def load(network: nn.Module, variables) -> nn.Module:
    """Puts our variables into the network; all of them must fit, and none of its own may be left."""
    renamed = {"kernel": "weight", "scale": "weight", "slope": "weight", "mean": "running_mean", "var": "running_var"}
    known, state = network.state_dict(), {}
    for collection in ("params", "batch_stats"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables.get(collection, {})):
            *place, name = (step.key for step in path)
            key = ".".join([*place, name])
            value = np.asarray(leaf)
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            state[key if key in known else ".".join([*place, renamed.get(name, name)])] = torch.tensor(value)
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(f"the networks differ: {missing} are missing, {unexpected} are not known")
    return network


class InputNormalization(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET.mean))
        self.register_buffer("std", torch.tensor(IMAGENET.std))

    def forward(self, images):
        return (images - self.mean.reshape(1, 3, 1, 1)) / self.std.reshape(1, 3, 1, 1)


def global_std(x):
    return torch.sqrt(((x - x.mean((2, 3), keepdim=True)) ** 2).mean((2, 3)) + 1e-4)


class Compact(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        channels = 3
        for stage, width in enumerate(WIDTHS, start=1):
            for index, stride in enumerate((2, 1), start=1):
                convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
                setattr(self.backbone, f"stage{stage}_conv{index}", convolution)
                setattr(self.backbone, f"stage{stage}_conv{index}_norm", nn.BatchNorm2d(width))
                channels = width
        features = 3 + 2 * sum(WIDTHS)
        self.head_norm, self.head_hidden = nn.BatchNorm1d(features), nn.Linear(features, 64)
        self.head = nn.Linear(64, 1)

    def forward(self, images):
        x = DETAIL_GAIN * (images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1))
        energies = [4.0 * global_std(images)]
        for stage in range(1, len(WIDTHS) + 1):
            for index in (1, 2):
                name = f"stage{stage}_conv{index}"
                x = F.silu(getattr(self.backbone, f"{name}_norm")(getattr(self.backbone, name)(x)))
            energies += [torch.sqrt((x**2).mean((2, 3)) + 1e-4), global_std(x)]
        features = self.head_norm(torch.log(torch.cat(energies, 1) + SMALLEST_ENERGY))
        return self.head(F.silu(self.head_hidden(features)))[:, 0]


class Fire(nn.Module):
    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze1x1(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class Standardization(nn.Module):
    """Ours in training, see cprl_jax.models.common.Standardization."""

    def __init__(self, features, batches=50):
        super().__init__()
        self.batches = batches
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        with torch.no_grad():
            batch_mean, batch_variance = x.mean(0), x.var(0, unbiased=False)
            first = self.count == 0
            mean = torch.where(first, batch_mean, self.mean)
            variance = torch.where(first, batch_variance, self.variance)
            share = torch.where(self.count < self.batches, 1 / (self.count + 1), 0.0)
            change = batch_mean - self.mean
            self.variance += share * (batch_variance - self.variance + (1 - share) * change**2)
            self.mean += share * change
            self.count += share > 0
            scale = torch.rsqrt((variance + 1e-3 * variance.mean() + 1e-12) * len(variance))
        return (x - mean) * scale


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.input, self.backbone.conv1 = InputNormalization(), nn.Conv2d(3, 64, 3, 2)
        channels, pooled = 64, 0
        for stage, modules in enumerate(FIRE_MODULES, start=1):
            for number, squeeze, expand in modules:
                setattr(self.backbone, f"fire{number}", Fire(channels, squeeze, expand))
                channels = 2 * expand
            pooled += 2 * channels if stage > 1 else 0
        self.head_standardization, self.head = Standardization(pooled), nn.Linear(pooled, 1)

    def forward(self, images):
        x = F.relu(self.backbone.conv1(self.backbone.input(images)))
        features = []
        for stage, modules in enumerate(FIRE_MODULES, start=1):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            for number, *_ in modules:
                x = getattr(self.backbone, f"fire{number}")(x)
            features += [x.mean((2, 3)), global_std(x)] if stage > 1 else []
        return self.head(self.head_standardization(torch.cat(features, 1)))[:, 0]


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortened = stride > 1 or inputs != outputs
        if self.shortened:
            self.downsample_conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample_bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample_bn(self.downsample_conv(x)) if self.shortened else x))


class ResNet18(nn.Module):
    """The means over all pixels of the last stage of a ResNet-18."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            for block in range(2):
                stride = 2 if stage > 1 and block == 0 else 1
                setattr(self, f"layer{stage}_{block}", ResidualBlock(channels, width, stride))
                channels = width
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in IMAGENET)
        self.register_buffer("input_mean", mean, persistent=False)
        self.register_buffer("input_std", std, persistent=False)

    def forward(self, images):
        x = F.relu(self.bn1(self.conv1((images - self.input_mean) / self.input_std)))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}_1")(getattr(self, f"layer{stage}_0")(x))
        return x.mean((2, 3))


class ResNetWithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = ResNet18(), nn.Linear(512, 1)

    def forward(self, images):
        return self.head(self.backbone(images))[:, 0]


class MetaIQA(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.resnet, self.backbone.fc = ResNet18(), nn.Linear(512, CLASSES)
        features = CLASSES
        for number, width in enumerate(HIDDEN, start=1):
            setattr(self, f"fc{number}", nn.Linear(features, width))
            setattr(self, f"bn{number}", nn.BatchNorm1d(width))
            setattr(self, f"relu{number}", nn.PReLU())
            features = width
        self.fc3 = nn.Linear(features, 1)

    def forward(self, images):
        x = self.backbone.fc(self.backbone.resnet(images))
        for number in range(1, len(HIDDEN) + 1):
            x = getattr(self, f"relu{number}")(getattr(self, f"bn{number}")(getattr(self, f"fc{number}")(x)))
        return torch.sigmoid(self.fc3(x))[:, 0]
