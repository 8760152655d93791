"""What is installed: the package alone, with its marker of types; the citation says what the project says."""

import fnmatch
import pathlib
import re
import tomllib

_ROOT = pathlib.Path(__file__).parents[1]
_CONFIG = tomllib.loads((_ROOT / "pyproject.toml").read_text())
_SETUPTOOLS = _CONFIG["tool"]["setuptools"]


def test_only_the_package_is_installed():
    # A top-level package called `experiments` in site-packages would hide every other one of that name.
    find = _SETUPTOOLS["packages"]["find"]
    assert find.keys() == {"include"}
    packages = {
        ".".join(path.parent.relative_to(_ROOT).parts)
        for top in _ROOT.glob("[a-z]*/__init__.py")
        for path in top.parent.rglob("__init__.py")
    }
    found = {name for name in packages if any(fnmatch.fnmatchcase(name, pattern) for pattern in find["include"])}
    assert "robustjax.attacks" in found
    assert {name.split(".")[0] for name in found} == {"robustjax"} < {name.split(".")[0] for name in packages}


def test_the_package_says_that_it_is_typed():
    assert "py.typed" in _SETUPTOOLS["package-data"]["robustjax"]
    assert (_ROOT / "robustjax/py.typed").exists()


def test_the_citation_agrees_with_the_project():
    cited = dict(re.findall(r"^([\w-]+): (.+)$", (_ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    project = _CONFIG["project"]
    assert cited["cff-version"] == "1.2.0"
    assert (cited["title"], cited["version"], cited["license"]) == (project["name"], project["version"], project["license"])
    assert cited["abstract"] == project["description"]
