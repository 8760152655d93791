"""The page of the report in a browser, and its figures: nothing wider than the page, nothing broken, colours that can be told apart."""

import itertools
import json
import os
import pathlib

import matplotlib
import matplotlib.colors
import numpy as np
import pytest

from experiments import registry
from experiments.lib import experiment, report, style
from experiments.tutorial import __main__ as tutorial
from tests.experiments import browser

matplotlib.use("agg")
needs_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here (Debian's package is `chromium`)")
WIDTHS = (390, 960, 1400)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def picture(width=13.0):
    import matplotlib.pyplot as plt

    with style.used():
        plot, axes = plt.subplots(1, 2, figsize=(width, 3))
        axes[0].plot([0, 1], [0, 1], color=style.of("undefended"), label="undefended")
        axes[0].legend()
        style.picture(axes[1], np.eye(4), "a diagonal")
        return report.figure("A figure", "Of <two> panels.", plot, "A line that rises, beside a diagonal of white pixels.")


def section(**changes):
    header = ["attack", *(f"accuracy % ({name} of a long column)" for name in "abcdefghij")]
    table = report.Table("A table", "Wide.", header, [["PGD, a name of some length"] + ["12.5 and more"] * 10] * 3)
    more = {"more": "more images.", "full_command": "python -m experiments x --full", "full_minutes": 3.2}
    return report.Section("A section", "Text. " * 40, [picture(), table], name="x", command="python -m experiments x", **(more | changes))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    parts = [report.Part("Part 1: why?", "Words.", [section(), section(slide="A slide")], ["accuracy_curves"])]
    report.page(path, "A title", "About it.", parts)
    return path


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_holds_its_width_its_pictures_and_no_error(page, chromium, width, scheme):
    found = chromium.look(page, width, scheme)
    assert not found["errors"] and not found["broken"] and not found["widest"] and found["overflow"] <= 0
    assert len(found["images"]) == 2 and all(image["width"] > 300 for image in found["images"])


@needs_chromium
def test_a_dark_page_shows_the_dark_pictures(page, chromium):
    shown = {scheme: [image["source"] for image in chromium.look(page, 960, scheme)["images"]] for scheme in ("light", "dark")}
    assert all(light != dark for light, dark in zip(shown["light"], shown["dark"], strict=True))


@needs_chromium
def test_the_browser_sees_what_is_wrong(tmp_path, chromium):
    bad = {
        "overflow": "<table><tr>" + "<td>a_cell_of_some_length</td>" * 30 + "</tr></table>",
        "broken": '<img src="nothing.png" alt="nothing">',
        "errors": "<script>console.error('no')</script>",
    }
    for kind, body in bad.items():
        path = tmp_path / f"{kind}.html"
        path.write_text(f"<!doctype html><meta name=viewport content='width=device-width'><link rel=icon href='data:,'>{body}")
        found = chromium.look(path, 390)
        assert {other for other in bad if found[other] not in (0, [])} >= {kind}, kind


def test_the_page_names_slides_says_what_more_would_be_and_lists_what_waits(page):
    text = pathlib.Path(page).read_text()
    assert text.count("slide &ldquo;A slide&rdquo;") == 2 and text.count("Tutorial: Part 1: why?") == 2
    assert "With more: more images. <code>python -m experiments x --full</code>, about 3.2 min" in text
    assert "accuracy_curves (to come)" in text and 'href="#x"' in text and "Of &lt;two&gt; panels." in text
    assert 'alt="A line that rises' in text and "http" not in text


def test_a_section_without_more_says_nothing_of_it(tmp_path):
    report.page(tmp_path / "p.html", "t", "i", [report.Part("P", "", [section(full_command="")])])
    assert "With more" not in (tmp_path / "p.html").read_text()


def test_a_dark_twin_differs_where_the_paper_is_and_keeps_its_pictures():
    import io

    import matplotlib.image

    made = picture(6.0)
    light, dark = (matplotlib.image.imread(io.BytesIO(content)) for content in (made.png, made.dark))
    assert light.shape == dark.shape
    np.testing.assert_allclose(light[0, 0, :3], matplotlib.colors.to_rgb(style.PAPER), atol=0.01)
    assert dark[0, 0, :3].max() < 0.15
    white = (light[..., :3] == 1).all(axis=2) & (dark[..., :3] == 1).all(axis=2)
    assert white.sum() > 1000  # the picture's own white


def _lab(colors):
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


# Machado, Oliveira & Fernandes, 2009, severity 1, of linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}


def _seen(colors, matrix):
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ matrix.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart_and_from_the_page(sight, scheme):
    names = [*style.PALETTE, style.INK, style.GREY]
    paper = style.PAPER
    if scheme == "dark":
        names, paper = [style.DARK.get(name, name) for name in names], style.DARK[style.PAPER]
    colors = _lab(_seen(np.array([matplotlib.colors.to_rgb(name) for name in (*names, paper)]), SIGHT[sight]))
    apart = {(a, b): np.linalg.norm(colors[i] - colors[j]) for (i, a), (j, b) in itertools.combinations(enumerate((*names, paper)), 2)}
    assert min(apart.values()) > 8, min(apart, key=apart.get)


def test_a_method_without_a_colour_is_refused():
    with pytest.raises(ValueError, match="has no colour"):
        style.of("a new method")


def test_a_section_is_read_back_with_both_pictures(tmp_path):
    made = section()
    report.write(tmp_path, made, {"seed": 0})
    assert report.read(tmp_path, {"seed": 0}) == made


def entries(**minutes):
    return [registry.Entry(name, "tutorial.part3.", name, "", value, "none") for name, value in minutes.items()]


def test_the_clock_goes_by_the_last_run_and_else_by_the_registry(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tutorial.time, "monotonic", lambda: now[0])
    path = tmp_path / "seconds.json"
    clock = tutorial.Clock(path, entries(a=1, b=2, c=None))
    assert clock.left() == 60 + 120 + 30
    now[0] = 40.0
    assert clock.left() == 20 + 120 + 30
    now[0] = 100.0
    assert clock.left() == 120 + 30  # longer than expected
    clock.ended("a", 100.0)
    now[0] = 110.0
    assert clock.left() == 110 + 30
    assert tutorial.Clock(path, entries(a=1, b=2)).left() == 100 + 120
    path.write_text("{")
    assert tutorial.Clock(path, entries(a=1)).left() == 60


def test_the_report_grows_and_keeps_the_seconds_of_its_sections(tmp_path, monkeypatch):
    made = [entry for entry in registry.of_part(3) if entry.name == "radii_history"]
    monkeypatch.setattr(registry, "of_part", lambda number: made if number == 3 else [])
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    tutorial.main(["--part", "3", "--quick", "--out", str(tmp_path)])
    text = (tmp_path / "index.html").read_text()
    assert 'href="#radii_history"' in text and "(to come)" not in text and "Part 1" not in text
    assert json.loads((tmp_path / "seconds.json").read_text())["radii_history"] > 0


def test_two_efforts_are_refused_and_each_has_a_folder(capsys):
    with pytest.raises(SystemExit):
        experiment.parse(experiment.Settings, "margins", None, ["--quick", "--full"])
    assert "pass one of them" in " ".join(capsys.readouterr().err.split())
    efforts = {"--quick": 1, "--full": 3}
    assert {flag: experiment.Settings(**{flag.strip("-"): True}).pick(1, 2, 3) for flag in efforts} == efforts
    assert experiment.Settings().pick(1, 2, 3) == 2


def test_a_bar_inside_another_adds_lines_and_takes_them_away():
    with experiment.progress() as outer:
        outer.add_task("sections", total=2, left_fn=lambda: 5.0)
        with experiment.status("one"), experiment.progress() as inner:
            inner.add_task("steps", total=3)
            assert inner is outer and len(outer.task_ids) == 3
        assert len(outer.task_ids) == 1
