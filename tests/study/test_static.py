"""The study as a folder, and what comes back of it: taken once, checked as if it came to the server."""

import base64
import hashlib
import json
import re

import pytest

from cprl_jax.runtime.errors import UserError
from cprl_jax.study import plan, static

from .conftest import record_of, token


def answers(store, number=1, *, observer=5, until=None, **changes):
    """What a page saves after plan `number`."""
    steps = plan.of_file(store.settings, store.catalogue, number)[:until]
    letters = [{"step": step["id"], "record": record_of(step), "events": []} for step in steps]
    content = {"format": static.FORMAT, "study": store.catalogue.study, "plan": number, "token": token(observer)}
    return content | {"participant": "Ann", "code": "ABCD2345", "steps": letters} | changes


@pytest.fixture
def take(store, tmp_path):
    def take(content):
        path = tmp_path / "answers.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return static.read(store, path)

    return take


def received(path):
    """What a script of data/ gives to the page."""
    return json.loads(re.fullmatch(r"received\((.*)\);\n", path.read_text(), re.DOTALL)[1])


def test_the_folder_has_every_image_of_its_plans_and_nothing_else(store, tmp_path):
    folder = static.write(store, tmp_path / "out", plans=4)
    study = received(folder / "data" / "study.js")
    assert study["plans"] == 4 and study["id"] == store.catalogue.study
    images = set()
    for number in range(1, 5):
        content = received(folder / "data" / f"plan-{number}.js")
        assert content["steps"] == json.loads(json.dumps(
            [plan.public(step) for step in plan.of_file(store.settings, store.catalogue, number)]
        ))  # fmt: skip
        images |= content["images"].keys()
        for image, described in content["images"].items():
            png = base64.b64decode(received(folder / "data" / f"image-{image}.js"))
            assert hashlib.sha256(png).hexdigest() == described["sha256"]
    assert {path.name for path in (folder / "data").glob("image-*")} == {f"image-{image}.js" for image in images}
    index = (folder / "index.html").read_text()
    assert "web/files.js" in index and "web/http.js" not in index and "connect-src" not in index
    for name in re.findall(r'(?:src|href)="(web/[^"]+)"', index):
        assert (folder / name).is_file()


def test_answers_are_taken_once(store, take):
    assert take(answers(store)) == f"{len(answers(store)['steps'])} steps"
    before = store.rows("answers")
    assert take(answers(store)) == "there already" and store.rows("answers") == before
    (observer,) = store.rows("observers")
    assert observer["source"] == "file" and observer["completion_code"] == "ABCD2345" and observer["finished"]


def test_two_people_may_have_had_the_same_plan(store, take):
    for observer in (5, 6):
        take(answers(store, 2, observer=observer))
    one, other = ([row["step"] for row in store.rows("answers") if row["observer"] == n] for n in (1, 2))
    assert one == other


def test_a_part_can_be_followed_by_the_whole(store, take):
    assert take(answers(store, until=5)) == "5 steps"
    take(answers(store))
    assert store.rows("observers")[0]["finished"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("", "no file of answers"),
        ("[" * 5000, "no file of answers"),
        ('{"format": 1}', "no file of answers"),
        ({"study": "another"}, "another study"),
        ({"plan": 0}, "no plan 0"),
        ({"plan": True}, "no plan True"),
        ({"plan": 2}, "no such step"),
        ({"token": "short"}, "64 hexadecimal digits"),
        ({"participant": "x" * 200}, "at most 100"),
        ({"code": "<b>"}, "no completion code"),
        ({"steps": [{"step": "x"}]}, "no file of answers"),
    ],
    ids=["empty", "deep", "other", "study", "zero", "bool", "wrong-plan", "token", "participant", "code", "letters"],
)
def test_a_file_that_does_not_fit_is_named_and_leaves_nothing(store, take, change, says):
    with pytest.raises(UserError, match=rf"answers\.json.*{says}"):
        take(change if isinstance(change, str) else answers(store) | change)
    assert store.rows("observers") == []


def test_one_bad_answer_leaves_nothing_of_its_file(store, take):
    content = answers(store)
    content["steps"][6]["record"]["answer"] = "perhaps"
    with pytest.raises(UserError, match="answer is not one of same, different"):
        take(content)
    assert store.rows("observers") == []


def test_one_bad_answer_among_new_ones_leaves_nothing_of_a_file_of_a_known_observer(store, take):
    take(answers(store, until=5))
    before = store.rows("answers"), store.rows("observers")
    content = answers(store, code="WXYZ2345")
    content["steps"][8]["record"]["answer"] = "perhaps"
    with pytest.raises(UserError, match="answer is not one of same, different"):
        take(content)
    assert (store.rows("answers"), store.rows("observers")) == before
    assert take(answers(store)) == f"{len(content['steps']) - 5} steps"


def test_an_altered_file_of_an_observer_changes_nothing(store, take):
    take(answers(store))
    before = store.rows("answers")
    content = answers(store)
    content["steps"][6]["record"]["answer"] = "different"
    with pytest.raises(UserError, match="answered already, in another way"):
        take(content)
    assert store.rows("answers") == before


def test_a_folder_with_something_else_in_it_is_not_written_into(store, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is not empty, and not of a study"):
        static.write(store, tmp_path, plans=1)
    (tmp_path / "data").mkdir()  # as many web servers have one
    with pytest.raises(UserError, match="is not empty, and not of a study"):
        static.write(store, tmp_path, plans=1)
    for plans in (0, 10**6):
        with pytest.raises(UserError, match="--plans"):
            static.write(store, tmp_path / "new", plans=plans)
    for out in (tmp_path / "mine.txt", tmp_path / "mine.txt" / "below"):
        with pytest.raises(UserError, match="--out=.* cannot be written to"):
            static.write(store, out, plans=1)


def test_a_folder_of_the_same_study_is_written_anew_and_one_of_another_is_kept(make_store, tmp_path):
    store, folder = make_store(), tmp_path / "folder"
    for plans in (3, 2):
        static.write(store, folder, plans=plans)
        assert f'"plans": {plans}' in (folder / "data" / "study.js").read_text()
        assert len(list((folder / "data").glob("plan-*.js"))) == 3  # somebody may be in the middle of the third
    with pytest.raises(UserError, match="has another study"):
        static.write(make_store("other", seed=7), folder, plans=1)
    (folder / "data" / "study.js").write_bytes(b"\xff")
    with pytest.raises(UserError, match="has another study"):
        static.write(store, folder, plans=1)


def test_a_folder_that_was_not_finished_is_written_to_its_end(store, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(static.plan, "public", stopped)
        static.write(store, tmp_path / "folder", plans=1)
    assert not (tmp_path / "folder" / "index.html").exists()
    static.write(store, tmp_path / "folder", plans=1)
    assert (tmp_path / "folder" / "index.html").exists()
