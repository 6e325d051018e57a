"""Networks of cprl_jax in PyTorch, in training: the same layers under the same names, without dropout and masks.

`load` copies our variables into them. The output is that of the last layer: the score is score_mean + score_std *
output.

    python benchmarks/torch_networks.py                                    # EfficientNet-Lite0, 16 images of 160 pixels
    python benchmarks/torch_networks.py --network=squeezenet --size=96

times a training step of a network (L1 loss, Adam) beside eager PyTorch's. The two take turns, so that a change of the
machine's load hits both, and their first losses and gradients must agree. Compilation is not part of a step.
"""

import argparse
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from torch import nn

from cprl_jax import models
from cprl_jax.models.common import IMAGENET
from cprl_jax.models.compact import DETAIL_GAIN, SMALLEST_ENERGY, WIDTHS
from cprl_jax.models.efficientnet_lite import BATCH_NORM_EPSILON, LAST_CHANNELS, POOLED_STAGES, STAGES, STEM_CHANNELS
from cprl_jax.models.metaiqa import CLASSES, HIDDEN
from cprl_jax.models.squeezenet import FIRE_MODULES
from cprl_jax.runtime.memory import keep_freed_memory


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


class SameConv(nn.Conv2d):
    """Padded as TensorFlow pads: the odd pixel after the image."""

    def forward(self, x):
        pads = []
        for pixels, length, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            missing = max(0, (math.ceil(pixels / stride) - 1) * stride + length - pixels)
            pads = [missing // 2, missing - missing // 2, *pads]
        return super().forward(F.pad(x, pads))


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, length, stride, expansion):
        super().__init__()
        inner, self.expands = inputs * expansion, expansion > 1
        if self.expands:
            self.expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(inner, eps=BATCH_NORM_EPSILON)
        self.depthwise_conv = SameConv(inner, inner, length, stride, groups=inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, eps=BATCH_NORM_EPSILON)
        self.project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPSILON)

    def forward(self, x):
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(y)))))
        return y + x if y.shape == x.shape else y


class EfficientNetLite0(nn.Module):
    """`forward` leaves out the last layers of the trunk, which the score does not read."""

    def __init__(self):
        super().__init__()
        trunk = self.backbone = nn.Module()
        trunk.conv_stem = SameConv(3, STEM_CHANNELS, 3, 2, bias=False)
        trunk.bn0 = nn.BatchNorm2d(STEM_CHANNELS, eps=BATCH_NORM_EPSILON)
        channels, number, pooled = STEM_CHANNELS, 0, 0
        self.ends = []  # the last block of each pooled stage
        for stage, (blocks, length, stride, expansion, width) in enumerate(STAGES, start=1):
            for block in range(blocks):
                layer = InvertedResidual(channels, width, length, 1 if block else stride, expansion)
                setattr(trunk, f"block{number}", layer)
                channels, number = width, number + 1
            if stage in POOLED_STAGES:
                self.ends.append(number - 1)
                pooled += 2 * channels
        trunk.conv_head = nn.Conv2d(channels, LAST_CHANNELS, 1, bias=False)
        trunk.bn1 = nn.BatchNorm2d(LAST_CHANNELS, eps=BATCH_NORM_EPSILON)
        self.head_standardization, self.head = Standardization(pooled), nn.Linear(pooled, 1)

    def forward(self, images):
        trunk = self.backbone
        x = F.relu6(trunk.bn0(trunk.conv_stem((images - 0.5) / 0.5)))
        features = []
        for number in range(self.ends[-1] + 1):
            x = getattr(trunk, f"block{number}")(x)
            features += [x.mean((2, 3)), global_std(x)] if number in self.ends else []
        return self.head(self.head_standardization(torch.cat(features, 1)))[:, 0]


NETWORKS = {  # config.model.name and .backbone of ours, and what builds it in PyTorch
    "efficientnet_lite": ("efficientnet_lite", "lite0", EfficientNetLite0),
    "squeezenet": ("squeezenet", "", SqueezeNet),
    "compact": ("compact", "", Compact),
    "resnet18": ("resnet", "resnet18", ResNetWithHead),
}
RATE = 1e-4
TOLERANCE = 0.02  # of the first loss and gradient norm; batch statistics amplify rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="efficientnet_lite")
    parser.add_argument("--batch", type=int, default=16, help="images a step (default 16)")
    parser.add_argument("--size", type=int, default=160, help="height and width of the images (default 160)")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each (default 9)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # of both

    name, variant, build = NETWORKS[arguments.network]
    module = models.NETWORKS[name].module(**({"backbone": variant} if variant else {}))
    variables = models.initialize(module, jax.random.key(0), arguments.size)
    rng = np.random.default_rng(0)
    images = rng.random((arguments.batch, arguments.size, arguments.size, 3), dtype=np.float32)
    targets = rng.normal(size=arguments.batch).astype(np.float32)
    started = time.perf_counter()
    steps = {"cprl_jax": jax_step(module, variables, images, targets)}
    first = {"cprl_jax": steps["cprl_jax"]()}
    compilation = time.perf_counter() - started
    steps["PyTorch"] = torch_step(load(build(), variables), images, targets)
    first["PyTorch"] = steps["PyTorch"]()
    if not np.allclose(*first.values(), rtol=TOLERANCE):
        raise SystemExit(f"the networks differ: first loss and gradient norm {first}")

    times = {row: [] for row in steps}
    for _ in range(arguments.repeats):
        for row, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            times[row].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on CPU with "
        f"{arguments.threads} threads\n{arguments.network}, {arguments.batch} x {arguments.size} x {arguments.size}; "
        f"{arguments.repeats} steps: median (fastest to slowest); compilation {compilation:.0f} s\n\n"
        "| | step ms | processor time ms |\n|---|---:|---:|"
    )
    for row, taken in times.items():
        cells = [
            f"{1e3 * statistics.median(clock):.0f} ({1e3 * min(clock):.0f} to {1e3 * max(clock):.0f})"
            for clock in zip(*taken, strict=True)
        ]
        print(f"| {row} | {' | '.join(cells)} |")
    ratios = [theirs[0] / ours[0] for ours, theirs in zip(times["cprl_jax"], times["PyTorch"], strict=True)]
    print(f"\nPyTorch / cprl_jax, in pairs: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def jax_step(module, variables, images, targets):
    """Makes a training step, which returns the loss and the norm of the gradient."""
    optimizer = optax.adam(RATE)

    def update(params, batch_stats, state, images, targets):
        def loss_of(params):
            scores, updated = module.apply(
                {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.abs(scores - targets)), updated.get("batch_stats", {})

        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), batch_stats, state, loss, optax.global_norm(gradients)

    update = jax.jit(update, donate_argnums=(0, 1, 2))
    params = jax.tree.map(jnp.array, variables["params"])
    carried = [params, jax.tree.map(jnp.array, variables.get("batch_stats", {})), optimizer.init(params)]

    def step():
        *carried[:], loss, norm = jax.block_until_ready(update(*carried, images, targets))
        return float(loss), float(norm)

    return step


def torch_step(network, images, targets):
    """Makes a training step, which returns the loss and the norm of the gradient."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    images = torch.tensor(images).permute(0, 3, 1, 2)  # channels last in memory, which PyTorch is faster with
    targets = torch.tensor(targets)

    def step():
        optimizer.zero_grad()
        loss = (network(images) - targets).abs().mean()
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        optimizer.step()
        return loss.item(), norm.item()

    return step


if __name__ == "__main__":
    main()
