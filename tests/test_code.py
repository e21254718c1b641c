"""What counts as a change of code, and that other code never passes for finished work."""

import pytest

from vpd.utils.fingerprint import code_digest, meaning

FUNCTION = 'def f(x):\n    """Double."""\n    return 2 * x  # twice\n'


@pytest.mark.parametrize(
    "same",
    [
        "def f(x):\n    return 2 * x\n",
        'def f(x):\n    """Another text."""\n\n    # why\n    return (\n        2 * x\n    )\n',
        '"""A module docstring."""\n\n\ndef f(x):\n    return 2 * x\n',
    ],
)
def test_comments_docstrings_and_layout_mean_nothing(same):
    assert meaning(FUNCTION) == meaning(same)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return 3 * x\n",
        "def g(x):\n    return 2 * x\n",
        "def f(x, y=0):\n    return 2 * x\n",
        "def f(x):\n    return 2 * x\n\n\nf(1)\n",
    ],
)
def test_anything_else_does(other):
    assert meaning(FUNCTION) != meaning(other)


def test_a_function_of_only_a_docstring_is_an_empty_one():
    assert meaning('def f():\n    """Nothing."""\n') == meaning("def f():\n    pass\n")


def test_packages_have_digests_of_their_own():
    digests = {code_digest("datasets"), code_digest("models"), code_digest("datasets", "models")}
    assert len(digests) == 3
    assert all(len(digest) == 16 for digest in digests)
