"""The libraries of the page: pinned, taken from npm, and without a word to another host."""

import json
import os
import re

import pytest

from cprl_jax.study import bundle

NPM = """#!/bin/sh
[ "$1" = ci ] || exit 1
for package in jspsych @jspsych/plugin-browser-check @jspsych/plugin-fullscreen @jspsych/plugin-instructions \
    @jspsych/plugin-survey-html-form; do
  mkdir -p node_modules/$package/dist
  printf 'code of %s;\\n//# sourceMappingURL=https://elsewhere/x.map\\n' $package \
    > node_modules/$package/dist/index.browser.min.js
done
mkdir -p node_modules/auto-bind && echo 'MIT' > node_modules/auto-bind/license
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A function that puts a program called npm into the path, and nothing into vendor/."""
    monkeypatch.setattr(bundle, "VENDOR", tmp_path / "vendor")

    def put(text):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "npm").write_text(text)
        (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


def test_every_library_has_one_version_and_its_hash():
    asked = json.loads((bundle.WEB / "package.json").read_text())["dependencies"]
    assert set(asked) == set(bundle.LIBRARIES.values())
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in asked.values())
    packages = json.loads((bundle.WEB / "package-lock.json").read_text())["packages"]
    assert all(packages[f"node_modules/{name}"]["version"] == version for name, version in asked.items())
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)


def test_what_npm_brings_is_copied_without_addresses_of_other_hosts(npm):
    npm(NPM)
    assert bundle.missing() and bundle.bundle() == "" and bundle.missing() == []
    assert (bundle.VENDOR / "jspsych.js").read_text() == "code of jspsych;\n"
    licenses = (bundle.VENDOR / "licenses.txt").read_text()
    assert "Joshua R. de Leeuw" in licenses and "auto-bind" in licenses
    (bundle.VENDOR / "package-lock.json").write_text("of an earlier version")
    assert set(bundle.missing()) >= set(bundle.LIBRARIES)


def test_a_failing_npm_leaves_nothing_and_is_quoted(npm):
    npm("#!/bin/sh\necho 'npm error network' >&2; exit 1\n")
    assert "could not get the libraries of the study's page (npm error network); `make study`" in bundle.bundle()
    assert not bundle.VENDOR.exists()
