#!/usr/bin/env bash
# pyautoattack 0.2.0 on torch: AutoAttack ends with a RuntimeError where images lie in memory with channels last.
#
# PyTorch recommends that memory format for convolutions, and torch.tensor keeps it for images that numpy moved from NHWC to NCHW by moveaxis.
# The targeted APGD then asks the input gradient, which has the strides of the images, for grad.view(B, -1). APGD on the cross-entropy
# before it passes, so that an evaluation fails only after its first member, and only where that one leaves images to attack.
# Seen: "view size is not compatible with input tensor's size and stride" for the one layout, a robust accuracy for the other.
# Exits with 1 where the second layout passes too, or the first one fails.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "pyautoattack==0.2.0" "torch==2.14.1" "numpy==2.4.6"
"$folder/env/bin/python" - <<'PYTHON'
import importlib.metadata

import numpy as np
import torch
from pyautoattack import AutoAttack

print("pyautoattack", importlib.metadata.version("pyautoattack"), "torch", torch.__version__)
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2), torch.nn.Flatten(), torch.nn.Linear(8 * 9, 10)
).eval()
images = np.random.default_rng(0).random((8, 8, 8, 3), np.float32)
moved = np.moveaxis(images, -1, 1)


def outcome(x):
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    attack = AutoAttack(model, norm="Linf", eps=1e-4, version="custom", attacks=["apgd-ce", "apgd-t"])
    try:
        attack.run_standard_evaluation(x, y)
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    return "passed"


contiguous, channels_last = outcome(torch.tensor(np.ascontiguousarray(moved))), outcome(torch.tensor(moved))
print("channels first:", contiguous)
print("channels last: ", channels_last)
raise SystemExit(0 if contiguous == "passed" and "view size is not compatible" in channels_last else 1)
PYTHON
