"""A model: one score of an image by every way to it, gradients, certificates, and the same after it was saved."""

import json

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cprl_jax
from cprl_jax.config.defaults import to_json
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.deploy import Model
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.robustness import certify
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file
from cprl_jax.training.checkpoints import Checkpoints


class Tiny(nn.Module):
    """A network that compiles at once."""

    @nn.compact
    def __call__(self, images, train=False):
        maps = nn.Conv(4, (3, 3), name="conv")(images)
        return 50 + 100 * nn.Dense(1, name="head")(jnp.tanh(maps).mean(axis=(1, 2)))[:, 0]


@pytest.fixture(scope="module")
def tiny(content):
    module = Tiny()
    variables = module.init(jax.random.key(1), jnp.zeros((1, 24, 24, 3)))
    return content._replace(module=module, variables=jax.tree.map(np.asarray, variables))


@pytest.fixture(scope="module")
def model(tiny):
    return Model(tiny, name="it", card=lambda: "# A card\n")


def mean_over_crops(content, images):
    """As the tables of a run score its images."""
    zeros, names = np.zeros(len(images), np.float32), [str(row) for row in range(len(images))]
    dataset = QualityDataset(
        "test", list(images), names, zeros, zeros, zeros, names, [""] * len(images), [0] * len(images)
    )
    crops = Crops(dataset, range(len(images)), crops=3, crop_size=24, seed=4)
    return Scorer(content.module, batch_size=6).scores(content.variables, crops)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (24, 24), (10, 40)])
def test_an_image_scores_as_in_the_run_by_every_way(model, tiny, pictures, save, height, width):
    images = pictures(4, height, width)
    expected = mean_over_crops(tiny, images)
    assert model(images).dtype == np.float32
    np.testing.assert_allclose(model(images), expected, rtol=1e-4)
    np.testing.assert_allclose(model(images / np.float32(255)), expected, rtol=1e-4)
    np.testing.assert_allclose(model.score(save(images)), expected, rtol=1e-4)


def test_one_path_and_no_image(model, pictures, save):
    (path,) = save(pictures(1, 30, 30))
    np.testing.assert_array_equal(model.score(str(path)), model.score([path]))
    assert model(np.zeros((0, 30, 30, 3), np.uint8)).shape == (0,)
    with pytest.raises(UserError, match="nowhere.png cannot be read"):
        model.score(["nowhere.png"])


def test_gradients_reach_what_the_crops_show_and_nothing_else(model, pictures):
    image = pictures(1, 60, 90)[0]
    marks = np.arange(60 * 90, dtype=np.int64).reshape(60, 90)
    coded = np.stack([marks // 256, marks % 256, marks * 0], axis=-1).astype(np.uint8)
    names, zero = ["0"], np.zeros(1, np.float32)
    dataset = QualityDataset("test", [coded], names, zero, zero, zero, names, [""], [0])
    cut = Crops(dataset, [0], crops=3, crop_size=24, seed=4)[0].astype(np.int64)
    shown = np.isin(marks, cut[..., 0] * 256 + cut[..., 1])
    gradient = jax.jit(jax.grad(lambda images: model.score_fn(images).sum()))(image[None] / np.float32(255))[0]
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), shown)


@pytest.mark.parametrize(
    "images",
    [np.zeros((4, 4, 3)), np.zeros((1, 4, 4, 1)), np.zeros((1, 0, 4, 3)), np.zeros((1, 4, 4, 3), int)]
    + [np.full((1, 4, 4, 3), value) for value in (1.5, -0.1, np.nan)],
    ids=["one image", "grey", "empty", "integers", "above 1", "below 0", "nan"],
)
def test_what_is_no_batch_of_images_is_refused(model, images):
    with pytest.raises(ValueError, match="^images (have|are) "):
        model(images)


def test_certificates_are_of_the_score_and_of_the_image_alone(model, pictures, save):
    images = pictures(2, 30, 26)
    options = dict(sigma=0.1, samples=64, confidence=0.9)
    found = model.certify(images, radius=0.02, **options)
    assert all(len(column) == 2 for column in found)
    assert ((found.lower < found.score) & (found.score < found.upper)).all()
    again = model.certify(save(images)[::-1], radius=0.02, **options)
    np.testing.assert_allclose(np.array(again)[:, ::-1], np.array(found), rtol=1e-5)
    far = model.certify(images, radius=float(found.largest_radius[0]) * 1.01, **options)
    assert np.isinf(far.lower).all() and np.isinf(far.upper).all()
    quiet = model.certify(images, radius=0.0, sigma=1e-6, samples=64, confidence=0.9)
    np.testing.assert_allclose(quiet.score, model(images), atol=0.05)  # next to no noise: the score itself
    with pytest.raises(UserError, match="nowhere.png cannot be read"):
        model.certify("nowhere.png")


