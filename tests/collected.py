"""What a session has collected, before flags choose among it."""

import pytest

COLLECTED = pytest.StashKey[tuple[pytest.Item, ...]]()
