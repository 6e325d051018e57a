"""Declarations of attacks: what each says of itself, what a configuration asks for, universal patterns."""

import importlib
import pkgutil

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cprl_jax import attacks, fidelity, models
from cprl_jax.attacks.ensemble import BUDGETS
from cprl_jax.config import defaults as config_lib
from cprl_jax.config.field import Field
from cprl_jax.evaluation import table, table_attacks
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.evaluation.table_attacks import ATTACKS, Condition, Context, TableAttack
from cprl_jax.runtime.errors import UserError

RADIUS = 3 / 255
IMAGES = np.random.default_rng(5).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def config():
    return config_lib.default()


def test_every_file_is_the_attack_of_its_name():
    files = {module.name for module in pkgutil.iter_modules(table_attacks.__path__)} - {"table_attack"}
    assert files == set(ATTACKS)
    for name, attack in ATTACKS.items():
        assert importlib.import_module(f"{table_attacks.__name__}.{name}").ATTACK is attack
        assert attack.name == name
    assert set(ATTACKS) >= {*("fgsm", "pgd", "target_free", "score_reflection", "universal", "perceptual", "square")}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_a_declaration_says_what_people_need(attack, config):
    assert attack.title and attack.source
    assert attack.legend.endswith(".") and ". " not in attack.legend, "one sentence"
    assert attack.direction in ("reflect", "target_free", "mirror", "up", "away")
    for name, field in attack.settings.items():
        assert isinstance(field, Field) and field.help
        field.check(name, field.default)
    settings = attack.read(config.evaluation)
    for variant in attack.variants(settings):
        columns = Condition(attack, variant, 1.0, settings).columns
        assert columns["steps"] >= 1 and columns["restarts"] >= 1
    attack.check(settings, ["plain"])


def test_conditions_are_attacks_in_their_variants_at_all_radii(config):
    evaluation = config.evaluation
    evaluation.attacks, evaluation.radii = ("pgd", "perceptual", "universal"), (1.0, 2.5)
    evaluation.universal.sources = ("other",)
    evaluation.pgd_steps, evaluation.pgd.restarts = 7, 3
    found = table_attacks.conditions(evaluation)
    assert [(condition.label, condition.radius) for condition in found] == [
        ("pgd", 1.0),
        ("pgd", 2.5),
        ("perceptual:chebyshev", 0.0),
        ("perceptual:ssim", 0.0),
        ("universal:other", 1.0),
        ("universal:other", 2.5),
    ]
    assert found[0].columns == {"direction": "reflect", "steps": 7, "restarts": 3}
    assert [condition.title for condition in found[2:5]] == [
        "Perceptual (chebyshev)",
        "Perceptual (ssim)",
        "Universal (other)",
    ]


def test_pgd_takes_other_numbers_of_steps_in_rows_of_their_own(config, network, crops, mos):
    evaluation = config.evaluation
    evaluation.attacks, evaluation.radii, evaluation.pgd_steps = ("pgd",), (2.0,), 2
    (alone,) = table_attacks.conditions(evaluation)
    evaluation.pgd.more_steps = (5,)
    found = table_attacks.conditions(evaluation)
    assert [condition.label for condition in found] == ["pgd", "pgd:5"]
    assert [condition.columns["steps"] for condition in found] == [2, 5]
    used = [condition.attack.used(condition.settings, condition.variant) for condition in (alone, *found)]
    assert used[0] == used[1] != used[2], "the first is not computed anew"
    module, variables = network()
    scorer = Scorer(module, batch_size=4)
    for condition in found:
        expected = scorer.attack(variables, crops, mos, ATTACKS["pgd"].at(2, steps=condition.columns["steps"]))
        result = scorer.attack(variables, crops, mos, condition)
        np.testing.assert_allclose(result["after"], expected["after"], rtol=1e-5)


