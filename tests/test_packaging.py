"""What is installed: every import is declared, every declared range can be read, data files come along."""

import ast
import importlib.metadata
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest import mock

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def arguments():
    """What setup.py passes to setuptools (which an environment need not have)."""
    setuptools = mock.Mock()
    setuptools.find_packages = lambda include: include
    build_py = mock.Mock(build_py=object)
    with mock.patch.dict(sys.modules, {"setuptools": setuptools, "setuptools.command.build_py": build_py}):
        runpy.run_path(str(ROOT / "setup.py"))
    return setuptools.setup.call_args.kwargs


def imported_modules(folder):
    """The top-level modules that the files of `folder` import, at any place in them, and where."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in names:
                modules.setdefault(name.split(".")[0], path.relative_to(ROOT))
    return {name: path for name, path in modules.items() if name not in sys.stdlib_module_names}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements):
    return {normalized(Requirement(requirement).name) for requirement in requirements}


def undeclared(modules, names):
    """The modules that none of the declared distributions provides."""
    providers = importlib.metadata.packages_distributions()
    return {
        module: str(path)
        for module, path in modules.items()
        if not names & {normalized(name) for name in providers.get(module, [module])}
    }


def test_the_package_imports_only_what_it_declares(arguments):
    modules = imported_modules(ROOT / "cprl_jax")
    modules.pop("cprl_jax", None)
    study = imported_modules(ROOT / "cprl_jax" / "study").keys() & {"starlette", "uvicorn"}
    assert study == {"starlette", "uvicorn"}
    assert undeclared(modules, declared(arguments["install_requires"] + arguments["extras_require"]["study"])) == {}


def test_what_an_extra_brings_is_imported_by_its_room_alone(arguments):
    for path in (ROOT / "cprl_jax").rglob("*.py"):
        if path.parent.name != "study":
            text = path.read_text(encoding="utf-8")
            assert "import starlette" not in text and "from starlette" not in text and "uvicorn" not in text


@pytest.mark.parametrize("folder", ["tests", "configs", "benchmarks"])
def test_so_does_what_surrounds_it(arguments, folder):
    modules = imported_modules(ROOT / folder)
    neighbours = [path.stem for path in (ROOT / folder).glob("*.py")]
    for known in ("cprl_jax", "packaging", *neighbours):  # pytest brings the second
        modules.pop(known, None)
    extras = arguments["extras_require"]
    names = declared(arguments["install_requires"] + extras["test"] + extras["comparison"])
    assert undeclared(modules, names) == {}


def test_launchers_need_nothing_but_python():
    assert imported_modules(ROOT / "launch") == {}


def test_required_ranges_admit_what_is_installed(arguments):
    requirements = [Requirement(text) for text in arguments["install_requires"] + arguments["extras_require"]["test"]]
    for requirement in requirements:
        assert requirement.specifier, f"{requirement} names no range"
        if requirement.marker and not requirement.marker.evaluate():
            continue
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version), f"{requirement} does not admit {version}"


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("darwin", "arm64", True),
        ("darwin", "x86_64", False),
        ("win32", "AMD64", False),
    ],
)
def test_array_record_is_asked_for_where_there_are_wheels_of_it(arguments, system, machine, expected):
    """On the package index there are manylinux (x86_64, aarch64) and macosx (arm64), and no source."""
    (requirement,) = (text for text in arguments["install_requires"] if text.startswith("array_record"))
    environment = {"sys_platform": system, "platform_machine": machine}
    assert Requirement(requirement).marker.evaluate(environment) == expected


def test_python_range_agrees_with_the_style_check(arguments):
    assert arguments["python_requires"] == ">=3.11"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"] == "py311"


def test_packages_and_data_files(arguments):
    assert arguments["packages"] == ["cprl_jax", "cprl_jax.*"]
    patterns = arguments["package_data"]["cprl_jax"]
    covered = {path for pattern in patterns for path in (ROOT / "cprl_jax").glob(pattern)}
    others = {
        path
        for path in (ROOT / "cprl_jax").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert others <= covered, f"not in package_data: {sorted(map(str, others - covered))}"
    for folder in {path.parent for path in (ROOT / "cprl_jax").rglob("*.py")}:
        assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py, so its modules are not installed"


def test_models_are_installed(arguments, tmp_path):
    """`make weights` puts them where the package looks for them, and an installation takes them along."""
    from cprl_jax.deploy import SHIPPED, package, sources

    folder = sources._SHIPPED_FOLDER.relative_to(ROOT / "cprl_jax")
    names = {tmp_path / folder / model / file for model in SHIPPED for file in package.FILES}
    for path in names:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    patterns = arguments["package_data"]["cprl_jax"]
    assert names <= {path for pattern in patterns for path in tmp_path.glob(pattern)}
    recipe = (ROOT / "Makefile").read_text()
    assert f"--out=cprl_jax/{folder}/$$model" in recipe and f"for model in {' '.join(SHIPPED)}" in recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("DATA=", "Name the folder of photographs with labels.csv"),
        ("NOTICE=/no/file.txt", "NOTICE=/no/file.txt is no file that can be read"),
        ("DTYPE=int4", "DTYPE=int4 is not allowed; it is float32, bfloat16 or int8"),
    ],
)
def test_mistakes_are_told_before_the_hours_of_training(given, message):
    installed = ["-o", "LICENSE", "INSTALLED=LICENSE", "VENV=/nowhere"]  # nothing is installed for this
    command = ["make", "-C", str(ROOT), *installed, "weights", "DATA=photographs", given]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stderr


def test_license_is_the_whole_text():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Copyright 2026 The cprl_jax Authors" in text
    assert "END OF TERMS AND CONDITIONS" in text and len(text.splitlines()) > 190
