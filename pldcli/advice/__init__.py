"""Which model to train for how long: runs on record, the law fitted to them, and what follows from it on this machine."""
