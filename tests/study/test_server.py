"""The doors of the server: what they hand out, and everything that they must not."""

import http.client
import json
import re
import urllib.parse

import pytest
from starlette.testclient import TestClient

from cprl_jax.study import bundle, host, server
from cprl_jax.study.store import Refused

from .conftest import record_of, token

ADMIN = "the token that serve prints"


class Browser(TestClient):
    """An observer's side of the interface."""

    def begin(self, number, participant=""):
        self.headers["Authorization"] = f"Bearer {token(number)}"
        return self.post("/api/sessions", json={"token": token(number), "participant": participant})

    def answer(self, step, record=None, events=()):
        letter = {"step": step["id"], "record": record or record_of(step), "events": list(events)}
        return self.post("/api/steps", json=letter)


@pytest.fixture
def app(store):
    return server.create_app(store, admin=ADMIN)


@pytest.fixture
def browser(app):
    return Browser(app)


@pytest.fixture
def admin(app):
    return TestClient(app, headers={"Authorization": f"Bearer {ADMIN}"})


def test_a_whole_session(browser, admin):
    state = browser.begin(1, "Ann").json()
    assert state["done"] == 0 and state["code"] == ""
    for step in state["steps"]:
        assert browser.answer(step).status_code == 200
    assert len(browser.get("/api/session").json()["code"]) == 8
    export = admin.get("/api/admin/study.json").json()
    trials = [step["id"] for step in state["steps"] if step["kind"] == "trial"]
    assert [row["step"] for row in export["answers"]] == trials
    assert export["observers"][0]["participant"] == "Ann" and export["settings"]["max_catch_errors"] == 0.25


