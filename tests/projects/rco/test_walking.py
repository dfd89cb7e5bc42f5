import io
import json
import math
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.rco.anchors import Route, State
from projects.rco.choosing import choose
from projects.rco.greedy import FLOOR, hardness, next_anchor, part_of, share
from projects.rco.walking import Leg, RouteScheduler, Walk, legs


def stored(epochs, rates=(), accuracies=()):
    """A route with states after some epochs, and the history of all."""
    last = max([*epochs, len(rates), len(accuracies)])
    rates, accuracies = [*rates, *[None] * (last - len(rates))], [{"val/accuracy": float(value)} for value in accuracies]
    accuracies += [{}] * (last - len(accuracies))
    history = tuple(State(epoch, "", rates[epoch - 1], accuracies[epoch - 1]) for epoch in range(1, last + 1))
    return Route(Path("route"), {}, tuple(state for state in history if state.epoch in set(epochs)), history, is_complete=True)


def every(last):
    return stored(range(1, last + 1))


def taught(scheduler):
    return [scheduler.leg(epoch).anchor for epoch in range(scheduler.total)]


def stored_routes(last):
    """All routes that end at an epoch."""
    for kept in product([False, True], repeat=last - 1):
        yield stored([epoch for epoch, is_kept in enumerate(kept, start=1) if is_kept] + [last])


# ---- legs


@pytest.mark.parametrize("epochs", range(1, 13))
def test_student_epoch_e_is_taught_by_anchor_number_ceil_of_e_n_over_all(epochs):
    for n in range(1, 13):
        anchors = [10 * number for number in range(1, n + 1)]
        found = legs(anchors, epochs, "mirror")
        expected = [anchors[math.ceil(Fraction(e * n, epochs)) - 1] for e in range(1, epochs + 1)]
        assert [leg.anchor for leg in found for _ in range(leg.start, leg.stop)] == expected
        assert found[0].start == 0
        assert all(before.stop == after.start for before, after in pairwise(found))
        assert [leg.number for leg in found] == list(range(1, min(n, epochs) + 1))
        assert found[-1].anchor == anchors[-1]
        lengths = [leg.stop - leg.start for leg in found]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("last", range(1, 13))
def test_with_equal_epochs_the_first_anchor_at_or_after_the_epoch_teaches(last):
    assert taught(RouteScheduler(Walk("one_by_one"), every(last), last, seed=0)) == list(range(1, last + 1))
    for n in (n for n in range(1, last + 1) if last % n == 0):
        anchors = choose(Walk(anchors=n), every(last), seed=0)
        expected = [min(anchor for anchor in anchors if anchor >= e) for e in range(1, last + 1)]
        assert taught(RouteScheduler(Walk(anchors=n), every(last), last, seed=0)) == expected


@pytest.mark.parametrize("budget", ["mirror", "restart"])
def test_one_anchor_is_plain_distillation(budget):
    scheduler = RouteScheduler(Walk(anchors=1, budget=budget), every(20), 7, seed=0)
    assert scheduler.legs == [Leg(1, 20, 0, 7)]
    assert scheduler.total == 7
    assert [scheduler.epoch_in_schedule(epoch) for epoch in range(8)] == [(epoch, 7) for epoch in range(8)]


def test_the_papers_walk_has_four_legs_of_sixty_epochs():
    scheduler = RouteScheduler(Walk(), every(240), 240, seed=0)
    assert scheduler.legs == [Leg(1, 60, 0, 60), Leg(2, 120, 60, 120), Leg(3, 180, 120, 180), Leg(4, 240, 180, 240)]
    assert [epoch for epoch in range(240) if scheduler.starts(epoch)] == [0, 60, 120, 180]
    assert not any(scheduler.resets(epoch) for epoch in range(240))
    assert scheduler.epoch_in_schedule(130) == (130, 240)


