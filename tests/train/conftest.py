"""Images that the tests of training share."""

import pytest

from advdim import data


@pytest.fixture(scope="session")
def digits():
    return data.load("digits", n=300)


@pytest.fixture(scope="session")
def test_digits():
    return data.load("digits", "test", n=200)
