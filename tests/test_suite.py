"""The test files themselves."""

import collections
import pathlib


def test_no_two_test_files_share_a_name():
    # The folders are no packages, so that pytest, and a test that imports from another, know a file by its bare name.
    names = collections.Counter(path.name for path in pathlib.Path(__file__).parent.rglob("test_*.py"))
    repeated = sorted(name for name, count in names.items() if count > 1)
    assert not repeated, f"rename one of each, e.g. after its folder: {', '.join(repeated)}."
