"""prefanno: turn taste into a model, on one machine, with a person in the loop."""

__version__ = "0.1.0"
