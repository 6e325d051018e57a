"""Puts the libraries of the page into web/vendor/: jsPsych and its plug-ins, at the versions of web/package-lock.json.

    python -m cprl_jax.study bundle        # what `make study` does, and the building of a wheel as well

npm checks what it downloads against the hashes of the lock file. Only Python's own modules are imported: setup.py runs
this file before anything is installed.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

WEB = Path(__file__).parent / "web"
VENDOR = WEB / "vendor"
LIBRARIES = {
    "jspsych.js": "jspsych",
    "plugin-browser-check.js": "@jspsych/plugin-browser-check",
    "plugin-fullscreen.js": "@jspsych/plugin-fullscreen",
    "plugin-instructions.js": "@jspsych/plugin-instructions",
    "plugin-survey-html-form.js": "@jspsych/plugin-survey-html-form",
}
"""File in vendor/ -> package of the npm registry, in the order in which the page loads them."""
_LICENSE = "licenses.txt"
# Its packages bring no licence with them; those that it uses, whose licences follow, have the same one.
_JSPSYCH = (
    "jsPsych and its plug-ins (https://www.jspsych.org)\n"
    "Copyright (c) 2014-2018 Joshua R. de Leeuw. The MIT License, whose text stands below."
)
_LOCK = "package-lock.json"


def missing() -> list[str]:
    """The files of vendor/ that are not there; all of them, if they are of another lock file."""
    lock = VENDOR / _LOCK
    if not lock.is_file() or lock.read_bytes() != (WEB / _LOCK).read_bytes():
        return [*LIBRARIES, _LICENSE]
    return [name for name in (*LIBRARIES, _LICENSE) if not (VENDOR / name).is_file()]


def bundle() -> str:
    """Makes vendor/ if it is not there; returns what is wrong in a sentence, '' if nothing is."""
    if not missing():
        return ""
    if not shutil.which("npm"):
        return "the page of the study needs npm to be put together (Debian, Ubuntu: apt install npm); then `make study`"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("package.json", _LOCK):
            shutil.copy(WEB / file, folder)
        # Scripts of packages are not run: files are copied, and nothing else is wanted of them.
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = " ".join((done.stderr.strip() or done.stdout.strip()).split())[:300]
            return f"npm could not get the libraries of the study's page ({reason}); `make study` tries again"
        shutil.rmtree(VENDOR, ignore_errors=True)
        VENDOR.mkdir()
        for file, package in LIBRARIES.items():
            code = (folder / "node_modules" / package / "dist" / "index.browser.min.js").read_text(encoding="utf-8")
            # Without the address of its source map, which is on another host.
            (VENDOR / file).write_text(code.partition("//# sourceMappingURL=")[0], encoding="utf-8")
        licenses = sorted(path for path in folder.glob("node_modules/*/*") if path.name.lower() == "license")
        texts = (f"{path.parent.name}\n{path.read_text(encoding='utf-8')}" for path in licenses)
        text = "\n\n".join([_JSPSYCH, *texts])
        (VENDOR / _LICENSE).write_text(text, encoding="utf-8")
        shutil.copy(folder / _LOCK, VENDOR)  # last: with it, the others are whole
    return ""
