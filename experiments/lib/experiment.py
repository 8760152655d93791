"""What every experiment needs from outside: settings, devices, a compilation cache, progress, and the file of its result."""

import argparse
import dataclasses
import os
import pathlib
import shlex
import time
import types
import typing
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import rich.console
import rich.progress
import tyro

from experiments.lib import data, files, report
from robustjax import parallel

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
class Settings(Options):
    """How a section of the report is made; what is equal but for its folder and page gives equal results."""

    out: str = "runs/tutorial"
    dataset: data.Name = "digits"
    seed: int = 0


Kind = TypeVar("Kind", bound=Options)


def main(module: types.ModuleType, name: str, arguments: Sequence[str]) -> None:
    """Runs a script: `run(settings)`, of which the type of its argument says what settings there are.

    What it returns is a section of the report, which is kept, or nothing.
    """
    if hasattr(module, "main"):
        module.main(arguments)
        return
    hints = typing.get_type_hints(module.run)
    settings = parse(hints["settings"], f"experiments {name}", module.__doc__, arguments)
    if hints.get("return") is not report.Section:
        module.run(settings)
        return
    prepare()
    made = section(module.run, settings)
    if settings.page is not None:
        files.write(settings.page, report.markdown_page(made))


def parse(kind: type[Kind], name: str, about: str | None, arguments: Sequence[str] | None) -> Kind:
    """Settings from the command line; folders that nothing can be written in are refused before anything is computed."""
    settings = tyro.cli(kind, prog=f"python -m {name}", description=about, args=arguments)
    try:
        files.try_folder(settings.out)
        if settings.page is not None:
            files.try_file(settings.page)
    except (OSError, ValueError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from error
    return settings


def command(name: str, settings: Options) -> str:
    """The command line that gives these settings."""
    words = ["python -m experiments", name]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        flag = field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(shlex.quote(str(part)) for part in (value if isinstance(value, tuple) else (value,)))]
    return " ".join(words)


def old_parse(parser, arguments):
    parser.add_argument("--dataset", choices=data.NAMES, default=Settings.dataset)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--out", default=Settings.out)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    options = parser.parse_args(arguments)
    prepare()
    return Settings(dataset=options.dataset, seed=options.seed, out=options.out, quick=options.quick), options


def output(path: str) -> pathlib.Path:
    try:
        return files.try_file(path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def prepare() -> None:
    """Two CPU devices where there are two cores, and a compilation cache; before JAX is used."""
    if jax.config.jax_num_cpu_devices == -1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "robustjax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


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
    files.try_folder(folder)
    start = time.perf_counter()
    with console.status(f"{name} ..."):
        made = run(settings)
    made = dataclasses.replace(
        made,
        name=name,
        command=command(name, dataclasses.replace(settings, out=Settings.out, page=None)),
        seed=settings.seed,
        seconds=time.perf_counter() - start,
    )
    report.write(folder, made, about)
    console.print(f"{name}: {made.seconds:.1f} s")
    return made


def progress(disable: bool = False) -> rich.progress.Progress:
    """A progress bar with time left, for use as a context; one that shows nothing if disabled."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=disable,
    )
