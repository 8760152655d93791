"""What every experiment needs from outside: settings, devices, a compilation cache, progress, and the file of its result."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import shlex
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
import rich.console
import rich.progress
import rich.text
import tyro

from experiments import registry
from experiments.lib import data, files, pages, report
from robustjax import parallel

_EMBEDDED = ("digits", "made", "none")  # data that need no files
console = rich.console.Console(stderr=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every script is told."""

    out: str = "runs"
    """The folder for what is kept: models, votes, poisons, results."""
    quick: bool = False
    """A few steps of everything, to see that it runs."""
    page: pathlib.Path | None = None
    """Where to write the page of results (NAME.md), with its data beside it (NAME.json)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """What a script is told that runs on a data set of choice."""

    dataset: data.Name = "digits"
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(DataOptions):
    """How a section of the report is made; what is equal but for its folder and page gives equal results."""

    out: str = "runs/tutorial"
    full: bool = False
    """More of everything: examples, steps, trials, models."""

    def __post_init__(self):
        """Two efforts at once are none."""
        if self.quick and self.full:
            raise ValueError("--quick and --full are two efforts; pass one of them, or neither.")

    def pick(self, quick, usual, full):
        """A size for each effort: a few steps to see that it runs, what the report shows, and more."""
        return quick if self.quick else full if self.full else usual


Kind = TypeVar("Kind")


def main(module: types.ModuleType, name: str, arguments: Sequence[str]) -> None:
    """Runs a script: `run(settings)`, of which the type of its argument says what settings there are.

    What it returns is a section of the report, which is kept and may become a page, or nothing.
    """
    hints = typing.get_type_hints(module.run)
    settings = parse(hints["settings"], f"experiments {name}", module.__doc__, arguments)
    if hints.get("return") is not report.Section:
        module.run(settings)
        return
    prepare(settings.pick(1, 1, None))
    made = section(module.run, settings)
    if settings.page is not None:
        tables = [pages.table(item.header, item.rows, item.title, item.caption) for item in made.items if isinstance(item, report.Table)]
        about = made.made | {"command": command(name, settings)}
        pages.replace(settings.page, pages.Page(made.title, pages.text(made.text)["text"]), pages.section("", tables, about))


def parse(kind: type[Kind], name: str, about: str | None, arguments: Sequence[str] | None) -> Kind:
    """Settings from the command line; places that nothing can be written in are refused before anything is computed."""
    with refused():
        settings = tyro.cli(kind, prog=f"python -m {name}", description=about, args=arguments)
        if isinstance(settings, Settings) and settings.out == Settings.out:
            settings = dataclasses.replace(settings, out=_out(settings))
        if isinstance(settings, Options):
            files.try_folder(settings.out)
            if settings.page is not None:
                pages.read(files.try_file(settings.page))
    return settings


@contextlib.contextmanager
def refused():
    """What is wrong with settings ends the program with its message alone."""
    try:
        yield
    except (OSError, ValueError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from error


def command(name: str, settings: Options) -> str:
    """The command line that gives these settings, by what differs from the defaults."""
    is_local = "ROBUSTJAX_DATA" in os.environ and getattr(settings, "dataset", registry.ENTRIES[name].data) not in _EMBEDDED
    words = [*(["ROBUSTJAX_DATA=DIR"] if is_local else []), "python -m experiments", name]
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), field.name.replace("_", "-")
        is_usual = field.name == "out" and isinstance(settings, Settings) and value == _out(settings)
        if value != field.default and not is_usual:
            words.append(f"--{'no-' if value is False else ''}{flag}")
            words += [] if isinstance(value, bool) else [shlex.quote(str(leaf)) for leaf in jax.tree.leaves(value)]
    return " ".join(words)


def _out(settings):
    # Each effort has a folder of its own: what one trained is nothing to another.
    return Settings.out + settings.pick("-quick", "", "-full")


def publish(
    name: str,
    settings: Options,
    page: pages.Page,
    title: str,
    blocks: Sequence[pages.Block],
    start: float,
    *,
    packages: Sequence[str] = (),
    seeds: Sequence[int] = (),
    flags: dict[str, np.ndarray] | None = None,
) -> None:
    """Prints a section of a page of results, and writes it where a page is wanted.

    Args:
      name, settings: by which the script was called. start: when the section began, by `time.perf_counter`.
      page, title, blocks, flags: as for `pages`. packages, seeds: that count here, beside JAX, Flax and optax.
    """
    made = pages.section(title, blocks, pages.made(command(name, settings), start, packages, seeds), flags)
    print(pages.render_section(made), flush=True)
    if settings.page is not None:
        pages.replace(settings.page, page, made)


def prepare(optimization_level: int | None = None) -> None:
    """Two CPU devices where there are two cores, and a compilation cache; before JAX is used.

    Args:
      optimization_level: of XLA's programs, less than its own where they are compiled for longer than they run.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if optimization_level is not None and "xla_backend_optimization_level" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level={optimization_level}"
    two_devices()
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "robustjax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def two_devices() -> None:
    """Two CPU devices where there are two cores, unless somebody has chosen; before JAX is used."""
    if jax.config.jax_num_cpu_devices == -1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))


