"""Tokenizers: trained, read from files of many kinds, converted, and how text becomes ids."""