def test_the_page_may_not_reach_other_hosts_nor_run_what_is_written_into_it(browser):
    for path in ("/", "/web/pages.js", "/api/session", "/nowhere/at/all"):
        reply = browser.get(path)
        if path.startswith("/nowhere"):
            assert reply.status_code == 404
            continue
        policy = dict(part.strip().partition(" ")[::2] for part in reply.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
        assert reply.headers["x-content-type-options"] == "nosniff"
    page = browser.get("/").text
    assert not re.search(r"<script(?! src=\"web/[a-z-]+\.js\" defer></script>)", page) and " on" not in page
    for name in re.findall(r'(?:src|href)="(web/[^"]+)"', page):
        assert browser.get(f"/{name}").status_code == 200
    code = "".join(path.read_text() for path in bundle.WEB.glob("*.*s"))
    assert not re.search(r"https?://|\beval\b|new Function|importScripts", code)


@pytest.mark.parametrize(
    "path",
    [
        "/web/%2e%2e%2fserver.py", "/web/..%2f..%2fstore.py", "/web//etc/passwd",
        "/web/", "/web", "/web/package.json", "/web/files.js", "/api/images/", "/api/images/..%2f..%2fsettings.json",
        "/api/images/%00", "/api/images/catalogue.json", "/settings.json", "/answers.sqlite", "/api", "/api/admin",
        "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_nothing_is_handed_out_but_the_files_of_the_study(browser, path):
    browser.begin(1)
    assert browser.get(path, follow_redirects=False).status_code in (404, 307)


@pytest.mark.parametrize(
    "path", ["/..", "/web/../server.py", "//etc/passwd", "/web/../../../../etc/passwd", "/web/%00"]
)
def test_paths_that_no_browser_would_send_lead_nowhere(app, path):
    with host.in_background(app) as url:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=30)
        connection.request("GET", path)
        assert connection.getresponse().status == 404
        connection.close()


def test_an_observer_gets_the_images_of_the_own_session_alone(make_store):
    store = make_store(trials=1, repeats=0, catches=0, training=1)
    browser = Browser(server.create_app(store, admin=ADMIN))
    mine = browser.begin(1).json()["images"]
    for image, described in mine.items():
        reply = browser.get(f"/api/images/{image}")
        assert reply.headers["content-type"] == "image/png" and len(reply.content) == described["bytes"]
    (other, *_) = [image for image in store.catalogue.images if image not in mine]
    assert browser.get(f"/api/images/{other}").status_code == 404
    for headers in ({"Authorization": ""}, {"Authorization": f"Bearer {token(9)}"}, {"Authorization": "Basic x"}):
        assert browser.get(f"/api/images/{next(iter(mine))}", headers=headers).status_code == 401


def test_observers_cannot_touch_each_other(app, admin):
    one, other = Browser(app), Browser(app)
    steps, theirs = one.begin(1).json()["steps"], other.begin(2).json()["steps"]
    assert other.answer(steps[0]).status_code == 404
    assert one.answer(theirs[0]).status_code == 404
    assert other.get("/api/admin/study.json").status_code == 401
    assert other.delete("/api/admin/observers/1").status_code == 401
    assert other.delete("/api/session").status_code == 200
    assert one.get("/api/session").status_code == 200 and other.get("/api/session").status_code == 401
    assert [row["observer"] for row in admin.get("/api/admin/study.json").json()["observers"]] == [1]


def test_a_replay_is_acknowledged_and_a_change_refused(browser, admin):
    steps = browser.begin(1).json()["steps"]
    for step in steps[:4]:
        browser.answer(step)
    for _ in range(2):
        assert browser.answer(steps[3]).json() == {"done": 4}
    assert browser.answer(steps[3], record_of(steps[3], "different")).status_code == 409
    assert browser.answer(steps[6]).status_code == 409
    assert len(admin.get("/api/admin/study.json").json()["answers"]) == 1
    assert browser.begin(1).json()["done"] == 4  # a lost reply to the first request begins nothing twice


@pytest.mark.parametrize(
    ("body", "type_", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"{}", "application/json", 422),
        (b'{"token": "1", "participant": "", "observer": 3}', "application/json", 422),
        (b'{"token": 1, "participant": ""}', "application/json", 400),
        (b"x" * 65 * 1024, "application/json", 413),
        (b"{}", "text/plain", 415),
        (b"a=1", "application/x-www-form-urlencoded", 415),
    ],
    ids=["empty", "half", "deep", "no-text", "list", "nothing", "more", "number", "large", "plain", "form"],
)
def test_bad_bodies_are_refused_in_a_sentence(browser, admin, body, type_, status):
    reply = browser.post("/api/sessions", content=body, headers={"Content-Type": type_})
    assert reply.status_code == status and reply.json()["error"]
    assert admin.get("/api/admin/study.json").json()["observers"] == []


def test_a_body_without_a_length_is_not_read_to_its_end(browser):
    read = []

    def endless():
        for _ in range(1000):
            read.append(1)
            yield b"x" * 8192

    reply = browser.post("/api/sessions", content=endless(), headers={"Content-Type": "application/json"})
    assert reply.status_code == 413


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "Ünï\u202e\n", "'; DROP TABLE steps;--"],
    ids=["script", "formula", "unicode", "sql"],
)
def test_text_of_observers_stays_text(browser, admin, text):
    steps = browser.begin(1, text).json()["steps"]
    for step in steps:
        browser.answer(step, record_of(step, comment=text) if step["kind"] == "comments" else None)
    assert text not in browser.get("/").text
    (row,) = admin.get("/api/admin/study.json").json()["observers"]
    assert row["participant"] == row["comment"] == text
    table = admin.get("/api/admin/observers.csv")
    assert table.headers["content-type"].startswith("text/csv") and table.headers["x-content-type-options"] == "nosniff"
    assert ",=" not in table.text and "\n=" not in table.text


