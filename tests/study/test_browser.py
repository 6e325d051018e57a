"""The page in a real browser: from consent to code, reloads, timing, and the folder of files. Skipped without one."""

import json
import os
import shutil
import time

import pytest

from cprl_jax.study import bundle, host, server, static

from .conftest import write_run

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (_CHROMIUM and _DRIVER), reason="no chromium and chromedriver (Debian: chromium-driver)"),
    pytest.mark.skipif(bool(bundle.missing()), reason="the libraries of the page are not there (`make study`)"),
]
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1000,800"
)
PATIENCE = 60  # seconds, for a machine that does much else


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), height=192, width=256)


class Page:
    """A browser as an observer uses it."""

    def __init__(self, folder, *arguments, **options):
        from selenium import webdriver

        chosen = webdriver.ChromeOptions()
        chosen.binary_location = _CHROMIUM
        for argument in (*_FLAGS.split(), f"--user-data-dir={folder}", *arguments):
            chosen.add_argument(argument)
        chosen.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for name, value in options.items():
            chosen.add_experimental_option(name, value)
        self.driver = webdriver.Chrome(options=chosen, service=webdriver.ChromeService(_DRIVER))
        self.problems = []

    def see(self, *names):
        """The first of these elements (ids) that is there to be used."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.common.by import By

        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                for name in names:
                    for element in self.driver.find_elements(By.ID, name):
                        if element.is_displayed() and element.is_enabled():
                            return element
            except StaleElementReferenceException:
                pass
            time.sleep(0.02)
        body = self.driver.find_element(By.TAG_NAME, "body").text
        raise AssertionError(f"none of {names} in {PATIENCE} s; the page says: {body!r}; {self.log()}")

    def log(self):
        self.problems += [entry["message"] for entry in self.driver.get_log("browser")]
        return self.problems

    def begin(self):
        """Consent, instructions, full screen and the check of the display."""
        self.see("agreed").click()
        self.see("jspsych-survey-html-form-next").click()
        for _ in range(3):
            self.see("jspsych-instructions-next").click()
        if self.see("jspsych-fullscreen-btn", "dark_seen").get_attribute("id") == "jspsych-fullscreen-btn":
            self.see("jspsych-fullscreen-btn").click()
        for name in ("dark_seen", "bright_seen"):
            self.see(name).send_keys("3")
        self.see("jspsych-survey-html-form-next").click()

    def answer(self, *names, most=10**6):
        """Answers with the first of the names, at most so many trials; returns how many, at the end of all of them."""
        count = 0
        while count < most:
            element = self.see("go-on", "comment", *names)
            name = element.get_attribute("id")
            if name == "comment":
                return count
            element.click()
            count += name != "go-on"
        return count

    def finish(self, comment=""):
        self.see("comment").send_keys(comment)
        self.see("jspsych-survey-html-form-next").click()
        return self.see("code").text


@pytest.fixture
def page(tmp_path):
    page = Page(tmp_path / "browser")
    yield page
    page.driver.quit()


def rows(store, role=None):
    return [row for row in store.rows("answers") if role in (None, row["role"])]


def test_from_consent_to_the_code_with_a_reload_in_the_middle(make_store, page):
    store = make_store(title="<img src=x onerror=alert(1)> & co")
    with host.in_background(server.create_app(store, admin="x")) as url:
        page.driver.get(f"{url}?participant=Ann")
        page.see("agreed")
        assert page.driver.title == store.settings.title  # text, not HTML
        page.begin()
        page.answer("answer-different", most=4)
        page.see("answer-different", "go-on")
        before = store.rows("observers")[0]["done"]
        link = page.driver.current_url
        page.driver.refresh()
        page.see("jspsych-fullscreen-btn", "answer-different", "go-on")
        assert page.driver.current_url == link and store.rows("observers")[0]["done"] == before
        if page.see("jspsych-fullscreen-btn", "answer-different", "go-on").get_attribute("id").startswith("jspsych"):
            page.see("jspsych-fullscreen-btn").click()
        page.answer("answer-different")
        code = page.finish("<b>=1</b>")
    assert page.log() == []  # no refusal by the content security policy either
    (observer,) = store.rows("observers")
    assert observer["participant"] == "Ann" and observer["completion_code"] == code
    assert observer["comment"] == "<b>=1</b>" and observer["dark_seen"] == observer["bright_seen"] == 3
    assert observer["verified"] == "sha256"
    answers = rows(store)
    planned = [step["id"] for step in store.session(_token(link)).steps if step["kind"] == "trial"]
    assert [row["step"] for row in answers] == planned  # every trial once, in order
    assert len([row for row in answers if row["role"] == "test"]) == 6
    assert {row["answer"] for row in answers} == {"different"} and {row["input"] for row in answers} == {"mouse"}
    assert sum(row["shown"] > 1 for row in answers) <= 1
    assert [event["event"] for event in store.rows("events")].count("load") == 2


def _token(link):
    return link.partition("#session=")[2]


def test_images_last_as_long_as_they_should_to_a_frame(make_store, page):
    store = make_store(trials=2, repeats=0, catches=0, training=0, stimulus_ms=1000, gap_ms=500, fullscreen=False)
    with host.in_background(server.create_app(store, admin="x")) as url:
        page.driver.get(url)
        page.begin()
        page.answer("answer-same")
        page.finish()
    answers = rows(store)
    assert len(answers) == 2
    # A busy machine skips frames, which the page reports; a trial without is as long as it should be.
    whole = [row for row in answers if row["dropped_frames"] == 0]
    for row in whole or answers:
        late = row["frame_ms"] * (1 + row["dropped_frames"])
        for measured, asked in zip(row["durations_ms"], (1000, 500, 1000), strict=True):
            assert abs(measured - asked) <= late, row


@pytest.mark.slow
def test_images_are_shown_pixel_by_pixel_whatever_the_zoom(make_store, tmp_path):
    store = make_store(trials=1, repeats=0, catches=0, training=0, stimulus_ms=3000, fullscreen=False)
    page = Page(tmp_path / "browser", "--force-device-scale-factor=1.5")
    try:
        with host.in_background(server.create_app(store, admin="x")) as url:
            page.driver.get(url)
            page.begin()
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                sides = page.driver.execute_script(
                    "const one = document.querySelector('canvas'); if (!one) return null;"
                    "const box = one.getBoundingClientRect();"
                    "return [one.width, one.height, ...[box.width, box.height, box.left, box.top]"
                    ".map((side) => side * devicePixelRatio)]"
                )
                if sides:
                    break
            page.answer("answer-same")
            page.finish()
    finally:
        page.driver.quit()
    assert sides[:2] == [256, 192]
    assert sides[2:4] == pytest.approx([256, 192], abs=0.02)
    assert all(abs(side - round(side)) < 0.05 for side in sides[4:])  # begins on a pixel
    assert rows(store)[0]["pixel_ratio"] == 1.5


@pytest.mark.slow
def test_a_window_that_is_too_small_says_so_and_waits(make_store, page):
    store = make_store(trials=1, repeats=0, catches=0, training=0, fullscreen=False)
    with host.in_background(server.create_app(store, admin="x")) as url:
        page.driver.get(url)
        page.see("agreed").click()
        page.see("jspsych-survey-html-form-next").click()
        for _ in range(3):
            page.see("jspsych-instructions-next").click()
        page.see("dark_seen")
        page.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 300, "height": 150, "deviceScaleFactor": 1, "mobile": False}
        )
        for name in ("dark_seen", "bright_seen"):
            page.driver.execute_script(f"document.getElementById('{name}').value = '4'")
        page.driver.execute_script("document.querySelector('form').requestSubmit()")
        deadline = time.monotonic() + PATIENCE
        while "too small" not in page.driver.page_source and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "The images have 256 x 192 pixels, and this window shows" in page.driver.page_source
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.answer("answer-same")
        page.finish()
    assert "too_small" in [event["event"] for event in store.rows("events")]


@pytest.mark.slow
@pytest.mark.parametrize(("trial", "answer"), [("flicker", "different"), ("2afc", "second")])
def test_the_other_kinds_of_trial(make_store, page, trial, answer):
    store = make_store(trial=trial, trials=2, training=0, catches=0, repeats=0, fullscreen=False)
    with host.in_background(server.create_app(store, admin="x")) as url:
        page.driver.get(url)
        page.begin()
        for _ in range(2):
            page.see(f"answer-{answer}")
            time.sleep(0.5)  # with flicker, some images
            page.answer(f"answer-{answer}", most=1)
        page.answer(f"answer-{answer}")
        page.finish()
    assert page.log() == []
    for row in rows(store):
        assert row["answer"] == answer and row["trial"] == trial
        asked = [milliseconds for _, milliseconds in store.settings.schedule][: 2 if trial == "flicker" else 5]
        assert len(row["durations_ms"]) == len(asked)
        for measured, milliseconds in zip(row["durations_ms"], asked, strict=True):
            assert abs(measured - milliseconds) <= 1.5 * row["frame_ms"]


def test_a_folder_of_files_works_from_a_disk_and_its_answers_come_back(make_store, tmp_path):
    store = make_store(trials=3, repeats=0, training=1)
    folder = static.write(store, tmp_path / "folder", plans=3)
    saved = tmp_path / "saved"
    saved.mkdir()
    page = Page(tmp_path / "browser", prefs={"download.default_directory": os.fspath(saved)})
    try:
        address = f"{(folder / 'index.html').as_uri()}?plan=2&participant=Ann"
        page.driver.get(address)
        page.begin()
        page.answer("answer-same", most=2)
        page.see("answer-same", "go-on")
        page.driver.get(address)  # closed and opened again
        page.see("jspsych-fullscreen-btn").click()
        page.answer("answer-same")
        code = page.finish("hello")
        deadline = time.monotonic() + PATIENCE
        while not list(saved.glob("answers-*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert page.log() == []
    finally:
        page.driver.quit()
    (file,) = saved.glob("answers-*.json")
    assert json.loads(file.read_text())["plan"] == 2
    for expected in ("steps", "there already"):
        assert expected in static.read(store, file)
    (observer,) = store.rows("observers")
    assert observer["completion_code"] == code and observer["participant"] == "Ann" and observer["source"] == "file"
    assert len(rows(store, "test")) == 3 and observer["verified"] == "sha256"


def test_a_folder_that_was_written_anew_begins_anew_and_damage_is_said(make_store, tmp_path):
    folder = static.write(make_store(fullscreen=False), tmp_path / "folder", plans=1)
    page = Page(tmp_path / "browser")
    try:
        links = [f"{(folder / 'index.html').as_uri()}?participant={name}" for name in ("Ann", "Ann%20B")]
        for link in links:
            page.driver.get(link)
            page.see("agreed").click()
            page.see("jspsych-survey-html-form-next").click()
            page.see("jspsych-instructions-next")
        page.driver.execute_script("memory.clear()")  # as withdrawing does
        for link, expected in zip(links, ("jspsych-instructions-next", "agreed"), strict=True):
            page.driver.get(link)
            assert page.see("agreed", "jspsych-instructions-next").get_attribute("id") == expected
        shutil.rmtree(folder)
        static.write(make_store("other", seed=1, training=0, fullscreen=False), folder, plans=1)
        for image in (folder / "data").glob("image-*.js"):
            image.write_text('received("iVBOR")')
        page.driver.get(links[0])
        page.see("agreed").click()
        page.see("jspsych-survey-html-form-next").click()
        page.see("jspsych-instructions-next").click()
        assert "practice" not in page.driver.find_element("tag name", "body").text
        for _ in range(2):
            page.see("jspsych-instructions-next").click()
        deadline = time.monotonic() + PATIENCE
        while "is damaged: copy the whole folder again" not in page.driver.page_source and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "is damaged: copy the whole folder again" in page.driver.page_source
    finally:
        page.driver.quit()
