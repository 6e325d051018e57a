"""Trainings of Causal-IQA: batches, equal budgets, resuming bit for bit, and what goes wrong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cprl_jax.experiments.causal_iqa.division import divide
from cprl_jax.experiments.causal_iqa.learner import image_loss
from cprl_jax.experiments.causal_iqa.training import Plan, Trainer, group_batches, make_learner, make_plan
from cprl_jax.experiments.causal_iqa.updates import METRICS, compile_step, erm, first_state
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import TrainingDiverged, UserError
from cprl_jax.training.checkpoints import Checkpoints
from cprl_jax.training.setup import start_variables


@pytest.fixture(scope="session")
def division(dataset):
    scene = np.array([int(reference.split()[1]) for reference in dataset.references])
    soft = np.where((scene < 4)[:, None], [0.9, 0.1], [0.2, 0.8])
    return divide(dataset.distortions, soft, rows=np.flatnonzero(scene < 5), smallest=2)


def test_plan_counts_epochs_in_meta_steps(config, division):
    # 5 scenes x 7 images; 'undistorted | content 1' is too small, so there are 7 subsets of 4 images a meta step.
    assert (division.sizes.sum(), len(division.names)) == (35, 7)
    config.causal_iqa.meta_steps, config.causal_iqa.epochs, config.causal_iqa.decay_epochs = 0, 16, 4
    assert make_plan(config, division) == Plan(steps=20, decay_steps=5)
    config.causal_iqa.meta_steps = 3
    assert make_plan(config, division) == Plan(steps=3, decay_steps=5)
    config.causal_iqa.meta_steps, config.causal_iqa.epochs, config.causal_iqa.decay_epochs = 0, 0, 0
    assert make_plan(config, division) == Plan(steps=1, decay_steps=1)


def test_learning_rates_decay_in_steps(config):
    schedule = make_learner(config, Plan(steps=20, decay_steps=5)).schedule
    factors = [float(schedule(jnp.int32(step))) for step in (0, 4, 5, 14, 15)]
    np.testing.assert_allclose(factors, [1, 1, 0.8, 0.64, 0.512], rtol=1e-6)


@pytest.mark.parametrize(
    ("update", "rate", "expected"),
    [("interpolation", 0.25, [1.125, -2.025]), ("interpolation", 1.0, None), ("adam", 0.01, [1.01, -2.01])],
)
def test_the_meta_step_goes_towards_phi(config, update, rate, expected):
    """Interpolation by a share of the way (all of it needs no optimiser), Adam by its rate."""
    config.causal_iqa.meta_update, config.causal_iqa.meta_rate = update, rate
    meta = make_learner(config, Plan(2, 1)).meta
    assert (meta is None) == (expected is None)
    if meta is not None:
        theta, phi = jnp.array([1.0, -2.0]), jnp.array([1.5, -2.1])
        updates, _ = meta.update(theta - phi, meta.init(theta), theta)
        np.testing.assert_allclose(optax.apply_updates(theta, updates), expected, rtol=1e-5)


@pytest.mark.parametrize("update", ["erm", "metaiqa", "cis", "cip"])
def test_batches_are_crops_of_the_images_of_the_division(dataset, division, update):
    batches = group_batches(
        dataset, division, update, groups=8 if update == "metaiqa" else 7, batch_size=4, crop_size=12, seed=1
    )
    again = group_batches(
        dataset, division, update, groups=8 if update == "metaiqa" else 7, batch_size=4, crop_size=12, seed=1
    )
    mirrored = set()
    for index in (0, 6, 50):
        batch = batches[index]
        for name in batch:
            np.testing.assert_array_equal(batch[name], again[index][name])
        assert batch["image"].shape == (4, 12, 12, 3) and batch["image"].dtype == np.uint8
        assert batch["weight"].dtype == batch["mos"].dtype == np.float32
        for image, mos, weight in zip(batch["image"], batch["mos"], batch["weight"], strict=True):
            (row,) = np.flatnonzero(dataset.mos == mos)
            assert division.subsets[row] >= 0
            assert weight == (division.weights[row] if update in ("cis", "cip") else 1)
            found = [
                flip
                for flip in (False, True)
                for top in range(5)
                for left in range(5)
                if np.array_equal(dataset.images[row][top : top + 12, left : left + 12][:, :: -1 if flip else 1], image)
            ]
            assert len(found) == 1
            mirrored |= set(found)
    assert mirrored == {False, True}


def test_processes_share_the_same_batch(dataset, division, monkeypatch):
    make = functools.partial(group_batches, dataset, division, "cis", groups=7, batch_size=4, crop_size=12, seed=1)
    whole = make()[9]
    monkeypatch.setattr(parallel, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(parallel, "process_index", lambda process=process: process)
        part = make()[9]
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][2 * process : 2 * process + 2])


def test_all_updates_see_as_many_images_in_a_meta_step(config, dataset, division, monkeypatch):
    seen = {}

    def step(update):
        def run(state, batch):
            seen[update] = batch["image"].shape
            return state, dict.fromkeys(METRICS, 1.0)

        return run

    trainer = Trainer(config, Plan(2, 1))
    monkeypatch.setattr(trainer, "_step", step)
    variables = start_variables(config, "plain", seed=0)
    for update in ("erm", "metaiqa", "cis", "cip"):
        _, history = trainer.train(update, dataset, division, seed=0, variables=variables)
        assert [row["step"] for row in history] == [1, 2]
    shape = (2, 7, 2, 12, 12, 3)  # devices, subsets, images a device
    assert seen == {"erm": shape, "metaiqa": (2, 8, *shape[2:]), "cis": shape, "cip": shape}


def test_erm_is_plain_training_on_one_batch_after_the_other(config, dataset, division):
    config.causal_iqa.batch_size, config.causal_iqa.batch_norm = 4, "batch"
    variables = start_variables(config, "plain", seed=0)
    batches = group_batches(dataset, division, "erm", groups=3, batch_size=4, crop_size=12, seed=0)
    stacked = {name: np.stack([batches[index][name] for index in range(3)]) for name in batches[0]}
    learner = make_learner(config, Plan(2, 1))
    module = learner.module.clone(axis_name=None)
    alone = dataclasses.replace(learner, module=module, axis_name=None)
    state, _ = compile_step(erm(alone), mapped=False, loop="device")(first_state(variables, alone), stacked)

    optimizer = optax.adam(1e-2, b2=0.9999)
    params, adam = variables["params"], optimizer.init(variables["params"])

    @jax.jit
    def plain_step(params, adam, batch):
        def loss(params):
            images = batch["image"].astype(jnp.float32) / 255.0
            scores, _ = module.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.mean(image_loss(scores, batch["mos"]))

        updates, adam = optimizer.update(jax.grad(loss)(params), adam)
        return optax.apply_updates(params, updates), adam

    for index in range(3):
        params, adam = plain_step(params, adam, batches[index])
    for expected, found in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_stopped_training_goes_on_bit_for_bit(config, dataset, division, tmp_path, monkeypatch):
    config.causal_iqa.meta_update, config.causal_iqa.meta_rate = "adam", 1e-2  # so that there is a meta state as well
    config.causal_iqa.evaluate_every, config.model.dropout = 2, 0.2
    trainer = Trainer(config, Plan(5, 2))
    variables = start_variables(config, "plain", seed=3)
    train = functools.partial(trainer.train, "cis", dataset, division, seed=3, variables=variables)
    expected, rows = train(folder=tmp_path / "whole")
    in_memory, rows_in_memory = train()

    step = trainer._step("cis")
    calls = []

    def stopping(state, batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(state, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_step", lambda update: stopping)
        with pytest.raises(KeyboardInterrupt):
            train(folder=tmp_path / "stopped")
    found, _ = train(folder=tmp_path / "stopped")
    assert (tmp_path / "stopped" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    assert [*rows[0]] == ["step", *METRICS] and len(rows) == 5
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in rows_in_memory]
    monkeypatch.setattr(trainer, "_step", lambda update: None)  # a finished one does not train
    finished, again = train(folder=tmp_path / "whole")
    assert again == rows
    for other in (in_memory, found, finished):
        jax.tree.map(np.testing.assert_array_equal, other, expected)


def test_divergence_names_the_meta_step(config, dataset, division, monkeypatch):
    trainer = Trainer(config, Plan(4, 1))
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(
        trainer, "_step", lambda update: lambda state, batch: (state, {"loss": next(losses, 1.0), "gradient_norm": 2.0})
    )
    with pytest.raises(TrainingDiverged, match=r"^cip, seed 7 diverged at meta step 2: loss = nan. Lower config"):
        trainer.train("cip", dataset, division, seed=7, variables=start_variables(config, "plain", seed=0))


def test_a_batch_that_the_devices_cannot_share(config):
    config.causal_iqa.batch_size = 3
    with pytest.raises(UserError, match="config.causal_iqa.batch_size is 3; it must be a multiple of 2"):
        Trainer(config, Plan(2, 1))


def test_a_run_of_an_earlier_version_is_refused_in_one_sentence(config, dataset, division, tmp_path):
    """Its checkpoints had two fields of optimiser states in the place of one."""
    trainer, variables = Trainer(config, Plan(2, 1)), start_variables(config, "plain", seed=0)
    old = {"step": np.int32(1), **variables, "inner_optimizer_state": {}, "meta_optimizer_state": {}}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, old)
    with pytest.raises(UserError, match="has no optimizer_state/inner.* use the configuration .* another --workdir"):
        trainer.train("cis", dataset, division, seed=0, variables=variables, folder=tmp_path)
