"""No answer is lost, none is counted twice, and nobody reaches those of another."""

import sqlite3

import pytest

from cprl_jax.study import store as store_lib
from cprl_jax.study.store import Refused, Store

from .conftest import record_of, token


def play(store, number, *, until=None, answer="same"):
    session = store.begin(token(number))
    for step in session.steps[session.done : until]:
        store.submit(token(number), step["id"], record_of(step, answer))
    return session


def refused(status, function, *arguments, **options):
    with pytest.raises(Refused) as caught:
        function(*arguments, **options)
    assert caught.value.status == status
    return str(caught.value)


def test_a_session_goes_from_consent_to_its_code(store):
    session = store.begin(token(1), "Ann")
    for place, step in enumerate(session.steps):
        assert store.session(token(1)).code == ""
        assert store.submit(token(1), step["id"], record_of(step)) == place + 1
    assert len(store.session(token(1)).code) == 8
    (row,) = store.rows("observers")
    assert row["participant"] == "Ann" and row["completion_code"] == store.session(token(1)).code
    assert row["done"] == row["steps"] == len(session.steps) and row["finished"] and row["agreed"] is True


def test_the_same_answer_again_is_acknowledged_and_not_counted(store):
    session = play(store, 1, until=5)
    step = session.steps[4]
    for _ in range(3):
        assert store.submit(token(1), step["id"], record_of(step)) == 5
    assert [row["step"] for row in store.rows("answers")] == [session.steps[3]["id"], step["id"]]


def test_another_answer_to_the_same_step_is_refused(store):
    session = play(store, 1, until=5)
    assert "another way" in refused(
        409, store.submit, token(1), session.steps[4]["id"], record_of(session.steps[4], "different")
    )
    assert [row["answer"] for row in store.rows("answers")] == ["same", "same"]


def test_steps_come_in_their_order(store):
    session = play(store, 1, until=2)
    later = session.steps[4]
    assert "turn" in refused(409, store.submit, token(1), later["id"], record_of(later))
    assert store.session(token(1)).done == 2


def test_forged_names_are_refused(store):
    session, other = play(store, 1, until=3), store.begin(token(2))
    step = session.steps[3]
    refused(404, store.submit, token(1), other.steps[0]["id"], {"agreed": True})  # of another observer
    refused(404, store.submit, token(1), "' OR 1=1 --", record_of(step))
    refused(404, store.submit, token(1), ["0003"], record_of(step))
    refused(404, store.submit, token(1), "\ud800", record_of(step))
    refused(401, store.submit, token(3), step["id"], record_of(step))
    for forged in ("", "x" * 64, token(1)[:-1], token(1).upper().replace("0", "O"), None, 1):
        refused(400, store.begin, forged)
    refused(400, store.begin, token(4), "\ud800")
    refused(400, store.begin, token(4), "x" * 101)
    assert len(store.rows("observers")) == 2


def test_what_is_no_record_is_refused_and_changes_nothing(store):
    session = play(store, 1, until=3)
    step = session.steps[3]
    good = record_of(step)
    for bad in (
        None, [], {}, good | {"more": 1}, good | {"answer": "perhaps"}, good | {"answer": None}, good | {"rt_ms": "1"},
        good | {"rt_ms": float("nan")}, good | {"rt_ms": -1}, good | {"shown": 1.5}, good | {"hidden": 1},
        good | {"durations_ms": [1] * 5000}, good | {"input": "x" * 1000}, good | {"rt_ms": 10**400},
    ):  # fmt: skip
        refused(422, store.submit, token(1), step["id"], bad)
    for events in ("x", [{}], [{"at_ms": 1, "event": "blur"}], [{"at_ms": 1, "event": "<b>", "detail": ""}]):
        refused(422, store.submit, token(1), step["id"], good, events)
    refused(422, store.submit, token(1), step["id"], good, [{"at_ms": 1, "event": "blur", "detail": ""}] * 201)
    assert store.session(token(1)).done == 3 and store.rows("events") == []
    store.submit(token(1), step["id"], good, [{"at_ms": 1, "event": "blur", "detail": "x"}])
    assert [row["event"] for row in store.rows("events")] == ["blur"]


