"""Images per second of projected gradient ascent: ours, foolbox's in JAX, and the same loop in eager PyTorch.

    python benchmarks/attacks.py                                   # ResNet-18, 16 images of 224 x 224, 10 steps
    python benchmarks/attacks.py --batch 2 --size 64 --repeats 3   # a quick look

Needs torch, and foolbox for its row. The network has one output and random weights, the same in every row, and every
row takes the same steps: l-inf radius 4/255, a quarter of it per step, no random start, float32. foolbox is given the
score function compiled, and its loss overridden for a score. The rows take turns, so that a change of the machine's
load affects all of them. Before that, each runs once: compilation is not counted, and the scores must agree.
"""

import argparse
import functools
import statistics
import time

import jax
import numpy as np
import torch
from torch import nn

from cprl_jax import attacks, models
from cprl_jax.models.resnet import ResNetScore
from cprl_jax.runtime.memory import keep_freed_memory

RADIUS = 4 / 255
STEP_SIZE = RADIUS / 4
# The directions of steps jump with the sign of the gradient, where rounding decides: the rows drift apart a little.
TOLERANCE = 0.05  # relative to the mean change of the scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images at once (default 16)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images (default 224)")
    parser.add_argument("--steps", type=int, default=10, help="gradient steps of an attack (default 10)")
    parser.add_argument("--repeats", type=int, default=7, help="timed attacks of each row (default 7)")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts this process's processor time only: for a busy machine",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # for all rows alike

    images = np.random.default_rng(0).random((arguments.batch, arguments.size, arguments.size, 3), dtype=np.float32)
    module = ResNetScore("resnet18")
    variables = models.initialize(module, jax.random.key(0), arguments.size)
    score_fn = models.score_fn(module, variables)
    network = TorchResNet18().load(variables)
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on CPU with "
        f"{arguments.threads} threads\nResNet-18, {arguments.batch} x {arguments.size} x {arguments.size}, "
        f"{arguments.steps} steps\n"
    )
    print_table(
        {
            "cprl_jax": ours(score_fn, images, arguments.steps),
            "cprl_jax inside jax.jit": ours_compiled(score_fn, images, arguments.steps),
            "foolbox, JAX": foolbox_jax(score_fn, images, arguments.steps),
            "PyTorch, eager": eager_torch(network, images, arguments.steps),
        },
        arguments,
    )


# Each row is a function without arguments that attacks the images and returns the scores, ready.


def ours(score_fn, images, steps):
    def attack():
        result = attacks.pgd(score_fn, images, radius=RADIUS, step_size=STEP_SIZE, steps=steps, direction=attacks.up())
        return jax.block_until_ready(result).after

    return attack


def ours_compiled(score_fn, images, steps):
    @jax.jit
    def compiled(score_fn, images):
        return attacks.pgd(score_fn, images, radius=RADIUS, step_size=STEP_SIZE, steps=steps, direction=attacks.up())

    return lambda: jax.block_until_ready(compiled(score_fn, images)).after


def foolbox_jax(score_fn, images, steps):
    try:
        import eagerpy
        import foolbox
    except ImportError:
        return None

    class ScoreAttack(foolbox.attacks.LinfPGD):
        def get_loss_fn(self, model, labels):
            return lambda inputs: eagerpy.astensor(model(inputs.raw)).sum()

    # The weights are arguments, as in our rows: as constants they would take XLA minutes to fold.
    evaluate = functools.partial(jax.jit(lambda score_fn, images: score_fn(images)), score_fn)
    model, images = foolbox.JAXModel(evaluate, bounds=(0, 1)), jax.numpy.asarray(images)
    criterion = foolbox.criteria.Misclassification(jax.numpy.zeros(len(images), int))
    attack = ScoreAttack(abs_stepsize=STEP_SIZE, steps=steps, random_start=False)
    return lambda: jax.block_until_ready(evaluate(attack.run(model, images, criterion, epsilon=RADIUS)))


def eager_torch(network, images, steps):
    original = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    lower, upper = (original - RADIUS).clamp(min=0), (original + RADIUS).clamp(max=1)

    def attack():
        attacked = original
        for _ in range(steps):
            attacked = attacked.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(network(attacked).sum(), attacked)
            attacked = torch.clamp(attacked.detach() + STEP_SIZE * gradient.sign(), lower, upper)
        with torch.no_grad():
            return network(attacked).numpy()

    return attack


class TorchResNet18(nn.Module):
    """torchvision's ResNet-18 with one output, in evaluation mode, and with the normalisation of its input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for stage, (inside, outside) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], start=1):
            blocks = nn.Sequential(TorchBlock(inside, outside, 1 if stage == 1 else 2), TorchBlock(outside, outside, 1))
            setattr(self, f"layer{stage}", blocks)
        self.fc = nn.Linear(512, 1)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1((x - self.mean) / self.std))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))[:, 0]

    def load(self, variables) -> "TorchResNet18":
        """Takes the weights over, and returns the network."""
        state = {}
        for collection in ("params", "batch_stats"):
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables[collection]):
                value = np.asarray(leaf)
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
                state[models.NETWORKS["resnet"].torch_names.key([step.key for step in path])] = torch.from_numpy(
                    value.copy()
                )
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.endswith(("num_batches_tracked", "mean", "std"))]
        if missing or unexpected:
            raise ValueError(f"the networks differ: {missing} are missing, {unexpected} are not known.")
        return self.eval().requires_grad_(False)


class TorchBlock(nn.Module):
    """Two 3x3 convolutions beside the input."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + (x if self.downsample is None else self.downsample(x)))


def print_table(rows, arguments) -> None:
    """Runs the rows alternately and prints their medians as a Markdown table; times are relative to the first row."""
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    for name in [name for name, attack in rows.items() if attack is None]:
        print(f"({name}: not installed)\n")
        del rows[name]
    scores = {name: np.asarray(attack()) for name, attack in rows.items()}  # the first call compiles
    first, *others = scores.items()
    for name, values in others:
        if np.abs(values - first[1]).mean() > TOLERANCE * np.abs(first[1]).mean():
            raise SystemExit(f"{name} and {first[0]} do not do the same: scores {values} and {first[1]}")
    times = {name: [] for name in rows}
    for _ in range(arguments.repeats):
        for name, attack in rows.items():
            start = clock()
            attack()
            times[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    yardstick = medians[first[0]]
    print("| | images/s | median s | fastest s | time relative to ours |\n|---|---:|---:|---:|---:|")
    for name, median in medians.items():
        print(
            f"| {name} | {arguments.batch / median:.2f} | {median:.3f} | {min(times[name]):.3f} "
            f"| {median / yardstick:.2f} |"
        )


if __name__ == "__main__":
    main()
