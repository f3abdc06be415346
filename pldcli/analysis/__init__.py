"""Why dropping blocks destabilises training, and which blocks matter: what was measured of runs, as values, files and pictures."""
