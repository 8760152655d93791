"""Four CPU devices, ranks that must match, and a compilation cache that outlives the run; all set before jax has a backend.

LLVM optimises little (a third less time to compile, which is most of the suite's) unless XLA_FLAGS says otherwise.
Compiled programs are let go after every module: each holds memory maps, of which a process has 65,530 by default, and XLA crashes beyond.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"

import jax
import pytest


def pytest_configure(config):
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    config.addinivalue_line("filterwarnings", "ignore:Error .* persistent compilation cache:UserWarning")  # two workers at one entry
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def _programs_are_let_go():
    yield
    jax.clear_caches()
