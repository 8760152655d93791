"""What every experiment needs from outside: settings, devices, a compilation cache, progress, and the file of its result."""

import argparse
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable

import jax
import rich.console
import rich.progress

from experiments.lib import data, files, report
from robustjax import parallel

console = rich.console.Console(stderr=True)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an experiment is run; equal settings give equal results."""

    dataset: str = "digits"
    seed: int = 0
    out: str = "runs/tutorial"
    quick: bool = False  # a few steps of everything, to see that it runs


def main(run: Callable[[Settings], report.Section], description: str | None) -> None:
    """The command line of a single experiment; with --page its tables become a page of results."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--page", type=output, help="write the tables here, as Markdown")
    settings, options = parse(parser)
    made = section(run, settings)
    if options.page is not None:
        files.write(options.page, report.markdown_page(made))


def parse(parser: argparse.ArgumentParser) -> tuple[Settings, argparse.Namespace]:
    """Settings from the command line, with whatever else the parser knows."""
    parser.add_argument("--dataset", choices=data.NAMES, default=Settings.dataset)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--out", default=Settings.out)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    arguments = parser.parse_args()
    try:
        files.try_folder(arguments.out)
    except OSError as error:
        parser.error(str(error))
    prepare()
    return Settings(arguments.dataset, arguments.seed, arguments.out, arguments.quick), arguments


def output(path: str) -> pathlib.Path:
    """A file that is going to be written, as a type for `argparse`: its folder is tried before anything is computed."""
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
      ValueError: its file is damaged; or the experiment was not started as a module.
    """
    name = run.__module__.rpartition(".")[2]
    if name == "__main__":
        raise ValueError("run an experiment as a module: python -m experiments.NAME.")
    folder = pathlib.Path(settings.out) / name
    about = dataclasses.asdict(settings) | {"out": ""}
    if (done := report.read(folder, about)) is not None:
        console.print(f"[dim]{name}: done before, kept in {folder}[/dim]")
        return done
    files.try_folder(folder)
    start = time.perf_counter()
    with console.status(f"{name} ..."):
        made = run(settings)
    options = "".join(f" --{key} {value}" for key, value in dataclasses.asdict(settings).items() if key not in ("out", "quick"))
    command = f"python -m experiments.{name}{options}{' --quick' if settings.quick else ''}"
    made = dataclasses.replace(made, name=name, command=command, seed=settings.seed, seconds=time.perf_counter() - start)
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