def test_exports_and_deletions_need_the_token(app, admin):
    Browser(app).begin(1)
    names = ("status", "study.json", "answers.csv", "observers.csv", "events.csv", "pairs.csv")
    for name in names:
        assert admin.get(f"/api/admin/{name}").status_code == 200
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {token(1)}"}):
            assert TestClient(app, headers=headers).get(f"/api/admin/{name}").status_code == 401
    assert admin.get("/api/admin/settings.json").status_code == 404
    assert admin.delete("/api/admin/observers/1").status_code == 200
    assert admin.delete("/api/admin/observers/1").status_code == 404
    assert b"observers: 0 began" in admin.get("/api/admin/status").content


def test_tokens_cannot_be_tried_out(store, monkeypatch):
    monkeypatch.setattr(server, "FAILURES_PER_MINUTE", 4)
    app = server.create_app(store, admin=ADMIN)
    stranger = TestClient(app)
    codes = [stranger.get("/api/admin/status", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(6)]
    assert codes == [401] * 4 + [429] * 2
    for method in ("GET", "DELETE"):
        wrong = TestClient(server.create_app(store, admin=ADMIN), headers={"Authorization": f"Bearer {token(1)}"})
        codes = [wrong.request(method, "/api/session").status_code for _ in range(6)]
        assert codes == [401] * 4 + [429] * 2


def test_rates_are_limited_and_say_when_to_come_back(store, monkeypatch):
    monkeypatch.setattr(server, "SESSIONS_PER_MINUTE", 3)
    monkeypatch.setattr(server, "STEPS_PER_SECOND", 0.01)
    monkeypatch.setattr(server, "STEPS_AT_ONCE", 2)
    app = server.create_app(store, admin=ADMIN)
    assert [Browser(app).begin(number).status_code for number in range(5)] == [200] * 3 + [429] * 2
    browser = Browser(app, headers={"Authorization": f"Bearer {token(1)}"})
    step = store.session(token(1)).steps[0]
    replies = [browser.answer(step) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429] and replies[-1].headers["retry-after"]


def test_a_limit_lets_through_so_many_at_once_and_so_many_a_second(monkeypatch):
    moment = [100.0]
    monkeypatch.setattr(server.time, "monotonic", lambda: moment[0])
    limit = server.Limit(2.0, 3)

    def allowed(key="x"):
        try:
            limit.take(key)
        except Refused:
            return False
        return True

    assert [allowed() for _ in range(5)] == [True] * 3 + [False] * 2
    assert allowed("y")
    moment[0] += 1.0
    assert [allowed() for _ in range(3)] == [True, True, False]
    moment[0] += 1000
    assert [allowed() for _ in range(4)] == [True] * 3 + [False]


def test_a_full_disk_is_no_answer_lost(browser, store):
    steps = browser.begin(1).json()["steps"]
    store._file.execute("CREATE TRIGGER full BEFORE UPDATE ON steps BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    assert browser.answer(steps[0]).status_code == 503  # the page tries again
    store._file.execute("DROP TRIGGER full")
    assert browser.answer(steps[0]).json() == {"done": 1}


def test_a_damaged_image_is_waited_for_and_named_to_who_runs_the_study(browser, store, capsys):
    (image, *_) = browser.begin(1).json()["images"]
    path = store.catalogue.folder / "images" / f"{image}.png"
    whole = path.read_bytes()
    for content in (whole[:-1], b"x" * len(whole)):
        path.write_bytes(content)
        assert browser.get(f"/api/images/{image}").status_code == 503
        assert f"{image}.png is damaged" in capsys.readouterr().err
    path.unlink()
    reply = browser.get(f"/api/images/{image}")
    assert reply.status_code == 503 and "content-security-policy" in reply.headers
    assert str(store.catalogue.folder) not in reply.text
    path.write_bytes(whole)
    assert browser.get(f"/api/images/{image}").content == whole


def test_nothing_about_the_right_answers_leaves_the_server(browser):
    state = browser.begin(1).json()
    told = json.dumps([step for step in state["steps"] if not step.get("training")])
    assert not re.search("catch|perturbed|expected|role|chebyshev|barn", told)
