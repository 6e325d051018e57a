"""Other data sets: their scores are kept until a pixel or the model changes, each set's in a file of its own."""

import numpy as np
import pytest
from PIL import Image

from cprl_jax.config import defaults as config_lib
from cprl_jax.evaluation import statistics, zero_shot
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.report import agreement
from cprl_jax.runtime.errors import UserError

COUNT = 5


def write_images(folder, seed, count=COUNT):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,mos"]
    for index in range(count):
        generator = np.random.default_rng([seed, index])
        image = np.clip(generator.integers(0, 256, 3) + generator.integers(-40, 40, (20, 24, 3)), 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{10 + 15 * index}")
    (folder / "labels.csv").write_text("\n".join(lines))


@pytest.fixture
def config():
    config = config_lib.default()
    config.evaluation.crop_size, config.evaluation.crops, config.evaluation.batch_size = 16, 2, 4
    config.evaluation.resamples = 20
    return config


@pytest.fixture
def evaluate(config, network, tmp_path, monkeypatch):
    """Rows of the sets in these folders, and how often images were scored for them."""
    scored = []
    scores = Scorer.scores

    def counted(self, *arguments, **options):
        scored.append(1)
        return scores(self, *arguments, **options)

    monkeypatch.setattr(Scorer, "scores", counted)

    def run(*folders, seed=0):
        scored.clear()
        config.evaluation.datasets = tuple(f"own:{folder}" for folder in folders)
        datasets = zero_shot.load_datasets(config)
        module, variables = network(seed)
        rows = zero_shot.evaluate(config, "plain", module, variables, datasets, folder=tmp_path / "run")
        return rows, len(scored)

    return run


def test_rows_are_the_statistics_of_all_images(evaluate, config, network, tmp_path):
    write_images(tmp_path / "photos", seed=0)
    (row,), scored = evaluate(tmp_path / "photos")
    dataset = zero_shot.load_dataset(config, f"own:{tmp_path / 'photos'}")
    module, variables = network()
    crops = zero_shot._all_crops(dataset, 2, 16, config.seed)[:]
    expected = Scorer(module, batch_size=4).scores(variables, crops)
    assert (row["method"], row["dataset"], row["images"]) == ("plain", f"own:{tmp_path / 'photos'}", COUNT)
    assert row["srcc"] == pytest.approx(statistics.srcc(expected, dataset.mos))
    assert row["rmse"] == pytest.approx(statistics.rmse(expected, dataset.mos), rel=1e-5)
    assert scored == 1


def test_images_replaced_under_the_same_names_are_scored_again(evaluate, tmp_path):
    write_images(tmp_path / "photos", seed=0)
    (first,), _ = evaluate(tmp_path / "photos")
    assert evaluate(tmp_path / "photos") == ([first], 0)
    write_images(tmp_path / "photos", seed=1)
    (second,), scored = evaluate(tmp_path / "photos")
    assert scored == 1 and second["rmse"] != first["rmse"]


def test_another_model_or_label_counts(evaluate, tmp_path):
    write_images(tmp_path / "photos", seed=0)
    (first,), _ = evaluate(tmp_path / "photos")
    (other,), scored = evaluate(tmp_path / "photos", seed=1)
    assert scored == 1 and other["rmse"] != first["rmse"]
    evaluate(tmp_path / "photos")
    labels = tmp_path / "photos" / "labels.csv"
    labels.write_text(labels.read_text().replace("0.png,10", "0.png,90"))
    (relabelled,), scored = evaluate(tmp_path / "photos")
    assert scored == 0, "scores do not depend on labels"
    assert relabelled["rmse"] != first["rmse"]


def test_sets_of_similar_names_have_files_of_their_own(evaluate, tmp_path):
    folders = (tmp_path / "a" / "b", tmp_path / "a_b")
    for seed, folder in enumerate(folders):
        write_images(folder, seed=seed)
    rows, scored = evaluate(*folders)
    assert scored == 2 and rows[0]["rmse"] != rows[1]["rmse"]
    assert evaluate(*folders) == (rows, 0)
    assert len(list((tmp_path / "run" / "zero_shot").iterdir())) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_set_of_too_few_images_does_not_cost_the_others(evaluate, tmp_path, count):
    for name, images in (("few", count), ("many", COUNT)):
        write_images(tmp_path / name, seed=0, count=images)
    (few, many), _ = evaluate(tmp_path / "few", tmp_path / "many")
    assert np.isnan([few["srcc"], few["plcc"]]).all() and np.isfinite([few["rmse"], many["srcc"]]).all()
    text = agreement.zero_shot([few, many]).text()
    explained = agreement.zero_shot([few, many]).explained()
    assert "–" in text and explained.endswith(agreement.UNDEFINED)
    assert agreement.UNDEFINED not in agreement.zero_shot([many]).explained()


def test_the_training_set_is_no_other_set(config):
    config.evaluation.datasets = ("livec",)
    config.dataset.name = "koniq+livec"
    with pytest.raises(UserError, match="names 'livec', on which the models are trained"):
        zero_shot.load_datasets(config)


def test_the_training_folder_is_no_other_folder(config, tmp_path):
    config.dataset.name, config.dataset.manual_dir = "own", str(tmp_path)
    config.evaluation.datasets = (f"own:{tmp_path}/./",)
    with pytest.raises(UserError, match=r"names 'own:.*', on which the models are trained"):
        zero_shot.load_datasets(config)


def test_a_folder_that_is_not_there_is_named_with_the_field_that_names_it(config):
    with pytest.raises(UserError, match=r"config\.evaluation\.datasets, own:nowhere: there is no folder nowhere"):
        zero_shot.load_dataset(config, "own:nowhere")
