"""The arrows of docs/architecture.md: which folder may import which, and none another folder's private names."""

import ast
from pathlib import Path

import pytest

import cprl_jax

PACKAGE = Path(cprl_jax.__file__).parent
# A room imports from those before it in this list, and from itself; rooms of one line do not know each other.
FLOORS = (
    ("runtime",),
    ("config.field", "report", "attacks", "fidelity", "layers"),
    ("models", "losses", "data", "robustness"),
    ("methods",),
    ("training",),
    ("evaluation",),
    ("config",),
    ("experiments", "deploy"),
    ("study",),
    ("main", "score", "verify", "export", ""),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TAKEN_AS_THEY_ARE = ("attacks", "fidelity")  # people copy these folders into other code


def room_of(module: str) -> str:
    """'config.field' and 'models' for cprl_jax.config.field and cprl_jax.models.common."""
    parts = module.split(".")[1:]
    return "config.field" if parts[:2] == ["config", "field"] else (parts or [""])[0]


def imports(path: Path):
    """(line, module, name) of everything that a file imports from the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cprl_jax":
            for alias in node.names:
                is_module = (PACKAGE.joinpath(*node.module.split(".")[1:], alias.name)).is_dir() or (
                    PACKAGE.joinpath(*node.module.split(".")[1:], f"{alias.name}.py")
                ).is_file()
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "cprl_jax":
                    yield node.lineno, alias.name, ""


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    module = ".".join(("cprl_jax", *path.relative_to(PACKAGE).with_suffix("").parts))
    room = room_of(module.removesuffix(".__init__"))
    wrong = []
    for line, imported, name in imports(path):
        other = room_of(imported)
        if other == room:
            continue
        private = [part for part in (*imported.split(".")[2:], name) if part.startswith("_") and part != "__version__"]
        if private or FLOOR[other] >= FLOOR[room] or room in TAKEN_AS_THEY_ARE:
            wrong.append(f"line {line}: {imported} {name}")
    assert not wrong


def test_every_folder_has_its_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert rooms <= set(FLOOR)
