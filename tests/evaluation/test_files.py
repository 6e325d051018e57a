"""Scores of files: those of their crops, whatever batch they share; bad files among them; how far ahead is read."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import photographs
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation import files as files_lib
from cprl_jax.evaluation.files import FileScorer
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.runtime.errors import UserError

SIZE = 16  # of the crops


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of pictures of all sizes, smaller than a crop as well, and their pixels."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths, images = [], []
    for index, size in enumerate([(20, 30), (16, 16), (5, 40), (33, 17), (1, 1), (40, 40), (24, 18)]):
        flat = generator.integers(40, 215, (1, 1, 3))
        images.append((flat + generator.integers(-40, 40, (*size, 3))).astype(np.uint8))
        paths.append(folder / f"{index}.png")
        Image.fromarray(images[-1]).save(paths[-1])
    return paths, images


@pytest.fixture
def make(network):
    """Makes a scorer."""
    module, variables = network()

    def of(module=module, **changes):
        return FileScorer(
            module, variables, **{"crops": 3, "crop_size": SIZE, "seed": 5, "batch_size": 4, "resize": 0} | changes
        )

    return of


def dataset_of(images):
    count = len(images)
    zeros, names = np.zeros(count, np.float32), [f"row {i}" for i in range(count)]
    return QualityDataset("test", list(images), names, zeros, zeros, zeros, names, [""] * count, [0] * count)


@pytest.mark.parametrize(("crops", "batch_size"), [(1, 8), (3, 8), (9, 4)])
def test_a_file_scores_as_the_mean_of_its_crops(make, network, pictures, crops, batch_size):
    paths, images = pictures
    module, variables = network()
    cut = Crops(dataset_of(images), range(len(images)), crops=crops, crop_size=SIZE, seed=5)
    expected = Scorer(module, batch_size=64).scores(variables, cut)
    scorer = make(crops=crops, batch_size=batch_size)
    np.testing.assert_allclose(scorer(paths), expected, atol=1e-3)
    np.testing.assert_allclose(scorer(paths[:1]), expected[:1], atol=1e-3)  # in a batch of another size
    assert scorer([]).shape == (0,)


@pytest.mark.parametrize("resize", [0, 24])
def test_the_same_pixels_score_alike_among_any_neighbours(make, pictures, tmp_path, resize):
    paths, images = pictures
    names = ["a.png", "A", "kodim23.bmp", "ä ö.png", "日本.png", "b\tc.png", "x.jpg", "0", "-1", ".hidden", "z" * 200]
    mixed = []
    for index, name in enumerate(names):
        Image.fromarray(images[3]).save(tmp_path / name, format="PNG")
        mixed += [tmp_path / name, paths[index % len(paths)]]
    scorer = make(resize=resize, batch_size=12)
    scores = scorer(mixed)[::2]
    np.testing.assert_array_equal(scores, scores[0])
    assert abs(scorer([paths[3]])[0] - scores[0]) < 1e-3
    assert abs(scorer([paths[0]])[0] - scores[0]) > 0.1


def test_bad_files_are_named_in_their_places(make, pictures, tmp_path):
    good, _ = pictures
    contents = {"cut short.png": good[5].read_bytes()[:150], "empty.png": b"", "text.jpg": b"a few words\n" * 9}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    bad = {path: "" for path in tmp_path.iterdir()} | {tmp_path / "missing.png": "No such file", "/dev/zero": "device"}
    bad |= {tmp_path / "empty.png": "empty", tmp_path / "text.jpg": "not an image", tmp_path / "folder.png": "folder"}
    mixed = [*list(bad)[:4], good[0], *list(bad)[4:], *good[1:]] + 40 * list(bad) + good[:2]
    scorer = make()
    alone = dict(zip(good, scorer(good), strict=True))
    found = list(scorer.each(mixed))
    assert len(found) == len(mixed)
    for path, result in zip(mixed, found, strict=True):
        if path in bad:
            assert isinstance(result, UserError)
            assert str(result).startswith(f"{path} cannot be read: ") and bad[path] in str(result)
            assert "\n" not in str(result)
        else:
            assert result == pytest.approx(alone[path], abs=1e-3)
    with pytest.raises(UserError, match="missing.png cannot be read"):
        scorer([good[0], tmp_path / "missing.png"])
    with pytest.raises(UserError, match="^'' cannot be read: No such file"):
        scorer([""])


@pytest.mark.parametrize("options", [{"crops": -1}, {"crop_size": 0}, {"seed": -1}])
def test_options_out_of_range(make, pictures, options):
    with pytest.raises(UserError, match=next(iter(options))):
        make(**options)(pictures[0])


def test_no_more_is_decoded_than_is_about_to_be_scored(make, pictures, monkeypatch):
    """Memory does not grow with the number of files; who stops asking stops the reading."""
    decoded = []
    decode = files_lib.decode_photograph
    monkeypatch.setattr(files_lib, "decode_photograph", lambda content: decoded.append(1) or decode(content))
    scorer = make(crops=1)
    at_once = 4 * files_lib.parallel.local_device_count()
    most = (3 + files_lib.parallel.programs_at_once()) * at_once + 2 * files_lib._THREADS
    results = scorer.each(pictures[0] * 100)
    for given in range(300):
        next(results)
        assert len(decoded) <= given + most
    results.close()
    time.sleep(0.2)
    stopped = len(decoded)
    time.sleep(0.2)
    assert len(decoded) == stopped < 600


def test_a_slow_file_does_not_hold_back_those_before_it(make, pictures, monkeypatch):
    slow, paths = threading.Event(), pictures[0]
    decode = files_lib.decode_photograph

    def wait_for_the_last(content):
        if content == paths[6].read_bytes():
            assert slow.wait(60)
        return decode(content)

    monkeypatch.setattr(files_lib, "decode_photograph", wait_for_the_last)
    scorer = make(crops=1, batch_size=16)
    results = scorer.each([*paths, "missing.png"])
    first = [next(results) for _ in range(6)]  # of a batch that is not full
    slow.set()
    last, missing = results
    assert isinstance(missing, UserError)
    np.testing.assert_allclose([*first, last], scorer(paths), atol=1e-3)


def test_a_call_compiles_once(network, pictures):
    module, variables = network()
    traced = []

    class Counted(type(module)):
        def __call__(self, images, train=False):
            traced.append(images.shape)
            return super().__call__(images, train)

    scorer = FileScorer(Counted(), variables, crops=3, crop_size=SIZE, seed=0, batch_size=8)
    scorer(pictures[0] * 9)
    scorer(pictures[0] * 20)
    assert len(traced) == 1 and traced[0][0] == 6  # two images: whole ones make a batch


def test_a_large_file_is_read_if_it_is_an_image(make, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "_LARGE_FILE", 2**17)
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "large.bmp")
    Image.fromarray(image).save(tmp_path / "small.png")
    with open(tmp_path / "film.mp4", "wb") as file:
        file.truncate(2**18)
    assert len(photographs.content(tmp_path / "film.mp4")) == 2**16
    large, small, film = make().each([tmp_path / name for name in ("large.bmp", "small.png", "film.mp4")])
    assert large == small and "film.mp4 cannot be read: not an image" in str(film)


def test_large_photographs_are_decoded_one_at_a_time(make, pictures, monkeypatch):
    """What is counted: how many images of 20 x 30 pixels and more are decoded at the same time."""
    monkeypatch.setattr(files_lib, "_LARGE", 20 * 30 - 1)
    monkeypatch.setattr(files_lib, "_THREADS", 4)
    decode, inside, most = files_lib.decode_photograph, [], []

    def slow(content):
        image = decode(content)
        if image.shape[0] * image.shape[1] >= 20 * 30:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
        return image

    monkeypatch.setattr(files_lib, "decode_photograph", slow)
    assert np.isfinite(make(crops=1)(pictures[0] * 4)).all()
    assert len(most) == 8 and max(most) == 1
