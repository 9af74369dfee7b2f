"""Counts durations in buckets 1.6 % wide, so that a long run keeps no list of them."""

_SUB_BITS = 6


class Histogram:
    """Durations in nanoseconds."""

    def __init__(self) -> None:
        self._counts = [0] * (64 << _SUB_BITS)
        self.count = 0

    def add(self, nanoseconds: int) -> None:
        exponent = max(0, nanoseconds.bit_length() - 1 - _SUB_BITS)
        self._counts[(exponent << _SUB_BITS) + (nanoseconds >> exponent)] += 1
        self.count += 1

    def percentile_us(self, percent: float) -> float:
        """Give the duration that *percent* of all do not exceed, in microseconds."""
        wanted = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                exponent = max(0, (index >> _SUB_BITS) - 1)
                return ((index - (exponent << _SUB_BITS) + 0.5) * (1 << exponent)) / 1000
        return 0.0
