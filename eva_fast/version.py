"""The version of the package, as pyproject.toml has it; here, so that parts need not know the whole."""

__version__ = "0.1.0"
