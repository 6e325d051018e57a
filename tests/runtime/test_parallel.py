"""Devices: natural shapes, gradients that do not depend on their number. For several processes see test_launch.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError


class Network(nn.Module):
    """A convolution, batch normalisation over all devices, and a mean: what the real networks are made of."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3))(images)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, momentum=0.9)(x)
        return nn.Dense(1)(nn.relu(x).mean((1, 2)))[:, 0]


def training_step(axis_name):
    network = Network(axis_name)

    def average(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def step(state, batch):
        def loss(params):
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            scores, changes = network.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
            return jnp.mean((scores - batch["mos"]) ** 2), changes["batch_stats"]

        (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(state["params"])
        gradients, value = average((gradients, value))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], gradients)
        state = {"params": params, "batch_stats": batch_stats, "step": state["step"] + 1}
        return state, {"loss": value, "gradients": gradients}

    return step


@pytest.fixture
def state(getkey):
    variables = Network().init(getkey(), jnp.zeros((1, 8, 8, 3)))
    return {**variables, "step": jnp.asarray(0, jnp.int32)}


def batch_of(seed):
    generator = np.random.default_rng(seed)
    return {"image": generator.random((6, 8, 8, 3), np.float32), "mos": generator.random(6, np.float32)}


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64 if leaf.dtype == np.float32 else leaf.dtype), tree)


def assert_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected)


def test_two_devices_compute_what_one_computes(state):
    """In float64, where rounding is far below any other difference: a gradient here is 0 but for rounding."""
    assert parallel.device_count() == parallel.local_device_count() == 2
    with jax.enable_x64(True):
        many, one = parallel.map_step(training_step(parallel.AXIS)), jax.jit(training_step(None))
        state_one = in_float64(state)
        state_many = parallel.replicate(state_one)
        for seed in range(5):
            batch = in_float64(batch_of(seed))
            state_many, metrics_many = many(state_many, parallel.shard(batch))
            state_one, metrics_one = one(state_one, batch)
            assert_close(metrics_many, metrics_one, rtol=1e-10, atol=1e-12)
        assert_close(state_many, state_one, rtol=1e-10, atol=1e-12)
        assert all(leaf.dtype in (np.float64, np.int32) for leaf in jax.tree.leaves((state_many, metrics_many)))
        assert int(state_many["step"]) == 5


def test_state_keeps_its_shapes_and_compiles_once(state):
    compilations = []
    traced = training_step(parallel.AXIS)

    def step(state, batch):
        compilations.append(None)
        return traced(state, batch)

    train_step = parallel.map_step(step)
    first, _ = train_step(parallel.replicate(state), parallel.shard(batch_of(0)))
    second, _ = train_step(first, parallel.shard(batch_of(1)))
    train_step(parallel.replicate(second), parallel.shard(batch_of(2)))
    assert jax.tree.map(jnp.shape, second) == jax.tree.map(jnp.shape, state)
    assert len(compilations) == 1