def test_restarted_legs_have_all_epochs_and_schedules_of_their_own():
    scheduler = RouteScheduler(Walk(anchors=3, budget="restart"), every(9), 4, seed=0)
    assert scheduler.legs == [Leg(1, 3, 0, 4), Leg(2, 6, 4, 8), Leg(3, 9, 8, 12)]
    assert scheduler.total == 12
    assert [epoch for epoch in range(12) if scheduler.resets(epoch)] == [0, 4, 8]
    assert [scheduler.epoch_in_schedule(epoch)[0] for epoch in range(13)] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_reversed_order_is_the_forward_walks_anchors_backwards():
    for n, epochs in product(range(1, 9), range(1, 13)):
        forward, backward = (RouteScheduler(Walk(anchors=n, order=order), every(8), epochs, seed=0) for order in ("forward", "reversed"))
        assert [leg.anchor for leg in backward.legs] == [leg.anchor for leg in forward.legs][::-1]
        assert len(taught(backward)) == epochs


@pytest.mark.parametrize("epoch", [-1, 6])
def test_an_epoch_beyond_the_walk_is_named(epoch):
    with pytest.raises(ValueError, match=f"student epoch {epoch} is not among the walk's, 0 to 5"):
        RouteScheduler(Walk(), every(8), 6, seed=0).leg(epoch)


def test_a_walk_without_epochs_is_refused():
    with pytest.raises(ValueError, match="at least 1 student epoch, got 0"):
        RouteScheduler(Walk(), every(8), 0, seed=0)


# ---- choices known beforehand


def test_equal_intervals_take_the_first_stored_state_at_or_after_each_part_of_the_route():
    for route in stored_routes(7):
        for n in range(1, 9):
            wanted = [math.ceil(Fraction(k * 7, n)) for k in range(1, n + 1)]
            expected = [min(epoch for epoch in route.epochs if epoch >= least) for least in wanted]
            if len(set(expected)) == n:
                assert choose(Walk(anchors=n), route, seed=0) == expected
            else:
                with pytest.raises(ValueError, match=rf"walk.anchors {n} asks for {n} .* has {len(route.epochs)} stored.* one_by_one$"):
                    choose(Walk(anchors=n), route, seed=0)


def test_an_interval_counts_from_the_beginning_and_adds_the_end():
    for last, interval in product(range(1, 13), range(1, 14)):
        expected = sorted({epoch for epoch in range(1, last + 1) if epoch % interval == 0} | {last})
        assert choose(Walk("interval", interval=interval), every(last), seed=0) == expected


def test_one_by_one_takes_every_stored_state():
    assert choose(Walk("one_by_one"), stored([2, 3, 7]), seed=0) == [2, 3, 7]


def test_random_anchors_depend_on_the_seed_alone_and_reach_every_state():
    route, before = stored([2, 3, 5, 8, 13]), torch.get_rng_state()
    drawn = [choose(Walk("random", anchors=3), route, seed) for seed in range(200)]
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn == [choose(Walk("random", anchors=3), route, seed) for seed in range(200)]
    assert all(len(set(anchors)) == 3 and anchors == sorted(anchors) and anchors[-1] == 13 for anchors in drawn)
    counts = [sum(epoch in anchors for anchors in drawn) for epoch in route.epochs[:-1]]
    assert all(70 <= count <= 130 for count in counts)  # 100 expected, standard deviation 7
    assert choose(Walk("random", anchors=1), route, 0) == [13]
    assert choose(Walk("random", anchors=5), route, 0) == route.epochs


def test_states_before_falls_of_the_learning_rate_are_chosen():
    rates = [0.02, 0.05, 0.05, 0.05, 0.005, 0.005, 0.004, 0.0005, 0.0005]  # a warm-up, two falls and a small one to 80 %
    assert choose(Walk("lr_drop"), stored(list(range(1, 10)), rates), seed=0) == [4, 7, 9]
    assert choose(Walk("lr_drop"), stored([3, 6, 9], rates), seed=0) == [3, 6, 9]  # the last state that was stored by then


def test_a_fall_to_three_quarters_counts():
    assert choose(Walk("lr_drop"), stored([1, 2, 3], [0.4, 0.3, 0.3]), seed=0) == [1, 3]


def test_falls_after_the_last_stored_state_and_epochs_without_a_rate_do_not_count():
    assert choose(Walk("lr_drop"), stored([1, 2, 3], [1.0, 0.1, 0.1, 0.01]), seed=0) == [1, 3]
    assert choose(Walk("lr_drop"), stored([1, 2, 3], [1.0, None, 0.1]), seed=0) == [1, 3]


