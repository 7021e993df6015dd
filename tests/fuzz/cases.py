"""What fuzz tests share."""

from hypothesis import settings


def fewer(times: int) -> settings:
    """Settings of a test whose cases are slow: a fraction of the profile's number."""
    profile = settings()
    return settings(profile, max_examples=max(5, profile.max_examples // times))
