import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial
from PIL import Image

from cprl_jax import attacks
from cprl_jax.attacks.universal import UniversalPerturbation, universal


def images_of(batch=2, height=6, width=5, seed=0):
    images = np.random.default_rng(seed).random((batch, height, width, 3), dtype=np.float32)
    images[:, 0, 0], images[:, -1, -1] = 0, 1
    return images


def network(weights, images):
    hidden = jax.lax.conv_general_dilated(
        images - 0.5, weights["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.einsum("bhwc,c->b", jnp.tanh(hidden), weights["head"])


RNG = np.random.default_rng(3)
WEIGHTS = {"kernel": RNG.normal(size=(3, 3, 3, 4)).astype(np.float32), "head": RNG.normal(size=4).astype(np.float32)}
SCORE = Partial(network, WEIGHTS)
PATTERN = UniversalPerturbation(
    jnp.asarray(RNG.uniform(-0.1, 0.1, (4, 3, 3)).astype(np.float32)), jnp.asarray(np.float32(0.1))
)


def tiled(pattern, height, width):
    """One value at a time."""
    rows, columns = pattern.shape[:2]
    return np.array([[pattern[i % rows, j % columns] for j in range(width)] for i in range(height)])


# What it finds


def test_linear_score_reaches_the_known_optimum():
    weights = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
    batches = [0.3 + 0.4 * images_of(seed=seed) for seed in range(3)]  # away from 0 and 1
    perturbation = universal(
        lambda x: jnp.einsum("bhwc,hwc->b", x, weights), batches, radius=0.1, direction=attacks.down()
    )
    np.testing.assert_allclose(perturbation.pattern, -0.1 * np.sign(weights), rtol=1e-6)  # 15 steps of a tenth
    np.testing.assert_allclose(perturbation.radius, 0.1, rtol=1e-6)


def test_a_small_pattern_gets_the_gradient_of_all_its_copies():
    weights = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
    perturbation = universal(
        lambda x: jnp.einsum("bhwc,hwc->b", x, weights),
        [0.3 + 0.4 * images_of()],
        radius=1.0,
        step_size=1e-3,
        step="gradient",
        epochs=1,
        size=(4, 3),
    )
    expected = np.zeros((4, 3, 3))
    for i in range(6):
        for j in range(5):
            expected[i % 4, j % 3] += weights[i, j]
    np.testing.assert_allclose(perturbation.pattern, 1e-3 * expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("step", ["sign", "gradient"])
def test_equals_pytorch(step):
    batches = [images_of(seed=seed).astype(np.float64) for seed in range(3)]
    radius, step_size = 0.03, 0.011
    kernel = torch.tensor(WEIGHTS["kernel"].transpose(3, 2, 0, 1).copy(), dtype=torch.float64)
    head = torch.tensor(WEIGHTS["head"], dtype=torch.float64).reshape(1, -1, 1, 1)
    rng = np.random.default_rng(5)
    start = rng.uniform(-radius, radius, (6, 5, 3))
    pattern = torch.tensor(start.transpose(2, 0, 1)[None].copy())
    for _ in range(2):
        for batch in batches:
            pattern.requires_grad_(True)
            images = torch.clamp(torch.tensor(batch.transpose(0, 3, 1, 2).copy()) + pattern, 0, 1)
            score = (torch.tanh(torch.nn.functional.conv2d(images - 0.5, kernel, padding=1)) * head).sum((1, 2, 3))
            (gradient,) = torch.autograd.grad(score.mean(), pattern)
            gradient = gradient.sign() if step == "sign" else gradient
            pattern = torch.clamp(pattern.detach() + step_size * gradient, -radius, radius)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        # The same start as over there.
        patch.setattr(jax.random, "uniform", lambda *_: jnp.asarray(start))
        double = Partial(network, {name: value.astype(np.float64) for name, value in WEIGHTS.items()})
        perturbation = universal(
            double, batches, radius=radius, step_size=step_size, step=step, epochs=2, key=jax.random.key(0)
        )
        assert perturbation.pattern.dtype == np.float64
    np.testing.assert_allclose(perturbation.pattern, pattern.numpy()[0].transpose(1, 2, 0), atol=1e-12)


@pytest.mark.parametrize("direction", [None, attacks.down(), attacks.target_free(mid=0.0)])
def test_moves_unseen_images_too(direction):
    batches = [images_of(batch=4, seed=seed) for seed in range(4)]
    perturbation = universal(SCORE, batches, radius=0.05, direction=direction)
    result = perturbation.attack(SCORE, images_of(batch=8, seed=99))
    gain = np.asarray(result.after - result.before)
    if direction is None:
        assert np.all(gain > 0)
    elif direction.func is attacks.down().func:
        assert np.all(gain < 0)


def test_batches_may_come_in_any_way_and_size():
    batches = [images_of(), images_of(batch=1, seed=1)]
    expected = universal(SCORE, batches, radius=0.05, epochs=2)
    for form in (tuple(batches), lambda: iter(batches), [jnp.asarray(batch) for batch in batches]):
        np.testing.assert_array_equal(universal(SCORE, form, radius=0.05, epochs=2).pattern, expected.pattern)
    once = universal(SCORE, iter(batches), radius=0.05, epochs=1)
    np.testing.assert_array_equal(once.pattern, universal(SCORE, batches, radius=0.05, epochs=1).pattern)
    mixed = universal(SCORE, [images_of(), images_of(height=9, width=4)], radius=0.05, epochs=2, size=4)
    assert mixed.pattern.shape == (4, 4, 3) and np.any(mixed.pattern)


def test_pattern_stays_within_its_radius_exactly():
    for radius in (1 / 255, 0.1, 1 / 3):
        perturbation = universal(SCORE, [images_of()], radius=radius, step_size=1.0, key=jax.random.key(0))
        assert np.abs(np.asarray(perturbation.pattern, np.float64)).max() <= radius
        assert np.abs(perturbation.pattern).max() > 0.99 * radius


def test_the_start_depends_on_the_key_only():
    arguments = dict(radius=0.05, epochs=1, step_size=0.0)
    first = universal(SCORE, [images_of()], key=jax.random.key(1), **arguments)
    again = universal(SCORE, [images_of(seed=4)], key=jax.random.key(1), **arguments)
    other = universal(SCORE, [images_of()], key=jax.random.key(2), **arguments)
    np.testing.assert_array_equal(first.pattern, again.pattern)
    assert np.all(np.asarray(first.pattern) != np.asarray(other.pattern))
    assert not np.any(universal(SCORE, [images_of()], **arguments).pattern)


def test_a_direction_with_no_gradient_at_zero_needs_the_key():
    def change(scores, clean_scores):
        return (scores - clean_scores) ** 2

    # Sums of whole numbers of 64ths are exact in any order, so that equal images have equal scores to the last bit.
    rng = np.random.default_rng(0)
    images = (rng.integers(16, 49, (2, 6, 5, 3)) / 64).astype(np.float32)
    weights = rng.integers(-4, 5, (6, 5, 3)).astype(np.float32)

    def score(images):
        return jnp.einsum("bhwc,hwc->b", images, weights)

    with pytest.warns(UserWarning, match="2 of 2 images"):
        stuck = universal(score, [images], radius=0.05, direction=change)
    assert not np.any(stuck.pattern)
    perturbation = universal(score, [images], radius=0.05, direction=change, key=jax.random.key(0))
    result = perturbation.attack(score, images)
    assert np.all(np.abs(result.after - result.before) > 1)


def test_away_takes_the_way_that_goes_farther():
    def bent(images):  # falls more steeply than it rises
        return jnp.minimum(means := jnp.mean(images, axis=(1, 2, 3)) - 0.5, 3 * means)

    batches = [jnp.full((2, 4, 4, 3), 0.5)]
    for score_fn, sign in ((bent, -1), (lambda images: bent(1 - images), 1)):
        perturbation = universal(score_fn, batches, radius=0.1, epochs=10, direction=attacks.away())
        np.testing.assert_allclose(perturbation.pattern, np.full((4, 4, 3), sign * 0.1), rtol=1e-5)
    with pytest.raises(ValueError, match="several times"):
        universal(bent, iter(batches), radius=0.1, epochs=1, direction=attacks.away())


def test_one_image_without_a_number_does_not_spoil_the_others():
    def score(images):
        return jnp.array([jnp.nan, 1.0]) * jnp.mean(images, axis=(1, 2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        perturbation = universal(score, [0.3 + 0.4 * images_of()], radius=0.05)
    assert np.all(perturbation.pattern > 0)


def test_constant_score_leaves_nothing_and_says_so():
    with pytest.warns(UserWarning, match="no gradient"):
        perturbation = universal(lambda x: jnp.zeros(2), [images_of()], radius=0.1)
    np.testing.assert_array_equal(perturbation.pattern, np.zeros((6, 5, 3)))


def test_it_is_constant_for_differentiation():
    def total(images):
        perturbation = universal(SCORE, [images], radius=0.05, epochs=1, key=jax.random.key(0))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((perturbation, perturbation.attack(SCORE, images))))

    np.testing.assert_array_equal(jax.grad(total)(images_of()), np.zeros((2, 6, 5, 3)))


def test_compiles_once_for_all_batches_and_calls():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return network(weights, images)

    for seed in range(2):
        weights = {**WEIGHTS, "head": WEIGHTS["head"] + seed}
        universal(Partial(counted, weights), [images_of(seed=s) for s in range(3)], radius=0.01 * (seed + 1))
    assert len(traces) == 2  # the perturbed scores, and the clean ones, which are not computed


def test_progress_bar_counts_batches(capfd):
    universal(SCORE, [images_of()] * 3, radius=0.05, epochs=2, progress=True)
    assert "universal: 6batch" in capfd.readouterr().err
    universal(SCORE, [images_of()] * 3, radius=0.05, epochs=2)
    assert capfd.readouterr().err == ""


# How it is applied


@pytest.mark.parametrize("size", [(4, 3), (9, 8), (2, 2), (1, 7)])
def test_apply_tiles_from_the_top_left(size):
    images = images_of(3, *size)
    attacked = PATTERN.apply(images)
    expected = np.clip(images + tiled(np.asarray(PATTERN.pattern), *size), 0, 1)
    np.testing.assert_allclose(attacked, expected, atol=1e-7)


def test_apply_rescales_as_published():
    images, amplitudes = images_of(4), np.array([0.02, 0.04, 0.06, 0.08])
    pattern = tiled(np.asarray(PATTERN.pattern), 6, 5)
    attacked = PATTERN.apply(images, amplitudes)
    for i, amplitude in enumerate(amplitudes):
        np.testing.assert_allclose(attacked[i], np.clip(images[i] + pattern * 10 * amplitude, 0, 1), atol=1e-7)
    np.testing.assert_array_equal(PATTERN.apply(images, 0.04)[1], attacked[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_apply_keeps_radius_and_range_exactly(dtype):
    images = images_of(3, 9, 8).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        for radius in (0.5 / 255, 4 / 255, 0.1, 1 / 3):
            attacked = PATTERN.apply(images, radius)
            assert attacked.dtype == dtype
            exact = np.asarray(attacked, np.float64)
            assert np.abs(exact - images.astype(np.float64)).max() <= radius
            assert exact.min() >= 0 and exact.max() <= 1
            assert np.abs(exact - images).max() > 0.8 * radius


def test_radius_zero_gives_the_images_back_bit_for_bit():
    images = images_of()
    images[0, 1, 1] = [-0.0, 1e-40, np.nextafter(np.float32(1), np.float32(0))]
    for perturbation, radius in [
        (PATTERN, 0),
        (universal(SCORE, [images], radius=0), None),
        (universal(SCORE, [images], radius=0, key=jax.random.key(0)), 0.1),  # nothing to rescale
    ]:
        result = perturbation.attack(SCORE, images, radius=radius)
        assert np.asarray(result.images).tobytes() == images.tobytes()
        np.testing.assert_array_equal(result.max_change, np.zeros(2))
        np.testing.assert_array_equal(result.before, result.after)


def test_attack_has_the_form_of_the_others():
    images = images_of(3)
    result = PATTERN.attack(SCORE, images, radius=0.04)
    assert isinstance(result, attacks.AttackResult)
    np.testing.assert_array_equal(result.images, PATTERN.apply(images, 0.04))
    np.testing.assert_allclose(result.before, SCORE(images), rtol=1e-5)
    np.testing.assert_allclose(result.after, SCORE(result.images), rtol=1e-5)
    np.testing.assert_array_equal(result.max_change, np.abs(result.images - images).max(axis=(1, 2, 3)))
    assert result.zero_gradient_fraction is None
    several = PATTERN.attack(SCORE, images, radius=[0.04, np.array([0.0, 0.01, 0.04])])
    for name, one, both in zip(result._fields[:-1], result[:-1], several[:-1], strict=True):
        assert both.shape == (2, *one.shape)
        np.testing.assert_array_equal(both[0], one, err_msg=name)
    np.testing.assert_array_equal(several.images[1, 0], images[0])


def test_attack_under_jit_and_vmap():
    images = images_of(2)
    expected = PATTERN.attack(SCORE, images, radius=0.04)

    def attack(perturbation, images):
        return perturbation.attack(SCORE, images, radius=0.04)

    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PATTERN)
    for result in (
        jax.jit(attack)(PATTERN, images),
        jax.tree.map(lambda leaf: leaf[0], jax.jit(jax.vmap(attack, (None, 0)))(PATTERN, images[None])),
        jax.tree.map(lambda leaf: leaf[1], jax.jit(jax.vmap(attack, (0, None)))(both, images)),
    ):
        assert result.zero_gradient_fraction is None
        for name, one, other in zip(expected._fields[:-1], expected[:-1], result[:-1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


# Files


def test_npz_keeps_it_exactly(tmp_path):
    path = tmp_path / "pattern.npz"
    for perturbation in (PATTERN, universal(SCORE, [images_of()], radius=0.3)):
        perturbation.save(path)
        loaded = UniversalPerturbation.load(str(path))
        np.testing.assert_array_equal(loaded.pattern, perturbation.pattern)
        np.testing.assert_array_equal(loaded.radius, perturbation.radius)
    assert [file.name for file in tmp_path.iterdir()] == ["pattern.npz"]


def test_reads_the_published_encoding(tmp_path):
    values = np.random.default_rng(0).integers(102, 154, (7, 5, 3)).astype(np.uint8)
    values[0, 0] = [102, 153, 127]
    Image.fromarray(values).save(tmp_path / "pattern.png")
    read = UniversalPerturbation.from_png(tmp_path / "pattern.png")
    np.testing.assert_allclose(read.pattern, values / 255 - 0.5, atol=1e-7)
    np.testing.assert_allclose(read.radius, 0.1, rtol=1e-6)
    images = images_of(1, 20, 12)
    expected = np.clip(images + np.tile(values / 255 - 0.5, (3, 3, 1))[:20, :12] * 10 * 0.04, 0, 1)
    np.testing.assert_allclose(read.apply(images, 0.04), expected, atol=1e-7)


def test_reads_the_msu_encoding(tmp_path):
    pattern = np.array([[[-0.1, 0.1, 0.0], [0.05, -0.05, 0.02]]])
    Image.fromarray(((pattern + 0.1) * 255).round().astype(np.uint8)).save(tmp_path / "pattern.png")
    read = UniversalPerturbation.from_png(tmp_path / "pattern.png", encoding="msu", radius=0.1)
    np.testing.assert_allclose(read.pattern, pattern, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(read.radius, np.float32(0.1))


@pytest.mark.parametrize("encoding", ["published", "msu"])
def test_png_keeps_the_grid_and_the_radius(tmp_path, encoding):
    path = tmp_path / "pattern.png"
    PATTERN.save(path, encoding=encoding)
    read = UniversalPerturbation.from_png(path, encoding=encoding, radius=0.1)  # which it would refuse to exceed
    assert np.abs(read.pattern - PATTERN.pattern).max() < 1 / 255
    again = tmp_path / "again.png"
    read.save(again, encoding=encoding)
    assert again.read_bytes() == path.read_bytes()


def test_a_file_is_complete_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "pattern.npz"
    PATTERN.save(path)
    before = path.read_bytes()

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        universal(SCORE, [images_of()], radius=0.3).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def written(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    else:
        np.savez(path, **content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no universal perturbation"),
        (b"not a zip file", "no universal perturbation"),
        (b"PK\x03\x04 cut off", "no universal perturbation"),
        ({"kernel": np.zeros(3)}, "no universal perturbation.*pattern"),
        ({"pattern": np.array([{}]), "radius": np.float32(1)}, "no universal perturbation"),
        ({"pattern": np.zeros((3, 3), np.float32), "radius": np.float32(1)}, r"shape \(3, 3\)"),
        ({"pattern": np.zeros((3, 3, 3), np.uint8), "radius": np.float32(1)}, "uint8"),
        ({"pattern": np.zeros((3, 3, 3)), "radius": np.float32(2)}, "radius must be one float"),
        ({"pattern": np.ones((3, 3, 3)), "radius": np.float32(0.5)}, "within its radius of 0.5, found 1"),
        ({"pattern": np.full((3, 3, 3), np.nan), "radius": np.float32(0.5)}, "found nan"),
    ],
)
def test_wrong_npz_files_are_named(tmp_path, content, message):
    path = written(tmp_path, "wrong.npz", content)
    with pytest.raises(ValueError, match=rf"wrong\.npz.*{message}"):
        UniversalPerturbation.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "no picture"),
        (np.zeros((4, 4), np.uint8), "mode L"),
        (np.zeros((4, 4, 4), np.uint8), "mode RGBA"),
        (np.full((4, 4, 3), 255, np.uint8), "within its radius of 0.1, found 0.5"),
    ],
)
def test_wrong_pictures_are_named(tmp_path, content, message):
    path = written(tmp_path, "wrong.png", content)
    with pytest.raises(ValueError, match=rf"wrong\.png.*{message}"):
        UniversalPerturbation.from_png(path, radius=0.1)


def test_a_picture_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "wrong.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"wrong\.png"):
        UniversalPerturbation.from_png(path)


def test_files_that_cannot_be_read_or_written(tmp_path):
    for read in (UniversalPerturbation.load, UniversalPerturbation.from_png):
        with pytest.raises(FileNotFoundError, match="absent"):
            read(tmp_path / "absent.file")
    with pytest.raises(ValueError, match=r"pattern\.png.*from_png"):
        UniversalPerturbation.load(tmp_path / "pattern.png")
    with pytest.raises(ValueError, match=r"pattern\.jpg.*\.npz or \.png"):
        PATTERN.save(tmp_path / "pattern.jpg")
    with pytest.raises(ValueError, match="'published', 'msu', got 'other'"):
        PATTERN.save(tmp_path / "pattern.png", encoding="other")
    with pytest.raises(ValueError, match="'published', 'msu', got 'other'"):
        UniversalPerturbation.from_png(tmp_path / "pattern.png", encoding="other")
    with pytest.raises(ValueError, match=r"pattern\.png.*within 0\.1.*\.npz"):
        UniversalPerturbation(2 * PATTERN.pattern, 2 * PATTERN.radius).save(tmp_path / "pattern.png", encoding="msu")
    assert not list(tmp_path.iterdir())


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": iter([images_of()])}, "iterator.*5 epochs.*list"),
        ({"batches": []}, "nothing in epoch 1 of 5"),
        ({"batches": images_of()}, r"one of shape \(2, 6, 5, 3\)"),
        ({"batches": [images_of()[0]]}, r"\[batch, height, width, 3\]"),
        ({"batches": [images_of(), 255 * images_of()]}, "from 0 to 255"),
        ({"radius": 4}, "radius must be in"),
        ({"radius": [0.1, 0.2]}, "radius of a universal perturbation must be one number"),
        ({"step_size": -1.0}, "step_size"),
        ({"step": "gradient"}, "needs a step_size"),
        ({"step": "newton"}, "'sign' or 'gradient', got 'newton'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"size": 0}, "size must be a whole number"),
        ({"size": (4, 2.5)}, "size must be a whole number.*2.5"),
        ({"score_fn": lambda x: jnp.sum(x)}, r"score_fn .* of shape \(\)"),
        ({"direction": lambda s, c: jnp.sum(s)}, "direction must return one float per image"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {"score_fn": SCORE, "batches": [images_of()], "radius": 0.1} | change
    with pytest.raises(ValueError, match=message):
        universal(arguments.pop("score_fn"), arguments.pop("batches"), **arguments)


def test_a_function_that_gives_the_same_iterator_twice_is_found_out():
    iterator = iter([images_of()])
    with pytest.raises(ValueError, match="nothing in epoch 2 of 5"):
        universal(SCORE, lambda: iterator, radius=0.1)


@pytest.mark.parametrize("radius", [-0.1, 1.5, np.zeros(3)])
def test_apply_refuses_a_radius(radius):
    with pytest.raises(ValueError, match="radius"):
        PATTERN.apply(images_of(), radius)


def test_a_batch_without_images_is_named():
    """It would make the mean over it, and so the pattern, NaN."""
    images = np.full((2, 4, 4, 3), 0.5, np.float32)
    for batches, number in (([images[:0]], 1), ([images, images[:0]], 2)):
        with pytest.raises(ValueError, match=f"batch {number} of epoch 1 has no images"):
            attacks.universal(lambda x: jnp.mean(x, axis=(1, 2, 3)), batches, radius=0.1, epochs=1)
