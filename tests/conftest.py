"""Four CPU devices, ranks that must match, and programs that compile fast.

Most of the suite's time goes into compilation: XLA optimises little and emits the simplest code, unless XLA_FLAGS says otherwise, and
what was compiled outlives the run in a cache. Level 0 takes half the time of level 1, but jaxlib 0.10.2 then gets a projection onto L0
wrong that is mapped over eps. Compiled programs are let go after many: each holds memory maps, of which a process has 65,530 by default,
and XLA crashes beyond.
"""

import os

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

_MANY = 2000  # programs of at most 30 memory maps each
_kept = [0]


def pytest_configure(config):
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    config.addinivalue_line("filterwarnings", "ignore:Error .* persistent compilation cache:UserWarning")  # two workers at one entry
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.monitoring.register_event_duration_secs_listener(_count)


def _count(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":  # also where the cache had the program
        _kept[0] += 1


@pytest.fixture(autouse=True, scope="module")
def _programs_are_let_go():
    yield
    if _kept[0] > _MANY:
        jax.clear_caches()
        _kept[0] = 0
