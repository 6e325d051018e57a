"""Checkpoints: exact, the best beside the last, and safe from being killed."""

import errno
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import struct

from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.checkpoints import Checkpoints


class State(struct.PyTreeNode):
    step: jax.Array
    params: dict
    batch_stats: dict
    optimizer: optax.OptState


def make_state(key, *, step=0):
    keys = jax.random.split(key, 2)
    params = {
        "backbone": {"conv": {"kernel": jax.random.normal(keys[0], (3, 3, 3, 4)), "bias": jnp.zeros(4)}},
        "head": {"half": jax.random.normal(keys[1], (5,), jnp.bfloat16), "empty": jnp.zeros((0, 2))},
    }
    return State(
        step=jnp.asarray(step, jnp.int32), params=params, batch_stats={}, optimizer=optax.adam(1e-3).init(params)
    )


def bits(leaf):
    leaf = np.asarray(leaf)
    return leaf.dtype, leaf.shape, leaf.tobytes()


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert jax.tree.map(bits, actual) == jax.tree.map(bits, expected)


def kept(folder):
    return sorted(int(entry.name) for entry in folder.iterdir())


def test_restores_bit_for_bit(tmp_path, getkey):
    state = make_state(getkey(), step=40)
    with Checkpoints(tmp_path / "new" / "folder") as checkpoints:
        assert checkpoints.latest_step() is checkpoints.best_step() is None
        checkpoints.save(40, parallel.replicate(state))
    with Checkpoints(tmp_path / "new" / "folder") as checkpoints:
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (40, None)
        restored = checkpoints.restore(40, jax.eval_shape(lambda: state))
    assert_identical(restored, state)
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(restored))


def test_keeps_the_best_beside_the_latest_also_over_a_restart(tmp_path):
    state = {"weights": jnp.arange(3.0)}
    metrics = {10: 0.5, 20: 0.7, 30: None, 40: 0.6, 50: float("nan"), 60: 0.7, 70: 0.1}
    expected = {10: [10], 20: [20], 30: [20, 30], 40: [20, 40], 50: [20, 50], 60: [60], 70: [60, 70]}
    for step, metric in metrics.items():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(step, state, metric)
            assert checkpoints.latest_step() == step
            assert checkpoints.best_step() == expected[step][0]
        assert kept(tmp_path) == expected[step]


def test_without_any_metric_only_the_latest_stays(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"weights": jnp.zeros(2)})
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (3, None)
    assert kept(tmp_path) == [3]


def test_partial_template(tmp_path, getkey):
    state = make_state(getkey())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        part = checkpoints.restore(1, {"params": state.params}, partial=True)
        assert_identical(part, {"params": state.params})
        with pytest.raises(UserError, match="has no params/extra, but this configuration needs params/extra"):
            checkpoints.restore(1, {"params": {"extra": jnp.zeros(2)}}, partial=True)


def test_other_tools_read_it_too(tmp_path, getkey):
    state = make_state(getkey())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "1" / "state")
    assert_identical(tree["params"]["backbone"], jax.tree.map(np.asarray, state.params["backbone"]))


WEIGHTS = {"a": {"kernel": jnp.zeros((3, 4))}, "step": jnp.asarray(0)}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({**WEIGHTS, "a": {"kernel": jnp.zeros((3, 5))}}, r"has a/kernel as float32\[3,4\].*as float32\[3,5\]"),
        ({**WEIGHTS, "a": {"kernel": jnp.zeros((3, 4), jnp.bfloat16)}}, r"needs a/kernel as bfloat16\[3,4\]"),
        ({**WEIGHTS, "step": jnp.asarray(0.0)}, r"has step as int32\[\].*step as float32\[\]"),
        ({**WEIGHTS, "b": jnp.zeros(2)}, r"has no b, but .* needs b as float32\[2\]"),
        ({"a": WEIGHTS["a"]}, r"has step as int32\[\], but .* needs no step"),
        ({**WEIGHTS, "step": jax.random.key(0)}, r"needs step as key<fry>\[\]"),
    ],
)
def test_names_the_first_difference_to_the_template(tmp_path, template, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, WEIGHTS)
        with pytest.raises(UserError, match=message) as error:
            checkpoints.restore(1, template)
    assert "--workdir" in str(error.value) and "\n" not in str(error.value)


def test_missing_steps_and_folders(tmp_path):
    with pytest.raises(UserError, match="no checkpoint directory .*absent.*train first"):
        Checkpoints(tmp_path / "absent", read_only=True)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="no checkpoint of step 3; there is none yet"):
            checkpoints.restore(3, WEIGHTS)
        checkpoints.save(5, WEIGHTS)
        with pytest.raises(ValueError, match="step 5 cannot be saved after step 5"):
            checkpoints.save(5, WEIGHTS)
        with pytest.raises(UserError, match="there is 5"):
            checkpoints.restore(3, WEIGHTS)


