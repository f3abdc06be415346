def test_learned(learned):
    print({n: (c["score"], c["history"], c["wall_seconds"]) for n, c in learned.cells.items()})
    print(sorted(p.relative_to(learned.out) for p in learned.out.rglob("*")))
    print(learned)
