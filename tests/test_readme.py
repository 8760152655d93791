"""The README's Python block runs as it stands, and its two commands are what they claim to be."""

import pathlib
import re

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_twenty_lines_run(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(block.strip().splitlines()) <= 26
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "robust accuracy" in printed and "(784, 10)" in printed


def test_the_commands_install_from_the_projects_own_files():
    job, tests = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2]
    assert "pip install" in job and "-m experiments.tutorial" in job
    assert "pip install" in tests and "-m pytest" in tests