def test_the_phase_is_the_stored_state_in_the_steepest_rise():
    rng = np.random.default_rng(0)
    for route in stored_routes(6):
        accuracy = rng.permutation(6) / 6
        inner = [epoch for epoch in route.epochs[:-1] if epoch > 1]
        rise = {epoch: accuracy[epoch] - accuracy[epoch - 2] for epoch in inner}  # accuracy[e] is of epoch e + 1
        known = stored(route.epochs, accuracies=tuple(accuracy))
        if rise and max(rise.values()) > 0:
            assert choose(Walk("phase"), known, seed=0) == [max(e for e in inner if rise[e] == max(rise.values())), 6]
        else:
            with pytest.raises(ValueError, match=r"walk.choice phase: .*walk.choice explicit"):
                choose(Walk("phase"), known, seed=0)


def test_after_a_sudden_jump_the_phase_is_not_the_state_before_it():
    assert choose(Walk("phase"), stored([1, 2, 3, 4, 5, 6], accuracies=(0.5, 0.5, 0.5, 1.0, 1.0, 1.0)), seed=0) == [4, 6]


def test_explicit_epochs_are_sorted_and_end_with_the_final_state():
    assert choose(Walk("explicit", epochs=[12, 3]), every(20), seed=0) == [3, 12, 20]
    assert choose(Walk("explicit", epochs=[20, 3, 3]), every(20), seed=0) == [3, 20]


def test_a_single_state_teaches_alone():
    assert choose(Walk("single"), every(20), seed=0) == [10]
    assert choose(Walk("single"), every(7), seed=0) == [4]
    assert choose(Walk("single", epochs=[3]), every(20), seed=0) == [3]
    assert RouteScheduler(Walk("single"), every(20), 6, seed=0).legs == [Leg(1, 10, 0, 6)]


