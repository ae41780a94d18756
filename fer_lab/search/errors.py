"""What a sweep refuses, in words."""


class SearchError(ValueError):
    """A space, a store or an option that cannot be used; the text says what to type instead (a usage error)."""


class SearchFailed(RuntimeError):
    """A sweep that ran and came to nothing (exit code 1)."""
