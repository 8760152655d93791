"""The README's Python block runs and makes the committed plot, its models are models, and its two commands are what they claim to be."""

import json
import pathlib
import re
import runpy

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, threats

_ROOT = pathlib.Path(__file__).parent.parent
README = (_ROOT / "README.md").read_text()


def test_the_twenty_lines_make_the_plot():
    found = runpy.run_path(str(_ROOT / "docs/readme_figure.py"))["curves"](README)
    (shown,) = re.findall(r"<dc:description>(.*?)</dc:description>", (_ROOT / "docs/images/robustness.svg").read_text())
    shown = json.loads(shown)
    assert found.keys() == shown.keys() and len(found) == 2
    for label, curve in found.items():
        np.testing.assert_allclose(curve, shown[label], atol=0.02, err_msg="run `.venv/bin/python docs/readme_figure.py`")
    natural, robust = found.values()
    assert natural[0] > 0.9 and robust[4] > natural[4] + 0.1


def test_the_twenty_lines_are_few():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip() and "import " not in line]
    assert len(lines) <= 28


def test_the_table_of_families_is_short():
    (table,) = re.findall(r"^\| Family.*?\n\n", README, re.DOTALL | re.MULTILINE)
    assert 8 <= len(table.strip().splitlines()) - 2 <= 10
    assert len(README.splitlines()) < 140


def _linen():
    net = flax.linen.Dense(3)
    return {"net": net, "variables": net.init(jax.random.key(0), jnp.ones((1, 4)))}


def _nnx():
    return {"module": flax.nnx.Linear(4, 3, rngs=flax.nnx.Rngs(0))}


def _equinox():
    eqx = pytest.importorskip("equinox")
    return {"eqx": eqx, "module": eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))}


def _haiku():
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3)(x)))
    return {"hk": hk, "forward": lambda x: hk.Linear(3)(x), "params": net.init(jax.random.key(0), jnp.ones((1, 4)))}


@pytest.mark.parametrize("made", [_linen, _nnx, _equinox, _haiku])
def test_what_the_readme_calls_a_model_can_be_attacked(made):
    library = {"_linen": "Flax Linen", "_nnx": "Flax NNX", "_equinox": "Equinox", "_haiku": "Haiku"}[made.__name__]
    (cell,) = re.findall(rf"^\| {library} \| (.*) \|$", README, re.MULTILINE)
    scope = {"jax": jax} | made()
    model, *before = re.findall(r"`([^`]+)`", cell)
    if library == "Flax NNX":  # "the module itself, after `module.eval()`"
        before, model = [model], "module"
    for line in before:
        exec(line, scope)
    model_fn = eval(model, scope)
    x = jax.random.uniform(jax.random.key(1), (8, 4))
    attack = base.bind(attacks.fgsm, threat=threats.Linf(10.0, box=(-jnp.inf, jnp.inf)))
    y = jnp.argmax(model_fn(x), axis=1)
    result = jax.jit(lambda attack, model_fn: attack(jax.random.key(2), model_fn, x, y))(attack, model_fn)
    assert result.success.mean() > 0.5


def test_the_commands_install_from_the_projects_own_files():
    job, tests = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2]
    assert "pip install" in job and "-m experiments.tutorial" in job
    assert "pip install" in tests and "-m pytest" in tests


def test_both_commands_say_how_long_they_take():
    assert re.search(r"takes about \d+ minutes and the second about \d+\.", README)
