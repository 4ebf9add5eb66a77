"""What all tests share."""

import os

from hypothesis import settings

# Nothing here is timed: a machine may be as slow as it likes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Our programs run as on a machine where nobody has set this: what a buffer keeps can fail later.
os.environ.pop("PYTHONUNBUFFERED", None)