@pytest.mark.parametrize("more", [(2,), (5, 5)])
def test_a_number_of_steps_named_twice_is_refused(config, more):
    config.evaluation.pgd_steps, config.evaluation.pgd.more_steps = 2, more
    with pytest.raises(UserError, match="more_steps is .* name each number of steps once"):
        table_attacks.check(config.evaluation, ["plain"])


def test_a_run_of_an_earlier_version_has_the_defaults(config):
    evaluation = config.evaluation.copy_and_resolve_references()
    with evaluation.unlocked():
        del evaluation["square"]
    assert ATTACKS["square"].read(evaluation) == {"queries": ATTACKS["square"].settings["queries"].default}


def test_one_declaration_is_all_that_a_new_attack_needs(config, network, crops, mos, tmp_path, monkeypatch):
    def brighten(score_fn, batch, condition, prepared):
        images = jnp.clip(batch.images + condition.settings["share"] * batch.radius[:, None, None, None], 0, 1)
        change = jnp.abs(images - batch.images).max(axis=(1, 2, 3))
        nothing = jnp.zeros_like(change)
        return attacks.AttackResult(images, score_fn(batch.images), score_fn(images), change, nothing)

    share = Field(0.5, "of the radius", at_least=0, at_most=1)
    new = TableAttack("light", "Light", "Brightens.", brighten, settings={"share": share}, steps=lambda *_: 0)
    monkeypatch.setitem(ATTACKS, "light", new)
    module, variables = network()
    config.evaluation.attacks, config.evaluation.radii = ("light",), (4.0,)
    with config.unlocked():
        config.evaluation.light = {"share": 1.0}
    options = {"folder": tmp_path, "training_crops": None}
    results = table.evaluate(config, "plain", {"plain": (module, variables)}, crops, mos, **options)
    brighter = np.clip(crops / np.float32(255) + np.float32(4 / 255), 0, 1)
    expected = module.apply(variables, brighter.reshape(-1, 16, 16, 3)).reshape(6, 3).mean(axis=1)
    np.testing.assert_allclose(results["light", 4.0]["after"], expected, rtol=1e-5)
    rows = table.table_rows(config, "plain", results, mos)
    assert rows[-1]["attack"] == "light" and rows[-1]["direction"] == "reflect" and rows[-1]["steps"] == 0


# ---------------------------------------------------------------------------------------------------- universal


def universal(config, radius=3.0, variant="", **settings):
    attack = ATTACKS["universal"]
    return Condition(attack, variant, radius, attack.read(config.evaluation) | settings)


@pytest.fixture
def context(network):
    score_fns = [models.score_fn(*network(seed)) for seed in range(3)]
    others = {"first": score_fns[1], "second": score_fns[2]}
    return Context(score_fn=score_fns[0], others=others, training_crops=lambda count: IMAGES[:count])


def test_a_pattern_is_made_on_training_images_of_the_attacked_model(config, context):
    made = universal(config, images=20, epochs=2)
    pattern = made.attack.prepare(context, made)
    floats = IMAGES[:20] / np.float32(255)
    expected = attacks.universal(context.score_fn, [floats[:16], floats[16:]], radius=RADIUS, epochs=2)
    np.testing.assert_array_equal(pattern.pattern, expected.pattern)
    assert np.abs(pattern.pattern).max() > 0.1 * RADIUS


def test_a_transferred_pattern_is_that_of_the_first_other_model(config, context):
    other = universal(config, variant="other", sources=("self", "other"), images=16)
    pattern = other.attack.prepare(context, other)
    expected = attacks.universal(context.others["first"], [IMAGES[:16] / np.float32(255)], radius=RADIUS)
    np.testing.assert_array_equal(pattern.pattern, expected.pattern)