def mesh():
    """All devices."""
    return parallel.data_mesh()


def section(run: Callable[[Settings], report.Section], settings: Settings) -> report.Section:
    """The result of an experiment: from its file if it was made with these settings, else run, saved and returned.

    Raises:
      OSError: nothing can be written in its folder, which is tried first.
      ValueError: its file is damaged.
    """
    name = run.__module__.rpartition(".")[2]
    folder = pathlib.Path(settings.out) / name
    about = {field: value for field, value in dataclasses.asdict(settings).items() if field not in ("out", "page")}
    if (done := report.read(folder, about)) is not None:
        console.print(f"[dim]{name}: done before, kept in {folder}[/dim]")
        return done
    from experiments.lib import style  # and with it matplotlib, which scripts without figures do without

    files.try_folder(folder)
    start = time.perf_counter()
    with style.used(), status(name):
        made = run(settings)
    there = dataclasses.replace(settings, out=Settings.out, page=None)
    by, more = command(name, there), dataclasses.replace(there, quick=False, full=True)
    made = dataclasses.replace(
        made,
        name=name,
        command=by,
        seed=settings.seed,
        seconds=time.perf_counter() - start,
        full_command=command(name, more) if made.more and not settings.full else "",
        full_minutes=registry.ENTRIES[name].full_minutes or 0.0,
        made=pages.made(by, start, seeds=[settings.seed]),
    )
    report.write(folder, made, about)
    console.print(f"{name}: {made.seconds:.1f} s")
    return made


@contextlib.contextmanager
def progress(disable: bool = False) -> Iterator[rich.progress.Progress]:
    """A progress bar with time left, for use as a context: inside another one its lines stand below that one's. Nothing if disabled.

    A task with a field `left_fn` knows the seconds that are left.
    """
    if _shown and not disable:
        bar, before = _shown[-1], set(_shown[-1].task_ids)
        try:
            yield bar
        finally:
            for task in set(bar.task_ids) - before:
                bar.remove_task(task)
        return
    text, parts = rich.progress.TextColumn("{task.description}"), rich.progress.MofNCompleteColumn()
    with rich.progress.Progress(
        text, rich.progress.BarColumn(), parts, _TimeLeft(), console=console, transient=True, disable=disable
    ) as bar:  # fmt: skip
        _shown.append(bar)
        try:
            yield bar
        finally:
            _shown.remove(bar)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """A line that says what is being done, as long as that takes."""
    with progress() as bar:
        bar.add_task(text, total=None)
        yield


class _TimeLeft(rich.progress.TimeRemainingColumn):
    def render(self, task):
        left_fn = task.fields.get("left_fn")
        if left_fn is None:
            return super().render(task)
        return rich.text.Text(f"about {datetime.timedelta(seconds=round(left_fn()))} left", style="progress.remaining")


_shown: list[rich.progress.Progress] = []  # the bar on the screen, if there is one
