"""Optimizers: those that torch lacks, and which one a configuration asks for."""
