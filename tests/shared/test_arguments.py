from shared.arguments import joined


def test_an_option_that_is_given_several_times_is_one_list():
    given = ["--run", "a", "--set", "one=1", "--set=[two=2, 'three=3,4']", "--set", "name=a: b", "--other=1"]
    assert joined(given, {"set"}) == ["--run", "a", "--other=1", '--set=["one=1", "two=2", "three=3,4", "name=a: b"]']


def test_options_that_are_not_given_stay_away():
    assert joined(["--run", "a"], {"set"}) == ["--run", "a"]
