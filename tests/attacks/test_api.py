"""House rules that hold for every public name, and the promise that the package stands alone."""

import ast
import inspect
from pathlib import Path

import pytest

import cprl_jax
from cprl_jax import attacks, fidelity

FUNCTIONS = [
    (package, name)
    for package in (attacks, fidelity)
    for name in package.__all__
    if inspect.isfunction(getattr(package, name))
]


@pytest.mark.parametrize(("package", "name"), FUNCTIONS)
def test_options_are_keyword_only_and_documented(package, name):
    function = getattr(package, name)
    assert function.__doc__ and function.__doc__.strip().endswith((".", ")"))
    # The middle of the scale is part of what a direction means, and may be given by position.
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty and parameter.name != "mid":
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter.name
        assert parameter.annotation is not parameter.empty, parameter.name
        if parameter.name not in ("score_fn",):
            assert f"{parameter.name}:" in function.__doc__, parameter.name


@pytest.mark.parametrize("package", [attacks, fidelity])
def test_public_names_are_documented_and_listed(package):
    assert package.__doc__ and sorted(package.__all__) == list(package.__all__)
    for name in package.__all__:
        assert not callable(getattr(package, name)) or getattr(package, name).__doc__


@pytest.mark.parametrize("package", [attacks, fidelity])
def test_imports_nothing_else_of_the_package(package):
    root = Path(cprl_jax.__file__).parent
    for path in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            own = ".".join(["cprl_jax", *Path(package.__file__).parent.relative_to(root).parts])
            assert all(not name.startswith("cprl_jax") or name.startswith(own) for name in names), path