def test_nobody_gets_past_the_consent_without_it(store):
    (step, *_) = store.begin(token(1)).steps
    assert "agreed is not true" in refused(422, store.submit, token(1), step["id"], {"agreed": False})


def test_a_session_can_be_taken_up_again_until_it_is_too_old(store, monkeypatch):
    session = play(store, 1, until=6)
    finished = play(store, 2)
    assert store.session(token(1)).done == 6 and store.begin(token(1)).steps == session.steps
    later = store_lib.now
    monkeypatch.setattr(store_lib, "now", lambda hours=0.0: later(hours + store.settings.hours + 0.01))
    assert "more than 24 hours ago" in refused(410, store.session, token(1))
    refused(410, store.submit, token(1), session.steps[6]["id"], record_of(session.steps[6]))
    assert store.session(token(2)).done == len(finished.steps)  # its code can still be read
    store.withdraw(token(1))
    assert [row["observer"] for row in store.rows("observers")] == [2]


def test_pairs_of_abandoned_sessions_are_given_to_others(store, monkeypatch):
    first = {step["pair"] for step in store.begin(token(1)).steps if step.get("role") == "test"}
    assert first.isdisjoint(step.get("pair") for step in store.begin(token(2)).steps if step.get("role") == "test")
    later = store_lib.now
    monkeypatch.setattr(store_lib, "now", lambda hours=0.0: later(hours + store.settings.hours + 0.01))
    with store._lock:
        assert store._counts(store._file) == {}


def test_there_are_no_more_sessions_than_asked_for(make_store):
    store = make_store(most_observers=2)
    for number in (1, 2, 1):
        store.begin(token(number))
    assert "all the observers" in refused(403, store.begin, token(3))  # not 503, which the page would try again


def test_what_is_deleted_is_gone_from_the_file(make_store):
    store = make_store()
    secret = "a sentence that nobody else writes"
    for number in (1, 2):
        session = play(store, number, until=-1)
        store.submit(token(number), session.steps[-1]["id"], {"comment": secret if number == 1 else "hello"})
    assert store.delete(1) and not store.delete(1)
    refused(401, store.session, token(1))
    assert {row["observer"] for table in ("answers", "observers") for row in store.rows(table)} == {2}
    for path in store.catalogue.folder.glob("answers.sqlite*"):
        assert secret.encode() not in path.read_bytes()
    assert store.begin(token(3)).observer == 3  # a number is never given again


def test_the_token_is_not_in_the_file(store):
    store.begin(token(77))
    assert all(token(77).encode() not in path.read_bytes() for path in store.catalogue.folder.glob("answers.sqlite*"))


def test_every_commit_waits_for_the_disk(store):
    assert store._file.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert store._file.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_answers_of_other_images_are_not_mixed_in(store, make_store):
    from cprl_jax.runtime.errors import UserError

    store.begin(token(1))
    with pytest.raises(UserError, match="about other images or settings"):
        Store(store.catalogue.folder, store.settings, store.catalogue._replace(study="another"))


def test_a_file_that_is_no_database_is_named(store):
    from cprl_jax.runtime.errors import UserError

    folder = store.catalogue.folder.parent
    (folder / "answers.sqlite").write_text("no database, but long enough to be taken for something" * 20)
    with pytest.raises(UserError, match="answers.sqlite cannot be used"):
        Store(folder, store.settings, store.catalogue)


def test_a_failure_in_the_middle_leaves_nothing(store):
    session = play(store, 1, until=3)
    store._file.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    step = session.steps[3]
    with pytest.raises(sqlite3.Error):
        store.submit(token(1), step["id"], record_of(step), [{"at_ms": 1, "event": "blur", "detail": ""}])
    assert store.session(token(1)).done == 3 and store.rows("answers") == []


def test_correct_is_known_where_there_is_a_right_answer(store):
    play(store, 1, answer="different")
    for row in store.rows("answers"):
        assert row["correct"] == {"same": False, "different": True, "": None}[row["expected"]]
