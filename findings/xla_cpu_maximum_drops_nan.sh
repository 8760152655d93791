#!/usr/bin/env bash
# jax 0.10.2, CPU: the maximum over the classes of a batch of logits may drop a NaN.
#
# jnp.max propagates NaN, as numpy's does, for a batch of 64 rows; of the same rows in a batch of 500 it returns the largest finite number
# instead. Margins, DLR and every other loss by a maximum are then finite for a model whose logits are not, so that an attack loop cannot tell by its
# loss. Comparisons, sums and isnan are right. Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
largest = jax.jit(lambda logits: jnp.max(logits, axis=-1))
dropped = {}
for rows in (64, 500):
    logits = np.random.default_rng(0).normal(size=(rows, 12)).astype(np.float32)
    logits[:, 3] = np.nan
    assert np.isnan(logits.max(axis=-1)).all()
    dropped[rows] = int(np.isfinite(largest(logits)).sum())
    print(f"{rows} rows of 12 logits with a NaN each: {dropped[rows]} finite maxima")
raise SystemExit(0 if dropped[64] == 0 and dropped[500] > 0 else 1)
PYTHON