@pytest.mark.parametrize(
    ("walk", "route", "message"),
    [
        (
            Walk(anchors=3),
            stored([28, 29, 30]),
            "walk.anchors 3 .*at or after epochs 10, 20, 30, but the route has 3 stored states, after epochs 28, 29, 30",
        ),
        (Walk("interval", interval=1), stored([10, 20]), "walk.interval 1 asks for 20 distinct states, .* 1, 2, 3, 4, 5, 6, 7, 8, 9, ..., 20, but"),
        (Walk("random", anchors=4), stored([5, 10]), "walk.anchors 4 asks for 4 distinct states, but the route has 2 stored states"),
        (Walk("lr_drop"), stored([1, 2], [0.1, 0.09]), "walk.choice lr_drop: the teacher's learning rate never fell"),
        (Walk("lr_drop"), stored([1, 2], [None, None]), "learning rate is not recorded"),
        (Walk("lr_drop"), stored([3, 4], [1.0, 0.1, 0.1, 0.1]), "fell after epochs 1, but the route has 2 stored states, after epochs 3, 4"),
        (Walk("lr_drop"), stored([1, 4], [1.0, 0.1, 0.01, 0.01]), "fell after epochs 1, 2, but .*store the states before the falls"),
        (Walk("phase"), stored([1, 2, 3], accuracies=(0.5, 0.5, 0.5)), "walk.choice phase: the teacher's accuracy never rose"),
        (
            Walk("phase"),
            stored([3], accuracies=(0.5, 0.7, 0.9)),
            "no accuracy is recorded around a state before the final one; the route has 1 stored state,",
        ),
        (Walk("phase"), stored([1, 2, 3]), "no accuracy is recorded"),
        (Walk("explicit", epochs=[4, 5]), stored([2, 4, 6]), "walk.epochs names 5, but the route has 3 stored states, after epochs 2, 4, 6"),
        (Walk("single", epochs=[5]), stored([2, 4, 6]), "walk.epochs names 5"),
        (Walk("single"), stored([2, 9]), "walk.choice single: the route has 2 stored states, .*none of them in the second half"),
        (Walk("greedy"), every(3), "walk.choice greedy finds its anchors while the student is trained"),
    ],
    ids=lambda value: value.choice if isinstance(value, Walk) else "",
)
def test_a_route_that_does_not_fit_is_explained(walk, route, message):
    with pytest.raises(ValueError, match=message):
        choose(walk, route, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": "gs"}, "walk.choice must be one of eei, interval, .*, got 'gs'"),
        ({"budget": "double"}, "walk.budget must be one of mirror, restart"),
        ({"order": "backward"}, "walk.order must be one of forward, reversed"),
        ({"anchors": 0}, "walk.anchors must be at least 1, got 0"),
        ({"interval": 0}, "walk.interval must be at least 1"),
        ({"delta": -0.1}, "walk.delta must be 0 or more, got -0.1"),
        ({"delta": math.nan}, "walk.delta must be 0 or more, got nan"),
        ({"choice": "greedy", "order": "reversed"}, "walk.order reversed needs anchors that are known beforehand"),
        ({"epochs": [3]}, "walk.epochs is for walk.choice explicit and single; leave it out for eei"),
        ({"choice": "explicit"}, "walk.epochs must list"),
        ({"choice": "explicit", "epochs": []}, "walk.epochs must list"),
        ({"choice": "single", "epochs": [3, 4]}, "walk.epochs must hold one teacher epoch"),
        ({"choice": "single", "epochs": []}, "walk.epochs must hold one teacher epoch"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Walk(**options)


# ---- the greedy search


def test_hardness_is_the_ratio_of_losses_above_the_floor():
    losses = np.random.default_rng(0).uniform(0, 1, size=5)
    found = hardness(dict(enumerate(losses, start=4)), anchor=4, floor=0.1)
    assert list(found) == [4, 5, 6, 7, 8]
    np.testing.assert_allclose(list(found.values()), (losses + 0.1) / (losses[0] + 0.1), rtol=1e-12)


def test_hardness_is_finite_where_the_student_matches_perfectly():
    assert hardness({1: 0.0, 2: 0.0, 3: 1.0}, anchor=1, floor=1e-8) == {1: 1.0, 2: 1.0, 3: pytest.approx(1e8)}
    assert hardness({1: -1e-9, 2: 0.0}, anchor=1, floor=1e-8) == {1: 1.0, 2: 1.0}


def test_noise_below_the_floor_makes_no_state_hard():
    noisy = {1: 0.01, 2: 0.06, 3: 0.03, 4: 0.5}  # as part of ln K; without a floor the second would be six times as hard as the first
    assert next_anchor(hardness(noisy, anchor=1), 1, delta=0.8) == 3
    assert next_anchor(hardness(noisy, anchor=1, floor=1e-8), 1, delta=0.8) == 2


def test_the_part_of_the_way_is_that_of_the_losses():
    losses = {1: 0.04, 11: 0.1, 20: 0.6}
    assert part_of(hardness(losses, anchor=1), 11) == pytest.approx((0.1 - 0.04) / (0.6 - 0.04))
    assert part_of(hardness(losses, anchor=1), 20) == 1
    assert part_of({1: 1.0, 2: 0.9, 3: 1.2}, 2) == 0  # easier than what was learnt
    assert part_of({1: 1.0, 2: 3.0, 3: 1.2}, 2) == 1
    assert part_of({1: 1.0, 2: 1.0, 3: 1.0}, 2) == 1
    assert [share(10, part) for part in (0.0, 0.29, 1.0)] == [1, 2, 9]


def test_hardness_needs_finite_losses_and_the_anchors():
    with pytest.raises(ValueError, match=r"must be finite, got \{3: nan\}"):
        hardness({1: 1.0, 3: math.nan}, anchor=1)
    with pytest.raises(ValueError, match=r"to the anchor, epoch 2, and got those to \[1, 3\]"):
        hardness({1: 1.0, 3: 2.0}, anchor=2)


def searched(ratios, i, delta):
    """The greedy search word by word, every epoch being stored."""
    j = i + 1
    while j in ratios:
        if ratios[j] > 1 + delta:
            return j - 1 if j - 1 > i else j
        j += 1
    return j - 1


def test_the_next_anchor_is_the_expected_one_for_every_pattern_of_crossings():
    for i, pattern in product(range(1, 4), product([0.5, 1.8, 1.9], repeat=5)):
        ratios = {i: 1.0} | dict(enumerate(pattern, start=i + 1))
        assert next_anchor(ratios, i, delta=0.8) == searched(ratios, i, 0.8)


def test_between_stored_states_the_one_before_the_crossing_is_next():
    assert next_anchor({5: 1.0, 10: 1.2, 20: 1.5, 40: 3.0}, 5, delta=0.8) == 20
    assert next_anchor({5: 1.0, 10: 2.0, 20: 1.5, 40: 3.0}, 5, delta=0.8) == 10


def followed(scheduler, loss):
    """Train along a greedy walk, `loss(i, j)` being the congruence loss to state j after the leg of anchor i; anchors of every epoch."""
    anchors, epoch = [], 0
    while epoch < scheduler.total:
        if scheduler.needs_choice(epoch):
            i = scheduler.legs[-1].anchor
            scheduler.advance({j: loss(i, j) for j in [i, *scheduler.candidates()]})
        anchors.append(scheduler.leg(epoch).anchor)
        epoch += 1
    return anchors


def test_a_student_that_finds_nothing_hard_goes_straight_to_the_end():
    scheduler = RouteScheduler(Walk("greedy"), every(10), 20, seed=0)
    assert followed(scheduler, lambda i, j: 1.0) == [1] * 2 + [10] * 18
    assert scheduler.hardness == [dict.fromkeys(range(1, 11), 1.0)]
    assert not scheduler.needs_choice(20)


def test_a_student_that_finds_everything_hard_goes_one_by_one():
    scheduler = RouteScheduler(Walk("greedy"), every(10), 10, seed=0)
    assert followed(scheduler, lambda i, j: 1.0 + 3.0 * (j - i)) == list(range(1, 11))


def test_where_one_epoch_is_left_the_final_teacher_has_it():
    scheduler = RouteScheduler(Walk("greedy"), every(10), 4, seed=0)
    assert followed(scheduler, lambda i, j: 1.0 + 3.0 * (j - i)) == [1, 2, 3, 10]
    assert taught(RouteScheduler(Walk("greedy"), every(10), 1, seed=0)) == [10]


def test_a_route_of_one_state_is_plain_distillation():
    for budget in ("mirror", "restart"):
        scheduler = RouteScheduler(Walk("greedy", budget=budget), stored([10]), 4, seed=0)
        assert scheduler.legs == [Leg(1, 10, 0, 4)]
        assert (scheduler.total, scheduler.candidates(), scheduler.needs_choice(4)) == (4, [], False)


@pytest.mark.parametrize("budget", ["mirror", "restart"])
def test_greedy_walks_over_random_losses_are_the_expected_ones(budget):
    rng, floor = np.random.default_rng(1), FLOOR
    for _ in range(200):
        states = sorted(rng.choice(np.arange(1, 30), size=rng.integers(1, 9), replace=False).tolist())
        epochs, matrix = int(rng.integers(1, 25)), rng.uniform(0.1, 1, size=(30, 30))
        scheduler = RouteScheduler(Walk("greedy", delta=0.5, budget=budget), stored(states), epochs, seed=0)
        anchors = followed(scheduler, lambda i, j, matrix=matrix: matrix[i, j])
        place, left, end, expected, parts = 0, epochs, states[-1], [], {}
        while True:
            anchor = states[place]
            if budget == "mirror" and left == 1:
                anchor = end
            if budget == "mirror" and anchor != end:
                part = Fraction(anchor, end) if not expected else parts[anchor]
                length = min(max(math.floor(left * part), 1), left - 1)
            else:
                length = epochs if budget == "restart" else left
            expected += [anchor] * length
            left -= length
            if anchor == end:
                break
            ratios = {k: (matrix[anchor, states[k]] + floor) / (matrix[anchor, anchor] + floor) for k in range(place + 1, len(states))}
            ahead = matrix[anchor, end] - matrix[anchor, anchor]
            parts = {j: min(max((matrix[anchor, j] - matrix[anchor, anchor]) / ahead, 0), 1) if ahead > 0 else 1 for j in states}
            place = searched(ratios, place, 0.5)
        assert anchors == expected
        assert [leg.start for leg in scheduler.legs[1:]] == [leg.stop for leg in scheduler.legs[:-1]]
        assert len(anchors) == scheduler.total


def test_a_smaller_delta_gives_more_anchors():
    counts = []
    for delta in (0.1, 0.5, 1.0, 4.0, 1e6):
        scheduler = RouteScheduler(Walk("greedy", delta=delta), every(20), 60, seed=0)
        followed(scheduler, lambda i, j: math.exp((j - i) / 4))
        counts.append(len(scheduler.legs))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 20
    assert counts[-1] == 2


def test_a_restarted_greedy_walk_announces_a_leg_before_its_anchor_is_chosen():
    scheduler = RouteScheduler(Walk("greedy", budget="restart"), every(3), 4, seed=0)
    assert (scheduler.legs, scheduler.total) == ([Leg(1, 1, 0, 4)], 8)
    assert scheduler.epoch_in_schedule(4) == (0, 4)
    with pytest.raises(ValueError, match="student epoch 4 is not chosen yet: call advance after epoch 3"):
        scheduler.leg(4)
    assert scheduler.advance({1: 1.0, 2: 1.0, 3: 1.0}) == Leg(2, 3, 4, 8)
    assert scheduler.total == 8
    assert scheduler.resets(4)
    assert scheduler.epoch_in_schedule(8) == (4, 4)


def test_choosing_needs_all_losses_and_a_leg_to_choose():
    scheduler = RouteScheduler(Walk("greedy"), stored([2, 4, 6]), 6, seed=0)
    with pytest.raises(ValueError, match="losses to the teacher epochs 2, 4, 6; missing: 2, 6"):
        scheduler.advance({4: 1.0})
    assert scheduler.hardness == []
    scheduler.advance({2: 1.0, 4: 1.0, 6: 1.0})
    with pytest.raises(ValueError, match=r"walk.choice is greedy, and the last known anchor is of epoch 6"):
        scheduler.advance({6: 1.0})
    with pytest.raises(ValueError, match=r"no leg is left to choose: walk.choice is eei"):
        RouteScheduler(Walk(), every(4), 6, seed=0).advance({4: 1.0})


# ---- going on


def loss(i, j):
    return 1 + 0.37 * (j - i) ** 1.1


@pytest.mark.parametrize("budget", ["mirror", "restart"])
def test_a_resumed_greedy_walk_has_the_legs_of_an_unbroken_one(budget):
    walk, route = Walk("greedy", budget=budget), every(12)
    whole = RouteScheduler(walk, route, 9, seed=0)
    expected = followed(whole, loss)
    assert len(whole.legs) >= 4
    for known in range(1, len(whole.legs) + 1):
        broken = RouteScheduler(walk, route, 9, seed=0)
        while len(broken.legs) < known:
            i = broken.legs[-1].anchor
            broken.advance({j: loss(i, j) for j in range(i, 13)})
        file = io.BytesIO()
        torch.save(broken.state_dict(), file)
        file.seek(0)
        for state in (torch.load(file, weights_only=True), json.loads(json.dumps(broken.state_dict()))):
            resumed = RouteScheduler(walk, route, 9, seed=0)
            resumed.load_state_dict(state)
            assert (resumed.legs, resumed.hardness) == (broken.legs, broken.hardness)
            assert followed(resumed, loss) == expected
            assert (resumed.legs, resumed.hardness) == (whole.legs, whole.hardness)


@pytest.mark.parametrize("walk", [Walk(), Walk("random", anchors=3), Walk(order="reversed"), Walk(budget="restart")], ids=range(4))
def test_a_walk_known_beforehand_is_resumed(walk):
    scheduler = RouteScheduler(walk, every(8), 9, seed=3)
    resumed = RouteScheduler(walk, every(8), 9, seed=3)
    resumed.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    assert resumed.legs == scheduler.legs


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((Walk("greedy", delta=0.1), every(12), 9), "anchors 1, .* there, 1, 2 here"),
        ((Walk("greedy"), every(11), 9), "anchors .*: go on with the same walk, route, epochs and seed, or start a new run"),
        ((Walk("greedy"), every(12), 10), "epochs 9 there, 10 here"),
        ((Walk("greedy", budget="restart"), every(12), 9), "budget mirror there, restart here"),
        ((Walk(), every(12), 9), "choice greedy there, eei here"),
    ],
    ids=["delta", "route", "epochs", "budget", "choice"],
)
def test_a_state_of_another_walk_is_refused_and_changes_nothing(other, message):
    whole = RouteScheduler(Walk("greedy"), every(12), 9, seed=0)
    followed(whole, loss)
    scheduler = RouteScheduler(*other, seed=0)
    before = list(scheduler.legs)
    with pytest.raises(ValueError, match=f"the checkpoint's walk differs .*{message}"):
        scheduler.load_state_dict(whole.state_dict())
    assert (scheduler.legs, scheduler.hardness) == (before, [])
