"""Products, pairs and samples of overrides."""

import pytest

from recursia.sweep import grids, log_uniform, product, sample, uniform, zip


def test_a_product_has_every_combination_and_the_last_axis_varies_fastest():
    made = product({"a.b": [1, 2]}, c="xy")
    assert made == [
        {"a.b": 1, "c": "x"},
        {"a.b": 1, "c": "y"},
        {"a.b": 2, "c": "x"},
        {"a.b": 2, "c": "y"},
    ]


def test_pairs_are_as_many_as_each_axis_and_can_be_an_axis_of_a_product():
    pairs = zip(config=["a", "b"], labels=[{"system": "a"}, {"system": "b"}])
    made = product(pairs, seed=[0, 1], labels=[{"width": 3}])
    assert len(made) == 4 and made[3]["config"] == "b" and made[3]["seed"] == 1
    assert made[0]["labels"] == {"system": "a", "width": 3}
    with pytest.raises(ValueError, match="2, 3"):
        zip(a=[1, 2], b=[1, 2, 3])


def test_two_axes_may_not_set_one_field():
    with pytest.raises(ValueError, match="'a'"):
        product({"a": [1]}, a=[2])


@pytest.mark.parametrize(("axis", "name"), [({"a.b": 3}, "a.b"), (3, "an axis")])
def test_an_axis_is_a_list(axis, name):
    with pytest.raises(ValueError, match=f"{name}: got 3, takes a list"):
        product(axis)


def test_a_sample_is_the_same_everywhere_and_grows_without_changing():
    spaces = {"rate": log_uniform(1e-4, 1e-2), "decay": uniform(0, 1), "kind": ["x", "y", "z"]}
    made = sample(3, 0, spaces)
    assert made == [
        {"rate": 0.002423, "decay": 0.1486, "kind": "y"},
        {"rate": 0.004246, "decay": 0.7331, "kind": "z"},
        {"rate": 0.001767, "decay": 0.8281, "kind": "y"},
    ]
    assert sample(5, 0, spaces)[:3] == made
    assert [{"rate": each["rate"]} for each in made] == sample(3, 0, rate=spaces["rate"])
    assert sample(3, 1, spaces) != made


def test_draws_stay_in_their_space():
    drawn = sample(200, 0, rate=log_uniform(1e-4, 1e-2), decay=uniform(-1, 1))
    assert all(1e-4 <= each["rate"] <= 1e-2 and -1 <= each["decay"] <= 1 for each in drawn)
    below = sum(each["rate"] < 1e-3 for each in drawn)
    assert 60 < below < 140, "half of them by the logarithm"
    assert all(each["rate"] == float(f"{each['rate']:.{grids.DIGITS}g}") for each in drawn)
    with pytest.raises(ValueError, match="0 < low"):
        log_uniform(0, 1)
    with pytest.raises(ValueError, match="low <= high, got 3 and 1"):
        uniform(3, 1)
