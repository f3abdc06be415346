"""Do to runs what happens to them, and look whether they end where they would have ended anyway."""