def test_donated_state_is_lost_to_the_caller_and_other_states_are_not(state):
    train_step = parallel.map_step(training_step(parallel.AXIS))
    before = jax.tree.map(np.array, state)
    replicated = parallel.replicate(state)
    train_step(replicated, parallel.shard(batch_of(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(replicated["params"]))
    train_step(state, parallel.shard(batch_of(0)))
    assert_close(state, before, rtol=0)


def test_without_donation_the_state_can_be_used_again(state):
    train_step = parallel.map_step(training_step(parallel.AXIS), donate=False)
    replicated = parallel.replicate(state)
    first, _ = train_step(replicated, parallel.shard(batch_of(0)))
    second, _ = train_step(replicated, parallel.shard(batch_of(0)))
    assert_close(first, second, rtol=0)


def test_replicate_takes_keys_numpy_and_python_numbers(getkey):
    key = getkey()
    tree = {"key": key, "numpy": np.arange(3, dtype=np.float32), "bfloat16": jnp.ones(2, jnp.bfloat16), "number": 7}
    copy = parallel.replicate(tree)
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(copy))
    np.testing.assert_array_equal(jax.random.key_data(copy["key"]), jax.random.key_data(key))
    assert (copy["number"].dtype, copy["bfloat16"].dtype) == (jnp.int32, jnp.bfloat16)


def test_map_batch_equals_the_plain_function():
    batch = batch_of(0)
    tree = {"weights": jnp.asarray([1.0, 2.0, 3.0]), "radius": 0.5}

    def function(tree, batch):
        return {"score": (batch["image"] @ tree["weights"]).mean((1, 2)) * tree["radius"], "mos": batch["mos"]}

    outputs = parallel.unshard(parallel.map_batch(function)(tree, parallel.shard(batch)))
    assert_close(outputs, function(tree, batch), rtol=1e-6)


def test_shard_and_unshard_are_inverse():
    batch = batch_of(0)
    sharded = parallel.shard(batch)
    assert sharded["image"].shape == (2, 3, 8, 8, 3)
    assert_close(parallel.unshard(sharded), batch, rtol=0)


@pytest.mark.parametrize("leaf", [np.zeros((3, 2)), np.zeros((1, 2)), np.float32(1)])
def test_shard_refuses_what_does_not_divide(leaf):
    with pytest.raises(ValueError, match="multiple of 2"):
        parallel.shard({"leaf": leaf})


def test_the_platform_follows_the_default_device_and_mapped_functions_do_not(monkeypatch):
    assert parallel.platform() == parallel.platform(mapped=True) == "cpu"
    with jax.default_device(jax.devices("cpu")[1]):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert parallel.platform() == "cpu" and parallel.platform(mapped=True) == "gpu"
    assert parallel.platform() == "gpu" and parallel.programs_at_once() == 1


def test_gather_in_one_process():
    values = np.arange(6, dtype=np.float64).reshape(3, 2) + 1e-12
    np.testing.assert_array_equal(parallel.gather(values), values)
    assert parallel.gather(values).dtype == np.float64
    for refused in (np.asarray(["a"]), np.float32(1.0)):
        with pytest.raises(ValueError, match="row numbers"):
            parallel.gather(refused)


def test_one_process_is_its_own_main_process_and_never_waits():
    parallel.initialize()
    assert (parallel.process_index(), parallel.process_count(), parallel.is_main_process()) == (0, 1, True)
    parallel.barrier("nobody else")
    with pytest.raises(UserError, match="mistake"), parallel.cluster():
        raise UserError("mistake")
    assert parallel.lost_peer_message(ValueError("Gloo all-reduce failed: Connection closed by peer")) is None


SLURM_STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({**SLURM_STEP, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({**SLURM_STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({**SLURM_STEP, "SLURM_NTASKS": "8"}, False),  # a batch script or a shell, outside of any step
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a notebook in a pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, True),
        ({"CPRL_JAX_DISTRIBUTED": "1"}, True),
        ({"CPRL_JAX_DISTRIBUTED": "0", "OMPI_COMM_WORLD_SIZE": "4"}, False),
    ],
)
def test_when_other_processes_are_expected(variables, expected):
    assert parallel._has_peers(variables) is expected


def test_what_is_computed_from_uncommitted_variables_compiles_nothing_anew():
    traces = []

    @jax.jit
    def step(weight, x):
        traces.append(1)
        return x * weight

    committed = parallel.replicate({"weight": np.full(3, 2, np.float32)})
    weight = parallel.uncommitted(committed)["weight"]
    assert committed["weight"].committed and not weight.committed
    np.testing.assert_array_equal(weight, committed["weight"])
    x = step(weight, jnp.ones(3))
    assert not x.committed
    np.testing.assert_array_equal(step(weight, x), 4 * np.ones(3))
    assert step._cache_size() == 1 and len(traces) == 1
