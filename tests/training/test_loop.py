"""The training loop: what it writes and when, that a stopped training goes on bit for bit, and what ends one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import TrainingDiverged
from cprl_jax.training.checkpoints import Checkpoints
from cprl_jax.training.loop import fit
from cprl_jax.training.state import TrainState, create_state, moving_average

STEPS, BATCH = 7, 4
OPTIMIZER = optax.adam(0.1)


def make_step(axis_name=None):
    """Adam on the squared error of a linear model, with averaged parameters."""

    def step(state, batch):
        def loss(params):
            return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

        value, gradients = jax.value_and_grad(loss)(state.params)
        if axis_name is not None:
            value, gradients = jax.lax.pmean((value, gradients), axis_name)
        updates, optimizer_state = OPTIMIZER.update(gradients, state.optimizer_state)
        params = optax.apply_updates(state.params, updates)
        new = {"params": params, "batch_stats": {}}
        averaged = moving_average(state.averaged, new, decay=0.5)
        metrics = {"loss": value, "step_seen": state.step}
        return TrainState(state.step + 1, params, {}, optimizer_state, averaged), metrics

    return step


def feed(done, place=parallel.shard):
    """The batches of steps done + 1, ...: functions of the step alone."""
    for step in itertools.count(done):
        generator = np.random.default_rng(step)
        x = generator.normal(size=(BATCH, 3)).astype(np.float32)
        yield place({"x": x, "y": x.sum(axis=1)})


def validate(variables):
    """Best after the fifth step."""
    assert set(variables) == {"params", "batch_stats"}
    weight = float(variables["params"]["w"][0])
    return {"weight": weight, "selection": weight if weight < 0.3 else -weight}


@pytest.fixture(scope="module")
def on_two_devices():
    assert parallel.local_device_count() == 2
    return parallel.map_step(make_step(parallel.AXIS))


@pytest.fixture
def run(on_two_devices):
    def run(folder=None, step_fn=on_two_devices, batches=feed, **options):
        variables = {"params": {"w": jnp.zeros(3)}}
        state = create_state(variables, OPTIMIZER.init(variables["params"]), averaged=True)
        options = dict(name="plain", steps=STEPS, batch_size=BATCH, folder=folder) | options
        return fit(state, step_fn, batches, **options)

    return run


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), tree)


def test_two_devices_train_like_one(run):
    state, rows = run()
    alone, alone_rows = run(step_fn=jax.jit(make_step()), batches=lambda done: feed(done, place=dict))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, alone)
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in alone_rows], rtol=1e-5)
    assert state.step == STEPS and [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step_seen"] for row in rows] == list(range(STEPS)) and rows[-1]["loss"] < rows[0]["loss"]


def test_what_finishes_a_training_happens_once_before_the_last_checkpoint(run, tmp_path):
    def finish(state):
        params = jax.tree.map(lambda leaf: 2 * leaf, state.params)
        return state.replace(averaged={"params": params, "batch_stats": {}}), {"factor": 2.0}

    options = dict(folder=tmp_path, every=3, validate=validate, finish=finish)
    (state, rows), (again, _) = run(**options), run(**options)
    np.testing.assert_array_equal(state.averaged["params"]["w"], 2 * state.params["w"])
    np.testing.assert_array_equal(state.averaged["params"]["w"], again.averaged["params"]["w"])
    assert [row["validation_factor"] for row in rows] == ["", "", "", "", "", "", "2.0"]
    assert float(rows[-1]["validation_weight"]) == state.averaged["params"]["w"][0]


def test_nothing_is_kept_without_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(validate=lambda variables: pytest.fail("there is no checkpoint to choose"))
    assert not list(tmp_path.iterdir())


def test_a_training_in_memory_is_the_kept_one(run, tmp_path):
    (state, rows), (kept, kept_rows) = run(), run(tmp_path)
    assert bits(state) == bits(kept)
    assert [{name: float(value) for name, value in row.items()} for row in kept_rows] == rows
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "metrics.csv", "tensorboard"}


def test_validations_and_checkpoints_come_every_few_steps_and_at_the_end(run, tmp_path):
    judged = []

    def judge(variables):
        judged.append(bits(variables))
        return validate(variables)

    state, rows = run(tmp_path, every=3, validate=judge, columns=("loss", "validation_weight"))
    assert [*rows[0]] == ["step", "loss", "validation_weight", "step_seen"]
    assert [row["step"] for row in rows if row["validation_weight"]] == ["3", "6", "7"]
    assert judged[-1] == bits(dict(state.averaged))
    judged.clear()
    run(tmp_path / "twentieth", steps=41, validate=lambda variables: judged.append(1) or {})  # every third by default
    assert len(judged) == 14
    with Checkpoints(tmp_path / "twentieth" / "checkpoints", read_only=True) as checkpoints:
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (41, None)


def test_the_best_checkpoint_is_that_of_the_highest_selection(run, tmp_path):
    _, rows = run(tmp_path, every=1, validate=validate)
    weights = [float(row["validation_weight"]) for row in rows]
    best = 1 + int(np.argmax([weight if weight < 0.3 else -weight for weight in weights]))
    assert 1 < best < STEPS and "validation_selection" not in rows[0]
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (best, STEPS)
        template = {"averaged": {"params": {"w": jnp.zeros(3)}}}
        averaged = checkpoints.restore(best, template, partial=True)["averaged"]
    assert float(averaged["params"]["w"][0]) == weights[best - 1]


@pytest.fixture(scope="module")
def whole(on_two_devices, tmp_path_factory):
    """A training that was never stopped."""
    variables = {"params": {"w": jnp.zeros(3)}}
    state = create_state(variables, OPTIMIZER.init(variables["params"]), averaged=True)
    folder = tmp_path_factory.mktemp("whole")
    options = dict(name="plain", steps=STEPS, batch_size=BATCH, every=2, validate=validate)
    return folder, bits(fit(state, on_two_devices, feed, folder=folder, **options)[0])


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_a_stopped_training_goes_on_bit_for_bit(run, on_two_devices, whole, tmp_path, stop):
    folder, expected = whole
    calls = []

    def stopping(state, batch):
        calls.append(int(state.step))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return on_two_devices(state, batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stopping, every=2, validate=validate)
    calls.clear()
    state, rows = run(
        tmp_path, lambda *both: calls.append(int(both[0].step)) or on_two_devices(*both), every=2, validate=validate
    )
    assert calls == list(range((stop - 1) // 2 * 2, STEPS))  # from the last checkpoint
    assert bits(state) == expected
    assert (tmp_path / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()
    kept, expected_kept = ({path.name for path in (run / "checkpoints").iterdir()} for run in (tmp_path, folder))
    assert kept == expected_kept
    finished, again = run(tmp_path, None, None)  # a finished one does not train
    assert bits(finished) == expected and again == rows


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_not_finite_ends_the_training_with_its_cause(run, on_two_devices, tmp_path, kept):
    def diverging(state, batch):
        new, metrics = on_two_devices(state, batch)
        wrong = {"loss": jnp.nan, "norm": jnp.inf} if int(new.step) == 5 else {"norm": 1.0}
        return new, metrics | wrong

    with pytest.raises(TrainingDiverged) as error:
        run(tmp_path / "run" if kept else None, diverging, every=3, unit="meta step", advice="Lower the rate.")
    last = " The last checkpoint is of meta step 3." if kept else ""
    assert str(error.value) == f"plain diverged at meta step 5: loss = nan, norm = inf.{last} Lower the rate."
    if kept:
        with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
            assert checkpoints.latest_step() == 3


@pytest.mark.parametrize(
    ("at", "kept", "last"),
    [
        (1, True, ""),
        (3, True, " The last checkpoint is of step 2."),
        (STEPS, True, " The last checkpoint is of step 6."),
    ]
    + [(STEPS, False, "")],
)
def test_an_update_that_is_not_finite_ends_the_training_before_it_is_kept(
    run, on_two_devices, tmp_path, at, kept, last
):
    """The metrics of that step are finite: they are those before its update."""

    def diverging(state, batch):
        new, metrics = on_two_devices(state, batch)
        return (new.replace(params={"w": new.params["w"] * jnp.inf}) if int(new.step) == at else new), metrics

    last = f" The last checkpoint is of step {at - 1}." if kept and at > 1 else ""
    with pytest.raises(TrainingDiverged) as error:
        judge = (lambda variables: pytest.fail("not judged")) if at == 1 else validate
        run(tmp_path if kept else None, diverging, every=1, validate=judge, advice="Lower the rate.")
    assert str(error.value) == f"plain diverged at step {at}: its variables are not finite.{last} Lower the rate."


def test_scores_of_the_validation_that_are_not_finite_end_the_training(run, tmp_path):
    def judge(variables):
        judged.append(1)
        return {"selection": float("nan") if len(judged) == 2 else 0.5}

    judged = []
    with pytest.raises(TrainingDiverged, match=r"at step 4: its scores of the validation .* of step 2\."):
        run(tmp_path, every=2, validate=judge)
