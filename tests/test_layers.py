"""The house: imports point downward only, and importing touches no device and no configuration."""

import ast
import importlib
import inspect
import os
import pathlib
import subprocess
import sys

import pytest

import robustjax

_FLOORS = (
    {
        "configured",
        "base",
        "arrays",
        "prng",
        "renamed",
        "checks",
        "fingerprint",
        "graph",
        "loops",
        "lowering",
        "parallel",
        "drivers",
        "hooks",
    },
    {"losses", "threats", "manifolds", "bilevel", "poisoned_sets"},
    {"attacks", "bounds", "smoothing", "corruptions", "backdoors"},
    {"training", "defenses", "flags"},
    {"poisoning", "evaluate"},
)
_FLOOR = {name: number for number, names in enumerate(_FLOORS, 1) for name in names}
_ALLOWED = {"jax", "flax", "optax", "chex", "scipy", "numpy", "robustjax"} | sys.stdlib_module_names
_ROOT = pathlib.Path(robustjax.__file__).parent
_MODULES = {
    ".".join(path.relative_to(_ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(_ROOT.rglob("*.py"))
}


def _imports(name):
    for node in ast.walk(ast.parse(_MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([module if module in _MODULES else node.module for module in inner])


def _house(name):
    return name.split(".")[1] if "." in name else ""


def test_every_module_has_a_floor():
    assert {_house(name) for name in _MODULES} - {""} <= set(_FLOOR)


@pytest.mark.parametrize("name", [name for name in _MODULES if name != "robustjax"])
def test_imports_point_downward_only(name):
    for imported in _imports(name):
        assert imported.split(".")[0] in _ALLOWED, imported
        if imported.split(".")[0] != "robustjax" or _house(imported) == _house(name):
            continue
        assert _house(imported), f"{name} imports the package itself"
        ours, theirs = _FLOOR[_house(name)], _FLOOR[_house(imported)]
        assert theirs < ours or theirs == ours == 1, f"{name} (floor {ours}) imports {imported} (floor {theirs})"


@pytest.mark.parametrize("name", [name for name, path in _MODULES.items() if path.name == "__init__.py" and name != "robustjax"])
def test_no_public_name_hides_a_module(name):
    # A file named as the one function that it holds begins with an underscore; its package exports the function.
    package = importlib.import_module(name)
    hidden = [other for other in _MODULES if other.startswith(f"{name}.") and not inspect.ismodule(vars(package).get(other.split(".")[-1]))]
    assert [other for other in hidden if other.split(".")[-1] in vars(package)] == []


@pytest.mark.parametrize("name", [name for name in _MODULES if name.split(".")[-1].startswith("_") and "graph" not in name])
def test_what_a_file_is_named_for_is_exported(name):
    package, _, file = name.rpartition(".")
    if hasattr(importlib.import_module(name), file[1:]):
        exported = vars(importlib.import_module(package))["__all__"]
        assert file[1:] in exported, f"add {file[1:]} to the imports and to __all__ of {package.replace('.', '/')}/__init__.py"


@pytest.mark.parametrize("name", [name for name, path in _MODULES.items() if path.name != "__init__.py" and name != "robustjax.base"])
def test_functions_are_called_by_the_name_of_their_module(name):
    for node in ast.walk(ast.parse(_MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "robustjax":
            functions = [alias.name for alias in node.names if alias.name.islower() and f"{node.module}.{alias.name}" not in _MODULES]
            assert not functions, f"import the module that has {', '.join(functions)}"


def test_no_import_closes_a_cycle():
    below = {name: {imported for imported in _imports(name) if imported in _MODULES and imported != name} for name in _MODULES}
    while below:
        free = [name for name, imported in below.items() if not imported & below.keys()]
        assert free, f"a cycle among {sorted(below)}"
        for name in free:
            del below[name]


def test_the_package_offers_its_names_and_imports_none_before_its_use():
    code = "import sys, robustjax as rj; assert 'jax' not in sys.modules; [getattr(rj, name) for name in rj.__all__]; print(*dir(rj))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == sorted(robustjax.__all__)
    internal = {"checks", "configured", "drivers", "fingerprint", "hooks", "poisoned_sets", "renamed"}
    assert {name.split(".")[1] for name in _MODULES if name.count(".") == 1} <= {*robustjax.__all__} | internal
    with pytest.raises(AttributeError, match="its names are"):
        robustjax.pgd  # noqa: B018


_IMPORT_ALL = """
import importlib, pkgutil
import chex, flax.struct, jax, numpy, optax, scipy.optimize, scipy.stats
before = dict(jax.config.values)
import robustjax
for module in pkgutil.walk_packages(robustjax.__path__, "robustjax."):
    importlib.import_module(module.name)
changed = {name: value for name, value in jax.config.values.items() if name in before and before[name] != value}
assert not changed, changed
try:
    from jax._src import xla_bridge
except ImportError:
    xla_bridge = None
assert not getattr(xla_bridge, "_backends", None), "a backend was initialised"
"""


def test_importing_everything_starts_no_backend_and_changes_no_configuration():
    # A platform that does not exist: whatever asks for a device fails, also where jax has no `_backends` to look at.
    environment = os.environ | {"JAX_PLATFORMS": "no_such_platform", "PYTHONPATH": str(_ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