@pytest.mark.parametrize(  # without metrics it may be a half-deleted one, see below
    ("what", "wrong"),
    [(what, wrong) for what in ("state", "metadata", "metrics") for wrong in ("cut short", "empty", "gone")][:-1],
)
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path, what, wrong):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, WEIGHTS, 0.5)
    for path in (tmp_path / "5" / what).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if wrong == "cut short" else 0])
            if wrong == "gone":
                path.unlink()

    def read():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.best_step()
            checkpoints.restore(5, WEIGHTS)

    with pytest.raises(UserError, match=rf"the checkpoint {tmp_path}\S* is damaged .*; put back a copy, or") as error:
        read()
    assert "\n" not in str(error.value)


def test_a_value_that_has_changed_on_the_disk_is_found(tmp_path):
    state = {"kernel": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state)
    found = 0
    for path in filter(Path.is_file, (tmp_path / "5" / "state").rglob("*")):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 5)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
            with Checkpoints(tmp_path) as checkpoints:
                try:
                    assert_identical(checkpoints.restore(5, state), state)  # a place that nothing is read from
                except UserError as error:
                    assert "is damaged" in str(error)
                    found += 1
        path.write_bytes(content)
    assert found > 3


def test_the_best_one_is_not_to_be_deleted_alone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, WEIGHTS, 0.5)
        checkpoints.save(6, WEIGHTS, 0.1)
        (tmp_path / "5" / "metadata" / "metadata").write_text("")
        remedy = rf"5 is damaged .*evaluation\.checkpoint=last .*, or delete {tmp_path} to train again"
        with pytest.raises(UserError, match=remedy):
            checkpoints.restore(5, WEIGHTS)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Gloo AllGather failed: Connection closed by peer"),
        OSError(errno.ENOSPC, "no space"),
        PermissionError(errno.EACCES, "denied", "file"),
        MemoryError(),
    ],
    ids=["lost peer", "full disk", "not allowed", "no memory"],
)
def test_what_the_machine_does_is_no_damage_of_a_checkpoint(tmp_path, monkeypatch, error):
    def restore(*arguments, **options):
        raise error

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, WEIGHTS)
        monkeypatch.setattr(checkpoints._manager, "restore", restore)
        monkeypatch.setattr("cprl_jax.runtime.parallel.process_count", lambda: 2)
        with pytest.raises(type(error)) as raised:
            checkpoints.restore(5, WEIGHTS)
    assert raised.value is error


def test_reading_beside_a_run_changes_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, WEIGHTS)
    unfinished = tmp_path / "6.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 5
        with pytest.raises(ValueError, match="read_only"):
            checkpoints.save(6, WEIGHTS)
    assert unfinished.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 5
        # Orbax clears up on a thread of its own, which need not have come to it yet.
        deadline = time.monotonic() + 60
        while unfinished.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not unfinished.exists()


@pytest.mark.parametrize("fraction", [0.3, 0.6, 1.0])
def test_a_half_deleted_older_checkpoint_does_no_harm(tmp_path, fraction):
    """What is left of it when a run is killed while Orbax removes a checkpoint that is no longer needed."""
    with Checkpoints(tmp_path / "other") as checkpoints:
        checkpoints.save(10, WEIGHTS, 0.3)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(20, WEIGHTS, 0.5)
    remains = tmp_path / "run" / "10"
    (tmp_path / "other" / "10").rename(remains)
    files = [path for path in sorted(remains.rglob("*")) if path.is_file()]
    for path in random.Random(0).sample(files, int(fraction * len(files))):
        path.unlink()
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == checkpoints.best_step() == 20
        checkpoints.save(30, WEIGHTS, 0.4)
    assert kept(tmp_path / "run") == [20, 30]


SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from cprl_jax.training.checkpoints import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range((checkpoints.latest_step() or 0) + 1, 10_000):
        state = {str(i): jnp.full((32, 32), step) for i in range(20)}
        print(step, flush=True)
        checkpoints.save(step, state, metric=step % 5)
"""


def test_killed_while_saving(tmp_path):
    """Whatever the moment, a whole checkpoint is there afterwards: the one being saved, or the one before it."""
    template = {str(i): jnp.zeros((32, 32), jnp.int32) for i in range(20)}
    for delay in (0.05, 0.2):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, tmp_path],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            started = [int(next(process.stdout)) for _ in range(3)]
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            started += [int(line) for line in process.stdout]
        with Checkpoints(tmp_path) as checkpoints:
            latest = checkpoints.latest_step()
            assert latest in (started[-1] - 1, started[-1])
            for step in (latest, checkpoints.best_step()):
                state = checkpoints.restore(step, template)
                assert all(np.all(np.asarray(leaf) == step) for leaf in state.values())
