"""A whole comparison of pre-training systems: what is to be trained, and what came of it."""
