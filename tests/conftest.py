"""Four CPU devices, ranks that must match, programs that compile fast, and a table of how many each module may ask for.

Most of the suite's time goes into compilation: XLA optimises little and emits the simplest code, unless XLA_FLAGS says otherwise, and
what was compiled outlives the run in a cache. Level 0 would take half the time of level 1, but its roundings were not tried on all
tests. Compiled programs are let go after many: each holds memory maps, of which a process has 65,530 by default, and XLA crashes beyond.
"""

import json
import os
import pathlib

import jaxlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1 "
    # Later versions lack this flag, and end the process at one that they do not know.
    + ("--xla_cpu_use_fusion_emitters=false " if jaxlib.__version__.startswith("0.10.") else "")
    + f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
)

import jax
import pytest

_TABLE = pathlib.Path(__file__).with_name("programs.json")
_MANY = 2000  # programs of at most 30 memory maps each
_asked = {"module": 0, "kept": 0}


def pytest_addoption(parser):
    told = "write how many programs each module that runs asks for into tests/programs.json; together with -n 0"
    parser.addoption("--write-programs", action="store_true", help=told)


def pytest_configure(config):
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    config.addinivalue_line("filterwarnings", "ignore:Error .* persistent compilation cache:UserWarning")  # two workers at one entry
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.monitoring.register_event_duration_secs_listener(_count)


def _count(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":  # also where the cache on disk had the program
        _asked["module"] += 1
        _asked["kept"] += 1


@pytest.fixture(autouse=True, scope="module")
def _programs_are_counted_and_let_go(request):
    is_written = request.config.getoption("--write-programs")
    if is_written:  # as many as it asks for where nothing ran before it
        jax.clear_caches()
    _asked["module"] = 0
    yield
    num_asked = _asked["module"]
    if _asked["kept"] > _MANY:
        jax.clear_caches()
        _asked["kept"] = 0
    module, table = request.node.path.relative_to(_TABLE.parent).as_posix(), json.loads(_TABLE.read_text())
    rounded = -(-num_asked // 10) * 10
    if is_written:
        _TABLE.write_text(json.dumps(dict(sorted((table | {module: rounded}).items())), indent=2) + "\n")
    elif jaxlib.__version__.startswith("0.10.") and num_asked > table.get(module, num_asked):
        pytest.fail(
            f"{module} asked XLA for {num_asked} programs, and tests/programs.json allows {table[module]}. An operation outside jax.jit "
            "is a program by itself: set tests up in numpy, and let them share one jitted function. If the new tests are worth it, "
            f'write "{module}": {rounded} into that table.',
            pytrace=False,
        )
