"""Count how many activities overlapped, from the times that they recorded."""


def most_at_once(spans):
    """Return the largest number of (start, end) spans that overlap."""
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)
