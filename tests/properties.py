"""How cases are made: with hypothesis on a machine that may be busy, and by name where processes share the tests."""

import os

from hypothesis import HealthCheck, settings

# `make test` tries the same examples each time, so that it is never red for what a change has not touched;
# `make check-long` tries new ones.
unhurried = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="NEW_EXAMPLES" not in os.environ
)


def spelled(case: object) -> str:
    """The name of a case, the same in every process: a set has no order of its own."""
    return str(sorted(case) if isinstance(case, set) else case)
