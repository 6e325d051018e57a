"""What observers get to see: balanced, seeded, and nothing told that would give an answer away."""

from collections import Counter

import pytest

from cprl_jax.study import plan


def plans(store, count):
    """Those of `count` observers, one after the other."""
    counts, made = Counter(), []
    for observer in range(count):
        made.append(plan.make(store.settings, store.catalogue, (0, observer), counts))
        counts.update(step["pair"] for step in made[-1] if step.get("role") == "test")
    return made, counts


def trials(steps):
    return [step for step in steps if step["kind"] == "trial" and step["role"] != "training"]


def test_every_pair_is_given_to_as_many_observers_as_any_other(store):
    pairs = {pair.id for pair in store.catalogue.pairs}
    for observers in (1, 2, 5, 9):
        _, counts = plans(store, observers)
        numbers = [counts[pair] for pair in pairs]
        assert sum(numbers) == observers * store.settings.trials
        assert max(numbers) - min(numbers) <= 1


def test_a_plan_has_what_the_settings_ask_for(make_store):
    store = make_store(trials=10, repeats=3, catches=2, training=4, block=6)
    (steps,), _ = plans(store, 1)
    roles = Counter(step["role"] for step in steps if step["kind"] == "trial")
    assert roles == {"test": 10, "repeat": 3, "catch_same": 2, "catch_different": 2, "training": 4}
    assert [step["kind"] for step in steps[:3]] == ["consent", "instructions", "display"]
    assert steps[-1]["kind"] == "comments"
    blocks = Counter(step["block"] for step in trials(steps))
    assert max(blocks.values()) <= 6 and max(blocks.values()) - min(blocks.values()) <= 1
    assert sum(step["kind"] == "break" for step in steps) == len(blocks)  # one of them after the training
    assert len({step["id"] for step in steps}) == len(steps)


def test_a_repeat_is_of_a_pair_that_was_shown_before(make_store):
    store = make_store(repeats=5)
    for steps in plans(store, 6)[0]:
        seen = set()
        for step in trials(steps):
            assert step["role"] != "repeat" or step["pair"] in seen
            assert step["role"] != "test" or step["pair"] not in seen
            seen.add(step["pair"])


def test_the_perturbed_image_comes_first_in_half_of_the_trials(make_store):
    store = make_store(trials=12, repeats=0, catches=0)
    for steps in plans(store, 4)[0]:
        assert Counter(step["perturbed_at"] for step in trials(steps)) == {1: 6, 2: 6}
        for step in trials(steps):
            (pair,) = (pair for pair in store.catalogue.pairs if pair.id == step["pair"])
            assert step["stimuli"][step["perturbed_at"] - 1] == pair.perturbed
            assert step["stimuli"][2 - step["perturbed_at"]] == pair.original


def test_the_same_seed_and_observer_give_the_same_plan(store):
    def made(*key):
        return plan.make(store.settings, store.catalogue, key, {})

    assert made(0, 3) == made(0, 3)
    assert [step.get("pair") for step in made(0, 3)] != [step.get("pair") for step in made(0, 4)]
    assert {step["id"] for step in made(0, 3)}.isdisjoint(step["id"] for step in made(1, 3))


def test_no_image_comes_twice_in_a_row_where_that_can_be_had(make_store):
    store = make_store(trials=18, repeats=3, catches=3)
    for steps in plans(store, 5)[0]:
        images = [step["image"] for step in trials(steps)]
        assert all(one != other for one, other in zip(images, images[1:], strict=False))


def test_the_page_is_not_told_which_image_is_perturbed(store):
    (steps,), _ = plans(store, 1)
    for step in steps:
        public = plan.public(step)
        assert not {"role", "pair", "image", "perturbed_at"} & public.keys()
        assert ("expected" in public) == (step.get("role") == "training")


@pytest.mark.parametrize("trial", ["yesno", "flicker", "2afc"])
def test_each_kind_of_trial_expects_what_its_images_say(make_store, trial):
    store = make_store(trial=trial, training=4, catches=2)
    originals = {picture.original for picture in store.catalogue.pictures}
    (steps,), _ = plans(store, 1)
    for step in (step for step in steps if step["kind"] == "trial"):
        first, second = step["stimuli"][-2:]
        if trial == "2afc":
            assert step["stimuli"][0] in originals and first != second
            assert step["expected"] == ("first" if second in originals else "second")
        elif step["role"] in ("test", "repeat"):
            assert step["expected"] == "" and first != second
        else:
            assert step["expected"] == ("same" if first == second else "different")


def test_plans_of_a_folder_of_files_are_balanced_as_well(store):
    counts = Counter()
    for number in range(1, 7):
        counts.update(step["pair"] for step in plan.of_file(store.settings, store.catalogue, number) if "pair" in step)
    counts.pop("")
    assert len(counts) == len(store.catalogue.pairs)