@pytest.mark.parametrize("suffix", [".png", ".npz"])
def test_a_published_pattern_is_scaled_to_the_radius(config, context, network, crops, mos, tmp_path, suffix):
    levels = np.random.default_rng(0).integers(-20, 20, (16, 16, 3)) + 0.5  # that a .png holds exactly
    levels[0, 0, 0] = 19.5
    values = (levels / 255).astype(np.float32)
    path = tmp_path / f"paq2piq{suffix}"
    attacks.UniversalPerturbation(jnp.asarray(values), jnp.asarray(np.abs(values).max())).save(path)
    published = universal(config, variant="paq2piq", sources=(str(path),))
    assert published.label == "universal:paq2piq" and published.columns["steps"] == 0
    module, variables = network()
    found = Scorer(module, batch_size=9).attack(
        variables, crops, mos, published, prepared=published.attack.prepare(context, published), keep_images=True
    )
    expected = np.clip(crops / np.float32(255) + values * RADIUS * 255 / 19.5, 0, 1)
    np.testing.assert_allclose(found["images"], expected, atol=1e-6)
    assert np.isnan(found["zero_gradient_fraction"]).all()


@pytest.mark.parametrize(
    ("sources", "methods", "complaint"),
    [
        (("other",), ["plain"], "names 'other', but the only model of the run is plain"),
        (("self", "self"), ["plain", "cprl"], "name at least one, and each once"),
        ((), ["plain"], "name at least one"),
        (("missing.png",), ["plain"], "missing.png cannot be read"),
        (("conftest.py",), ["plain"], "conftest.py"),
    ],
)
def test_patterns_that_cannot_be_had_are_refused_before_training(config, monkeypatch, sources, methods, complaint):
    monkeypatch.chdir("tests/evaluation")
    config.evaluation.attacks, config.evaluation.universal.sources = ("pgd", "universal"), sources
    with pytest.raises(UserError, match=complaint):
        table_attacks.check(config.evaluation, methods)
    config.evaluation.attacks = ("pgd",)
    table_attacks.check(config.evaluation, methods)


# ----------------------------------------------------------------------------------------------------- ensemble


@pytest.fixture
def small_budgets(monkeypatch):
    """Everything, in small numbers."""
    quick = attacks.Budget((2,), iterations=2, starts=1, averaged_starts=1, samples=1, queries=2, points=2)
    monkeypatch.setitem(BUDGETS, "quick", quick)
    monkeypatch.setitem(BUDGETS, "standard", quick._replace(pgd_steps=(3,)))


@pytest.mark.slow
def test_the_ensemble_is_the_one_of_attacks(network, crops, mos, crop_keys, small_budgets):
    module, variables = network()
    condition, adaptive = ATTACKS["ensemble"].at(3), models.score_fn(*network(1))
    found = Scorer(module, batch_size=9).attack(variables, crops, mos, condition, prepared=adaptive)
    expected = attacks.ensemble(
        models.score_fn(module, variables),
        crops.reshape(-1, 16, 16, 3) / np.float32(255),
        radius=RADIUS,
        direction=attacks.reflect(np.repeat(mos, 3)),
        key=crop_keys(0),
        adaptive_score_fn=adaptive,
        budget="quick",
    )
    for name in ("before", "settled", "after"):
        np.testing.assert_allclose(found[name], getattr(expected, name).reshape(6, 3).mean(axis=1), rtol=1e-4)
    assert found["won"].shape == (6, len(expected.members))
    np.testing.assert_allclose(found["won"].sum(axis=1), np.ones(6), rtol=1e-5)
    columns = condition.attack.summary(found)
    assert columns["converged"] == bool(expected.converged)
    shares = [columns[f"won_by_{name.replace(' ', '_')}"] for name in expected.members]
    np.testing.assert_allclose(shares, found["won"].mean(axis=0))


