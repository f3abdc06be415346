"""Pre-train BERT-style encoders with Progressive Layer Dropping."""

__all__ = ["__version__"]

__version__ = "0.2.0"
