from shared.smoothing.budget import Budget


def test_looks_are_fixed_and_end_with_all_draws():
    assert Budget(draws=1000).looks() == [1000]
    looks = Budget(draws=100_000, tolerance=0.1).looks()
    assert looks[:16] == list(range(256, 4097, 256))
    assert looks[-1] == 100_000
    assert len(looks) < 55
    assert Budget(draws=300, tolerance=0.1).looks() == [256, 300]


def test_what_settles_an_image():
    assert not Budget().is_settled(0.5, 0.5)
    grid = Budget(radii=(0.25, 0.5))
    assert [grid.is_settled(*pair) for pair in ((0.3, 0.4), (0.3, 0.6), (0.6, 0.9), (-0.1, 0.2), (-0.1, 0.3), (-0.5, -0.1))] == [1, 0, 1, 1, 0, 1]
    tolerance = Budget(tolerance=0.1)
    assert [tolerance.is_settled(*pair) for pair in ((0.3, 0.39), (0.3, 0.5), (-0.5, 0.05), (-0.5, 0.0))] == [1, 0, 1, 1]
