"""A whole comparison of pre-training systems: what is to be trained, and how it is carried out."""
