"""The stated rules: each leaves out whom it names and nobody else; the honest stay, also with few trials."""

import numpy as np
import pytest

from cprl_jax.study.analysis import answers, exclusion


@pytest.fixture
def pairs(made):
    return made.pairs_of(models=("ma19",))


@pytest.fixture
def apply(made, pairs):
    """A function from changed answers to what counts; observer 1 is changed by `change`."""

    def applied(change=lambda row, random: row, *, about=None, count=15, **settings):
        random = np.random.default_rng(9)
        rows = [
            change(row, random) if row["observer"] == 1 else row
            for row in made.modelled(pairs, observers=count, seed=3)
        ]
        observers = [made.observer(number, **(about or {} if number == 1 else {})) for number in range(1, count + 1)]
        given = answers.combine({"x": made.export(pairs, [row for row in rows if row], observers, **settings)})
        return exclusion.apply(given)

    return applied


def excluded(counted):
    return {row["observer"]: row["excluded"] for row in counted.observers if row["excluded"]}


def test_honest_observers_all_count(apply, pairs):
    counted = apply()
    assert excluded(counted) == {}
    assert len(counted.tests) == 15 * len(pairs) and len(counted.catches) == 15 * 16


def spammer(row, random):
    return row | {"answer": str(random.choice(["same", "different"]))}


def opposite(row, random):
    return row | {"answer": {"same": "different", "different": "same"}[row["answer"]]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spammer, "catch trials"),
        (opposite, "catch trials"),
        (lambda row, random: row | {"answer": "same"}, "one answer to nearly everything"),
        (lambda row, random: row | {"answer": "different"}, "one answer to nearly everything"),
        (lambda row, random: row | {"rt_ms": 50.0}, "too many answers that do not count"),
        (lambda row, random: row | {"hidden": True}, "too many answers that do not count"),
        (lambda row, random: row | {"durations_ms": [1000, 500, 1200]}, "too many answers that do not count"),
    ],
    ids=["spammer", "opposite", "same", "different", "fast", "hidden", "timing"],
)
def test_the_rule_names_the_observer(apply, change, reason):
    counted = apply(change)
    assert excluded(counted) == {"1": reason}
    assert all(row["observer"] != "1" for row in [*counted.tests, *counted.catches])


def test_twenty_spammers_are_nearly_all_left_out(made, pairs):
    random = np.random.default_rng(4)
    rows = made.modelled(pairs, observers=40, seed=5)
    rows = [spammer(row, random) if row["observer"] > 20 else row for row in rows]
    observers = [made.observer(number) for number in range(1, 41)]
    names = excluded(exclusion.apply(answers.combine({"x": made.export(pairs, rows, observers, bt500=False)})))
    assert not {str(number) for number in range(1, 21)} & set(names)
    assert len(names) >= 17  # 16 fair coins show at most 4 errors once in 26 times


def test_who_sees_nothing_but_the_plain_differences_is_no_straight_liner(apply):
    counted = apply(lambda row, random: row | {"answer": "same"} if row["role"] == "test" else row)
    assert "1" not in excluded(counted)


def test_an_honest_observer_with_few_trials_stays(apply):
    def few(row, random):
        step = row["step"].partition("-")[2]
        return row if step in ("0", "3", "6", "catch_same0", "catch_different0") else None

    counted = apply(few)
    assert excluded(counted) == {}
    assert sum(row["observer"] == "1" for row in counted.tests) == 3


def test_a_display_that_hides_dark_squares(apply):
    assert excluded(apply(about={"dark_seen": 1})) == {"1": "display test"}
    assert excluded(apply(about={"dark_seen": 2, "bright_seen": None})) == {}


def test_bt500_leaves_out_one_who_is_far_on_both_sides(made, pairs):
    rows = made.modelled(pairs, observers=30, seed=6, between=0.5, guess=0.005, lapse=0.005, spread=1.0)
    for row in rows:
        if row["observer"] == 1 and row["role"] == "test":
            row["answer"] = "different" if int(row["step"].partition("-")[2]) % 7 < 3 else "same"  # the reverse
    given = made.export(pairs, rows, [made.observer(number) for number in range(1, 31)])
    assert excluded(exclusion.apply(answers.combine({"x": given}))) == {"1": "rejected by BT.500"}
    given["settings"]["bt500"] = False
    assert excluded(exclusion.apply(answers.combine({"x": given}))) == {}


def test_training_repeats_and_single_spoilt_answers_do_not_count(apply, made, pairs):
    rows = [
        made.answer(1, "a", role="training", expected="same"),
        made.answer(1, "b", pair=pairs[0]["pair"]),
        made.answer(1, "c", pair=pairs[0]["pair"], role="repeat"),
        made.answer(1, "d", pair=pairs[1]["pair"], rt_ms=10.0),
    ]
    counted = exclusion.apply(answers.combine({"x": made.export(pairs, rows, [made.observer(1)])}))
    assert [row["step"] for row in counted.tests] == ["1-b"]
    (row,) = counted.observers
    assert (row["repeats"], row["repeats_alike"], row["given"]) == (1, 1, 3)


def test_the_rules_say_what_the_settings_say(made):
    rules = exclusion.stated(made.settings(max_catch_errors=0.4, max_timing_error_ms=30.0))
    assert any("40 % of the catch trials" in rule for rule in rules) and any("30 ms" in rule for rule in rules)
    assert any("BT.500" in rule for rule in rules)
    fewer = exclusion.stated(made.settings(bt500=False, drop_hidden=False))
    assert len(fewer) == len(rules) - 2


def test_pairs_are_grouped_by_fidelity_and_distance(made):
    pairs = made.pairs_of()
    groups = exclusion.groups(pairs)
    assert set(groups) == {pair["pair"] for pair in pairs} and len(set(groups.values())) == 2 * exclusion.GROUPS
    by_group = {}
    for pair in pairs:
        by_group.setdefault(groups[pair["pair"]], []).append(pair)
    assert all(len({pair["fidelity"] for pair in members}) == 1 for members in by_group.values())


@pytest.mark.parametrize(
    ("durations", "rt_ms", "reason"),
    [
        ([100, 116], 3000, ""),
        ([100, 170], 3000, "timing"),
        ([40, 100], 3000, "timing"),
        ([], 140, "too fast"),
        ([], 3000, "timing"),  # the display stood still before the first change
        ([100, 100], 150, "too fast"),
    ],
)
def test_flicker_is_judged_by_its_shortest_and_longest_image(made, durations, rt_ms, reason):
    settings = made.settings(trial="flicker")
    row = made.answer(1, 1, durations_ms=durations, rt_ms=rt_ms)
    assert exclusion.spoilt(row, settings, exclusion._nominal(settings)) == reason
