"""The documentation is true: its examples run, every public name is documented, its links and paths exist."""

import doctest
import fnmatch
import importlib
import inspect
import pathlib
import pkgutil
import re
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import robustjax
from robustjax import attacks

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = sorted(path for path in (_ROOT / "docs").rglob("*.md") if "_build" not in path.parts) + [
    _ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
]
_MODULES = [importlib.import_module(info.name) for info in pkgutil.walk_packages(robustjax.__path__, "robustjax.")]


def _named(path):
    return pytest.param(path, id=str(path.relative_to(_ROOT)))


def _with(text):
    return [_named(path) for path in _PAGES if text in path.read_text()]


@pytest.mark.parametrize("path", _with(">>> "))
def test_examples_give_what_they_show(path):
    failed, tried = doctest.testfile(str(path), module_relative=False)
    assert tried > 0
    assert failed == 0


_WITH_EXAMPLES = [module for module in _MODULES if ">>> " in inspect.getsource(module)]


@pytest.mark.parametrize("module", _WITH_EXAMPLES, ids=lambda module: module.__name__)
def test_examples_in_docstrings_give_what_they_show(module):
    # They see what `from robustjax import ...` gives, and jax, jnp, np, optax.
    names = {name: getattr(robustjax, name) for name in robustjax.__all__}
    scope = {"jax": jax, "jnp": jnp, "np": np, "optax": optax} | names | vars(module)
    failed, _ = doctest.testmod(module, globs=scope)
    assert failed == 0


@pytest.mark.parametrize("path", _with("```{code-cell}"))
def test_cells_of_a_page_run_in_order(path):
    scope = {"__name__": path.stem}
    for number, cell in enumerate(_blocks(path, r"\{code-cell\} python")):
        exec(compile(cell, f"{path.name}, cell {number}", "exec"), scope)


_SHOWN = r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$"  # a block and what it prints
_NUMBER = r"\d+\.\d+|\d+"