@pytest.mark.slow
def test_the_standard_budget_is_for_some_images(config, network, crops, mos, tmp_path, small_budgets, monkeypatch):
    evaluation = config.evaluation
    evaluation.attacks, evaluation.radii, evaluation.resamples = ("ensemble",), (3.0,), 10
    evaluation.ensemble.budgets, evaluation.ensemble.standard_images = ("quick", "standard"), 3
    asked = []
    monkeypatch.setattr(table, "adaptive_score_fn", lambda *arguments: asked.append(arguments))

    def evaluate():
        options = {"folder": tmp_path, "training_crops": None}
        return table.evaluate(config, "plain", {"plain": network()}, crops[:, :1], mos, **options)

    results = evaluate()
    assert asked[0][0] == "plain" and set(results) == {table.CLEAN, ("ensemble", 3.0), ("ensemble:standard", 3.0)}
    chosen = table.images_over_mos_range(mos, 3)
    some = results["ensemble:standard", 3.0]
    np.testing.assert_array_equal(some["rows"], chosen)
    np.testing.assert_allclose(some["before"], results[table.CLEAN]["after"][chosen], rtol=1e-5)
    rows = {(row["attack"], row["against"]): row for row in table.table_rows(config, "plain", results, mos)}
    assert [rows[name, "mos"]["images"] for name in ("none", "ensemble", "ensemble:standard")] == [6, 6, 3]
    assert rows["ensemble:standard", "mos"]["srcc"] == pytest.approx(
        scipy.stats.spearmanr(some["after"], mos[chosen]).statistic
    )
    assert "converged" in rows["ensemble", "mos"] and "converged" not in rows["none", "mos"]
    names = list("abcdef")
    scores = table.score_rows("plain", results, names, mos)
    listed = [row for row in scores if row["attack"] == "ensemble:standard"]
    assert [row["name"] for row in listed] == [names[place] for place in chosen]
    np.testing.assert_allclose([row["mos"] for row in listed], mos[chosen])
    np.testing.assert_allclose([row["score"] for row in listed], some["after"])
    # Another number of images, or one budget less, leaves the other budget's result as it is.
    evaluation.ensemble.standard_images = 2
    monkeypatch.setattr(attacks, "ensemble", None)  # what runs it fails
    evaluation.ensemble.budgets = ("quick",)
    np.testing.assert_array_equal(evaluate()["ensemble", 3.0]["after"], results["ensemble", 3.0]["after"])


@pytest.mark.parametrize("budgets", [(), ("quick", "quick")], ids=["none", "twice"])
def test_budgets_are_named_once(config, budgets):
    config.evaluation.attacks, config.evaluation.ensemble.budgets = ("ensemble",), budgets
    with pytest.raises(UserError, match="config.evaluation.ensemble.budgets is .*name each once, at least one of"):
        table_attacks.check(config.evaluation, ["plain"])


# --------------------------------------------------------------------------------------------------- perceptual


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["chebyshev", "ssim"])
def test_the_perceptual_attack_is_the_one_of_attacks(network, crops, mos, crop_keys, variant):
    module, variables = network()
    settings = {"steps": 5, "chebyshev_radius": 3.0, "ssim_multiplier": 0.02}
    condition = ATTACKS["perceptual"].at(0, variant=variant, **settings)
    found = Scorer(module, batch_size=18).attack(variables, crops, mos, condition, keep_images=True)
    score_fn, images = models.score_fn(module, variables), crops.reshape(-1, 16, 16, 3) / np.float32(255)
    expected = attacks.perceptual(
        score_fn,
        images,
        fidelity.distance(variant),
        key=crop_keys(0),
        multipliers=(np.inf if variant == "chebyshev" else 0.02,),
        step_size=3 / 255 / 5 if variant == "chebyshev" else 1e-3,
        steps=5,
    )
    np.testing.assert_allclose(found["after"], expected.after_unquantized[0].reshape(6, 3).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["after_8bit"], expected.after[0].reshape(6, 3).mean(axis=1), rtol=1e-5)
    assert found["max_change"].max() <= ((3 if variant == "chebyshev" else 5 * 0.255) + 1) / 255 + 1e-6
