"""mimeo's engine: the parts that turn a real labelled image set into synthetic training data."""

__version__ = "0.1.0"
