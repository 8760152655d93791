"""What the tables of mistakes have in common: each row is a call, and words that its error must hold."""

import traceback
from collections.abc import Callable

import pytest


def check(call: Callable, *words: str) -> None:
    """The call raises a ValueError or a TypeError of this package, which holds the words: what was expected, what was got, what helps."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    raised_in = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert "robustjax" in raised_in, f"a raw error, from {raised_in}: {caught.value}"
