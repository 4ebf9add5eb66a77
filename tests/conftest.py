"""What all tests share."""

from hypothesis import settings

# Nothing here is timed: a machine may be as slow as it likes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
