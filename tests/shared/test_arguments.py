import pytest

from shared.arguments import joined, with_names


class Verbs:
    def verify(self, model, datamodule, first: str, second: str | None = None, far: float = 0.01):
        pass


def test_an_option_that_is_given_several_times_is_one_list():
    given = ["--run", "a", "--set", "one=1", "--set=[two=2, 'three=3,4']", "--set", "name=a: b", "--other=1"]
    assert joined(given, {"set"}) == ["--run", "a", "--other=1", '--set=["one=1", "two=2", "three=3,4", "name=a: b"]']


def test_options_that_are_not_given_stay_away():
    assert joined(["--run", "a"], {"set"}) == ["--run", "a"]


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (1, ["a", "--far", "0.1"], ["--first", "a", "--far", "0.1"]),
        (1, ["a", "b"], ["--first", "a", "b"]),
        (2, ["a", "b", "--far=0.1"], ["--first", "a", "--second", "b", "--far=0.1"]),
        (2, ["a", "b", "c"], ["--first", "a", "--second", "b", "c"]),
        (2, ["--first", "a", "b"], ["--first", "a", "b"]),
        (2, [], []),
    ],
)
def test_values_in_front_get_the_names_of_the_first_options(count, options, expected):
    assert with_names(Verbs, "verify", options, count) == expected
