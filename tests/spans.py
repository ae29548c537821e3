"""How many of some things went on at once, by the times that they left behind."""


def most_at_once(spans):
    """Of (start, end), the most that overlap."""
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)
