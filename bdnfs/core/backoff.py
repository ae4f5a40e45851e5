"""How long to wait before another try: exponential, jittered, bounded."""

# Asked to wait longer than this, a person should hear of it instead.
RETRY_AFTER_MAX_S = 300.0
_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.25, 30.0


def pause_s(attempt: int) -> float:
    """Return the seconds to wait after the failed attempt (1, 2, …), between half and all of its bound."""
    import random  # late: nothing fails on a hit

    bound_s: float = min(_PAUSE_MAX_S, _FIRST_PAUSE_S * 2.0 ** (attempt - 1))
    return bound_s * random.uniform(0.5, 1.0)
