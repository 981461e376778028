"""What every stage's processor has in common."""

from dataclasses import MISSING, fields

import pytest

from carevl.cluster.jobs import Processor
from carevl.stages import STAGES

PROCESSORS = [kind for kind in Processor.__subclasses__() if kind.__module__.startswith("carevl.stages.")]


def test_processors_are_found():
    assert len(STAGES) > len(PROCESSORS) > 3


@pytest.mark.parametrize("kind", PROCESSORS, ids=lambda kind: kind.__name__)
def test_one_that_has_not_loaded_yet_can_be_printed(kind):
    """Ray prints what it hands to an actor."""
    processor = object.__new__(kind)
    for field in fields(kind):
        if field.init:
            object.__setattr__(processor, field.name, None if field.default is MISSING else field.default)
    assert kind.__name__ in repr(processor)
