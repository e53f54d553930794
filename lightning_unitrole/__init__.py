"""Watch what each unit of a CNN is good for while it trains."""

__version__ = "0.1.0"
