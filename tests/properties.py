"""How tests with hypothesis run here: on a busy machine an example may take its time."""

from hypothesis import HealthCheck, settings

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
