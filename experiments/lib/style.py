"""How figures look: colours that a colour-blind reader can tell apart, the same one for a method everywhere, and a dark twin of each."""

import contextlib

import matplotlib as mpl
import matplotlib.artist
import matplotlib.colors
import matplotlib.figure
import numpy as np

# Okabe & Ito, 2008, whose yellow is too pale for lines on white: olive and wine are Paul Tol's, 2021.
ORANGE, SKY, GREEN, BLUE, VERMILION, PINK = "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7"
OLIVE, WINE, GREY = "#999933", "#882255", "#8a8a8a"
INK, PAPER = "#1f2328", "#ffffff"  # of text and lines, and under them
PALETTE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, OLIVE, WINE)
DARK = {INK: "#e2e5e9", PAPER: "#14171b", BLUE: "#1f84d0", WINE: "#a53a9c", GREEN: "#1fb58a"}  # what another colour replaces on black

# Each line is of one figure or more; methods that share a colour are of one kind, or never in one figure.
METHODS = {
    # What a model was trained on; "undefended" are all that saw neither noise nor attacks.
    "undefended": VERMILION,
    "natural": VERMILION,
    "natural training": VERMILION,
    "normal": VERMILION,
    "unprotected": VERMILION,
    "robust": BLUE,
    "adversarial training": BLUE,
    "AT": BLUE,
    "PGD": BLUE,
    "OM-AT": ORANGE,
    "DMAT": GREEN,
    "TRADES 0.5": "#f0c46a",
    "TRADES 1": ORANGE,
    "TRADES 3": "#b87700",
    "TRADES 6": "#8a5a00",
    "Gaussian": SKY,
    "Stability": OLIVE,
    "Consistency": GREEN,
    "SmoothMix": PINK,
    "MACER": ORANGE,
    "SmoothAdv": BLUE,
    "denoised, white box": INK,
    "denoised, queries": GREY,
    # What was proved about votes.
    "Cohen et al., 2019": BLUE,
    "Li et al., 2019": VERMILION,
    "Salman et al., 2019, lemma 1": GREEN,
    "Lecuyer et al., 2019": PINK,
    # What was done to a training set.
    "clean": GREEN,
    "random noise": GREY,
    "random flips": GREY,
    "random moves": GREY,
    "poisoned": VERMILION,
    "l1": ORANGE,
    "l2": BLUE,
    "MetaPoison": VERMILION,
    "Witches' Brew": BLUE,
    # Ways to differentiate a bilevel problem; back-gradient, ApproxGrad and penalty also learn poisons.
    "dense": INK,
    "CG": BLUE,
    "Neumann": SKY,
    "Adam": OLIVE,
    "LiSSA": GREY,
    "unrolled": GREEN,
    "truncated": PINK,
    "back-gradient": ORANGE,
    "penalty": VERMILION,
    "value function": WINE,
    "ApproxGrad": BLUE,
    # How strong a regularizer is.
    "fixed, -8": GREY,
    "fixed, 0": BLUE,
    "learned": VERMILION,
}


def of(method: str) -> str:
    """The colour of a method.

    Raises:
      ValueError: it has none yet.
    """
    if method not in METHODS:
        raise ValueError(f"{method!r} has no colour; give it one in METHODS of {__file__}.")
    return METHODS[method]


def used() -> contextlib.AbstractContextManager:
    """A context in which figures have this style."""
    return mpl.rc_context(
        {
            "axes.prop_cycle": mpl.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "legend.fontsize": "small",
            "grid.color": GREY,
            "grid.alpha": 0.3,
            "savefig.dpi": 120,
            **{f"{name}.color": INK for name in ("text", "xtick", "ytick")},
            **{name: INK for name in ("axes.edgecolor", "axes.labelcolor")},
        }
    )


def gallery(rows: dict[str, tuple]) -> matplotlib.figure.Figure:
    """Rows of pictures of one size: by name images [K, H, W, 1], what stands above each, and whether that is wrong [K]."""
    import matplotlib.pyplot as plt

    num_columns = max(len(images) for images, _, _ in rows.values())
    plot, axes = plt.subplots(len(rows), num_columns, figsize=(num_columns, 1.25 * len(rows)), squeeze=False)
    for line, (name, (images, titles, wrong)) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axis, image, title, is_wrong in zip(line, images, titles, wrong, strict=True):
            picture(axis, image, str(title), color=VERMILION if is_wrong else INK, fontsize=9, pad=2)
    return plot


def picture(axis, image, title: str, **options) -> None:
    """A gray picture [H, W, 1] in [0, 1] without ticks."""
    axis.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, **options)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def regions(axis, labels: np.ndarray) -> None:
    """Pale areas of the unit square in the colours of classes: labels [H, W] of a grid of points in it."""
    num_classes = int(labels.max()) + 1
    colors = PALETTE[:num_classes]
    axis.contourf(labels, levels=np.arange(num_classes + 1) - 0.5, extent=(0, 1, 0, 1), colors=colors, alpha=0.25)
    axis.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), aspect="equal")


def darken(plot: matplotlib.figure.Figure) -> None:
    """Changes a figure from black on white to white on black; pictures in it stay as they are."""
    for artist in plot.findobj():
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if get is not None and put is not None and (changed := _dark(get())) is not None:
                put(changed)


def _dark(colors):
    # None where nothing changes: a setter of a colour may undo what the artist draws otherwise.
    if colors is None or (isinstance(colors, str) and colors in ("none", "auto")):
        return None
    rgba = mpl.colors.to_rgba_array(colors).copy()
    found = False
    for light, dark in DARK.items():
        same = (np.abs(rgba[:, :3] - mpl.colors.to_rgb(light)) < 1e-3).all(axis=1)
        rgba[same, :3] = mpl.colors.to_rgb(dark)
        found |= bool(same.any())
    if not found:
        return None
    return rgba[0] if isinstance(colors, str) or np.ndim(colors) == 1 else rgba
