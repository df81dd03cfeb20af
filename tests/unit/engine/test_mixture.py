import pytest

from lethe.engine.mixture import mix


def marked(count, name):
    return [f"{name}{i}" for i in range(count)]


@pytest.mark.parametrize(
    ("new", "replayed"), [(32, 1), (400, 50), (8000, 250), (7, 3), (5, 5), (3, 8)]
)
def test_added_examples_keep_all_others_and_everything_in_its_order(new, replayed):
    mixed = mix(marked(new, "n"), marked(replayed, "r"), "add")
    assert [name for name in mixed if name[0] == "n"] == marked(new, "n")
    assert [name for name in mixed if name[0] == "r"] == marked(replayed, "r")


@pytest.mark.parametrize(("new", "replayed"), [(32, 1), (400, 50), (5, 5)])
def test_swapped_examples_take_the_places_of_the_last_new_ones(new, replayed):
    mixed = mix(marked(new, "n"), marked(replayed, "r"), "swap")
    assert len(mixed) == new
    assert [name for name in mixed if name[0] == "n"] == marked(new - replayed, "n")
    assert [name for name in mixed if name[0] == "r"] == marked(replayed, "r")


def test_more_replayed_than_new_examples_leave_no_new_one_when_swapped():
    assert mix(marked(3, "n"), marked(5, "r"), "swap") == marked(5, "r")


@pytest.mark.parametrize("accounting", ["add", "swap"])
@pytest.mark.parametrize(("new", "replayed"), [(32, 1), (400, 50), (1000, 31), (7, 3), (3, 2)])
def test_replayed_examples_are_spread_evenly(new, replayed, accounting):
    """Up to any place their number is the even share, give or take less than one."""
    mixed = mix(marked(new, "n"), marked(replayed, "r"), accounting)
    seen = 0
    for place, name in enumerate(mixed, start=1):
        seen += name[0] == "r"
        assert abs(seen - place * replayed / len(mixed)) < 1


def test_nothing_replayed_changes_nothing():
    for accounting in ("add", "swap"):
        assert mix(marked(4, "n"), [], accounting) == marked(4, "n")
