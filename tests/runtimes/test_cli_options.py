"""The options of commands that open and ask a bundle are the fields of the values that Python is given."""

import re
from dataclasses import fields

import pytest

from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.cli_options import Settings
from tinyllava_edge.runtimes.model import open_bundle
from tinyllava_edge.sampling import Sampling


@pytest.mark.parametrize("kind", [BackendOptions, Sampling])
def test_a_command_has_every_option_with_the_default_that_python_has(
    kind: type[BackendOptions] | type[Sampling],
) -> None:
    given = Settings()
    assert {field.name: getattr(given, field.name) for field in fields(kind)} == vars(kind())
    assert given.read(kind) == kind()


def test_open_bundle_says_of_every_option_that_there_is() -> None:
    said = re.findall(r"`?(\w+)`?", (open_bundle.__doc__ or "").split("Args:")[1].split("Raises:")[0])
    assert {field.name for field in fields(BackendOptions)} <= set(said)