def test_blocks_of_getting_started_print_what_the_page_shows(capsys):
    text = (_ROOT / "docs/getting_started.md").read_text()
    blocks = re.findall(_SHOWN, text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("```python")
    scope = {"__name__": "getting_started"}
    for number, (block, shown) in enumerate(blocks):
        exec(compile(block, f"getting_started.md, block {number}", "exec"), scope)
        printed = capsys.readouterr().out
        assert re.sub(_NUMBER, "#", printed) == re.sub(_NUMBER, "#", shown)
        # Other versions of JAX and other processors round otherwise, and 500 images or fewer are counted.
        values = ([float(value) for value in re.findall(_NUMBER, output)] for output in (printed, shown))
        np.testing.assert_allclose(*values, atol=0.03, rtol=0.1, err_msg=f"block {number} printed:\n{printed}")


def test_jaxopt_gives_the_gradient_that_its_page_shows():
    jaxopt = pytest.importorskip("jaxopt")
    page = _ROOT / "docs/how_to/from_jaxopt.md"
    setting, ours = _blocks(page, r"\{code-cell\} python")
    (theirs,) = _blocks(page, "python")
    scope = {"jaxopt": jaxopt}
    gradients = []
    for block in (setting, ours, theirs):
        exec(compile(block, page.name, "exec"), scope)
        gradients.append(scope.get("grad"))
    np.testing.assert_allclose(gradients[1], gradients[2], rtol=1e-4)
    np.testing.assert_allclose(scope["result"].grad, gradients[2], rtol=1e-4)


def test_the_skeleton_of_a_new_attack_passes_its_own_test(monkeypatch):
    test, attack, _ = _blocks(_ROOT / "CONTRIBUTING.md", "python")  # the third is run by tests/experiments/test_scripts.py
    module = types.ModuleType("robustjax.attacks._frank_wolfe")
    exec(compile(attack, "_frank_wolfe.py", "exec"), vars(module))
    monkeypatch.setattr(attacks, "frank_wolfe", module.frank_wolfe, raising=False)
    scope = {"__name__": "skeleton"}
    exec(compile(test, "test_frank_wolfe.py", "exec"), scope)
    tests = [value for name, value in scope.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_contributing_names_every_file_that_an_attack_touches():
    # Those in which each of three attacks is named that nothing else is built on; its own file and the changelog beside them.
    attacks_of_today = ("sigma_zero", "ead", "ddn")
    files = [path for folder in ("robustjax", "docs", "tests", "experiments") for path in (_ROOT / folder).rglob("*.*")]
    files = [path for path in files if path.suffix in (".py", ".md") and "_build" not in path.parts and "results" not in path.parts]
    texts = {str(path.relative_to(_ROOT)): path.read_text() for path in files if path != _ROOT / "tests/test_docs.py"}
    touched = {path for path, text in texts.items() if all(re.search(rf"\b{name}\b", text) for name in attacks_of_today)}
    assert len(touched) > 5
    section = (_ROOT / "CONTRIBUTING.md").read_text().partition("### The files of an attack\n")[2]
    named = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    touched |= {"robustjax/attacks/_frank_wolfe.py", "CHANGELOG.md"}
    assert named == touched, f"the table of CONTRIBUTING.md lacks {sorted(touched - named)} and should not have {sorted(named - touched)}"


def _blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def _is_documentable(value):
    return inspect.isfunction(value) or inspect.isclass(value)


def _is_public(module, name, value):
    return not name.startswith("_") and _is_documentable(value) and value.__module__ == module.__name__


def _public():
    """Every function and class of the package that is named without an underscore, where it is defined."""
    for module in _MODULES:
        for name, value in vars(module).items():
            if _is_public(module, name, value):
                yield pytest.param(module, name, value, id=f"{module.__name__}.{name}")


@pytest.fixture(scope="module")
def documented():
    text = "\n".join(path.read_text() for path in (_ROOT / "docs/api").glob("*.md"))
    return set(re.findall(r"^\.\. (?:autofunction|autoclass|automodule|py:data):: (\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(("module", "name", "value"), list(_public()))
def test_every_public_name_has_a_docstring(module, name, value):
    assert value.__doc__, f"{module.__name__}.{name}"
    assert not value.__doc__.startswith(f"{name}("), "the docstring that dataclasses make up"


def test_every_exported_name_has_an_api_entry(documented):
    # A package exports what its __all__ lists; a module on a page that has no such list, all that it defines.
    exported = {f"{module.__name__}.{name}" for module in _MODULES for name in getattr(module, "__all__", ())}
    for module in _MODULES:
        if module.__name__ in documented and not hasattr(module, "__all__"):
            exported |= {f"{module.__name__}.{name}" for name, value in vars(module).items() if _is_public(module, name, value)}
    missing = sorted(exported - documented)
    assert not missing, f"add `.. autofunction:: {missing[0]}` (or autoclass) to a page of docs/api; missing: {missing}"


def test_every_api_entry_exists(documented):
    for entry in documented:
        module, _, name = entry.rpartition(".")
        assert hasattr(importlib.import_module(module), name), entry


def _attacks():
    for name in attacks.__all__:
        function = getattr(attacks, name)
        if list(inspect.signature(function).parameters)[:4] == ["key", "model_fn", "x", "y"]:
            yield name


@pytest.mark.parametrize("name", list(_attacks()))
def test_every_attack_states_its_guarantee_and_its_source(name):
    doc = inspect.getdoc(getattr(attacks, name))
    assert re.search(r"^Guarantee:$", doc, re.MULTILINE)
    assert re.search(r"^Source: ", doc, re.MULTILINE)


def test_the_list_of_methods_is_what_the_docstrings_say():
    written = runpy.run_path(str(_ROOT / "docs/methods.py"))["page"]()
    assert (_ROOT / "docs/methods.md").read_text() == written, "docstrings changed: run `.venv/bin/python docs/methods.py`"


def test_every_cited_paper_is_in_the_list_of_methods():
    methods = (_ROOT / "docs/methods.md").read_text()
    for module in _MODULES:
        for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", inspect.getsource(module)):
            assert f"abs/{number})" in methods, (
                f"{module.__name__} cites arXiv:{number}, and docs/methods.md does not: cite it under `Source:` in the docstring of a "
                f"public function that has an entry in docs/api, and run `.venv/bin/python docs/methods.py`"
            )


_PARTS = {"conjugate_gradient", "neumann", "solve_by_adam", "lissa", "extreme_eigenvalues", "catastrophic_overfitting"}  # of methods


@pytest.mark.parametrize("module", [robustjax.training, robustjax.poisoning, robustjax.bilevel], ids=lambda module: module.__name__)
def test_what_ends_in_parameters_poisons_or_solutions_states_what_they_are_worth(module):
    for name in set(module.__all__) - _PARTS:
        doc = inspect.getdoc(getattr(module, name)) or ""
        assert "\nSource: " not in doc or "\nGuarantee:\n" in doc, f"{module.__name__}.{name} says where it comes from: add `Guarantee:`"


@pytest.mark.parametrize("path", [_named(path) for path in _PAGES])
def test_relative_links_resolve(path):
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file) if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_what_arguments_are_said_to_be_as_for_is_on_the_api_pages():
    # Sphinx makes it a reference to that entry.
    conf = runpy.run_path(str(_ROOT / "docs/conf.py"))
    for entry in conf["_ENTRIES"]:
        module, _, name = entry.rpartition(".")
        for other in re.findall(r"\bas for `([^`]+)`", inspect.getdoc(getattr(importlib.import_module(module), name)) or ""):
            assert conf["_reference"](other, entry).startswith(":py:obj:"), f"{entry} refers to {other}"


def test_every_page_is_in_a_table_of_contents():
    patterns = []
    for path in _PAGES:
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
            patterns += [str(path.parent / line) for line in block.splitlines() if line and not line.startswith(":")]
    for path in _PAGES:
        if (_ROOT / "docs") in path.parents and path != _ROOT / "docs/index.md":
            assert any(fnmatch.fnmatch(str(path.with_suffix("")), pattern) for pattern in patterns), path
