"""The public surface: `import cprl_jax` is quick, and every public name is importable."""

import importlib.metadata
import subprocess
import sys

import pytest

import cprl_jax


def python(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_imports_nothing_else():
    program = "import sys; before = set(sys.modules); import cprl_jax; print(*(set(sys.modules) - before))"
    loaded = python(program)
    assert {name for name in loaded if name.startswith("cprl_jax")} == {"cprl_jax"}
    assert not {"jax", "numpy", "flax", "importlib.metadata"} & set(loaded)


def test_parts_are_there_without_an_import_of_their_own():
    program = (
        "import cprl_jax; print(cprl_jax.attacks.pgd.__name__, cprl_jax.fidelity.ssim.__name__, "
        "cprl_jax.robustness.metrics.r_robustness.__name__, cprl_jax.robustness.trust.check.__name__, "
        "cprl_jax.robustness.landscape.landscape.__name__, cprl_jax.models.__name__)"
    )
    assert python(program) == ["pgd", "ssim", "r_robustness", "check", "landscape", "cprl_jax.models"]


def test_names_are_listed_and_others_refused():
    assert set(cprl_jax.__all__) <= set(dir(cprl_jax))
    assert all(getattr(cprl_jax, name) is not None for name in cprl_jax.__all__)
    with pytest.raises(AttributeError, match="module 'cprl_jax' has no attribute 'attack'"):
        cprl_jax.attack  # noqa: B018


def test_version(monkeypatch):
    assert cprl_jax.__version__ == importlib.metadata.version("cprl_jax")

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert cprl_jax.__version__ == "0+unknown"