def test_a_file_is_certified_as_it_is_now(model, pictures, save):
    first, second = pictures(2, 30, 26)
    options = dict(sigma=0.1, samples=20)
    (path,) = save([first])
    before = model.certify(path, **options)
    assert save([second]) == [path]
    assert model.certify(path, **options) == model.certify(second[None], **options) != before


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([np.zeros((4, 4))], {}, "images have the shape"),
        ([np.zeros((1, 4, 4, 3))], {}, "images have the shape"),
        ([], {"radius": -1}, "radius must be a finite Python number of at least 0"),
        (np.zeros((1, 30, 26, 3)), {"radius": [0, 0.1]}, "radius must be a finite Python number"),
    ],
    ids=["grey", "batch", "negative", "several"],
)
def test_mistakes_are_named_before_anything_is_drawn(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        model.certify(images, **options)


def test_names_of_files_may_be_arrays_and_bytes(model, pictures, save):
    path = str(*save(pictures(1, 30, 26)))
    score = model.score(path)
    assert score == model.score(path.encode()) == model.score(np.array([path]))
    options = dict(sigma=0.1, samples=20)
    assert model.certify(np.array([path]), **options) == model.certify(path.encode(), **options)


def test_images_of_many_sizes_are_certified_with_few_compilations(model, pictures, monkeypatch):
    shapes, smooth = [], certify.median_smoothing

    def noting(score_fn, images, **options):
        shapes.append(images.shape)
        return smooth(score_fn, images, **options)

    monkeypatch.setattr(certify, "median_smoothing", noting)
    images = [pictures(1, height, width)[0] for height, width in ((60, 90), (61, 88), (64, 95))]
    assert len(list(model.certify_each(images, radius=0.02, sigma=0.1, samples=20))) == 3
    assert len(set(shapes)) == 1 and shapes[0][1] <= 2 * 3 * 24 * 24


def test_an_image_whose_scores_are_not_finite_costs_the_others_nothing(tiny, pictures, save, monkeypatch):
    model = Model(tiny, name="it", card=str)
    dark, light = np.full((2, 30, 26, 3), np.uint8([[[[20]]], [[[230]]]]))
    roots = jax.tree_util.Partial(lambda images: jnp.sqrt(images.mean(axis=(1, 2, 3)) - 0.5))
    monkeypatch.setitem(vars(model), "_network", roots)
    paths = save([dark, light])
    results = list(model.certify_each(paths, radius=0.02, sigma=0.05, samples=20))
    assert isinstance(results[0], UserError) and results[1].lower <= results[1].score <= results[1].upper
    with pytest.raises(UserError, match=r"0.png has no certificate: not all its scores under noise are finite"):
        model.certify(paths, samples=20)


def test_a_run_and_its_exported_model_score_alike_bit_for_bit(content, pictures, save, tmp_path):
    write_file(tmp_path / "run" / "config.json", to_json(content.config))
    with Checkpoints(tmp_path / "run" / "cprl" / "checkpoints") as checkpoints:
        checkpoints.save(1, content.variables)
    run = cprl_jax.load(tmp_path / "run")
    run.save(tmp_path / "model")
    exported = cprl_jax.load(tmp_path / "model")
    assert (run.method, exported.method) == ("cprl", "cprl")
    assert exported.card == run.card and "## Limits" in run.card and "somebody" not in run.card
    paths = save(pictures(3, 50, 40))
    np.testing.assert_array_equal(exported.score(paths), run.score(paths))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_saving_again_loses_nothing(content, tmp_path, dtype):
    model = Model(content, name="it", card=lambda: "# A card\n")
    model.save(tmp_path / "once", dtype=dtype)
    cprl_jax.load(tmp_path / "once").save(tmp_path / "twice")
    assert (tmp_path / "once" / "model.safetensors").read_bytes() == (
        tmp_path / "twice" / "model.safetensors"
    ).read_bytes()
    once = cprl_jax.load(tmp_path / "once")
    jax.tree.map(np.testing.assert_array_equal, model.rounded(dtype).variables, once.variables)
    assert once.dtype == dtype and f"the weights are kept in {dtype}, and were in float32" in once.card
    assert once.card.startswith("# A card\n") and once.card == cprl_jax.load(tmp_path / "twice").card
    assert once.card == model.rounded(dtype).card


def test_a_model_goes_to_hugging_face_as_a_folder(model, monkeypatch):
    sent = {}

    class Hub:
        def create_repo(self, repo, *, private, exist_ok):
            return f"https://huggingface.co/{repo}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            sent[repo_id] = sorted(path.name for path in folder_path.iterdir())
            assert (
                commit_message == f"cprl, {json.loads((folder_path / 'config.json').read_text())['weights']['dtype']}"
            )

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert model.push_to_hub("somebody/model") == "https://huggingface.co/somebody/model"
    assert sent == {"somebody/model": ["README.md", "config.json", "model.safetensors"]}
    model.push_to_hub("somebody/model", dtype="int8")
    Hub.create_repo = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("401\nUnauthorized"))
    with pytest.raises(UserError, match="somebody/model could not be written on Hugging Face: 401 Unauthorized"):
        model.push_to_hub("somebody/model")
