import pytest
from helpers.federation import Federation


@pytest.fixture
def federation(tmp_path):
    """Makes small federations over real links, and ends what a test leaves of them."""
    made = []

    def make(*args, **options):
        made.append(Federation(tmp_path, *args, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()
