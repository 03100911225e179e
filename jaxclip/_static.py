"""What a compiled program is compiled for: functions, told apart by equality.

A jitted verb takes numbers as arguments and functions as structure. The same function
again is the same program; a function that cannot be hashed is told by its identity.
"""

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ByIdentity(Generic[T]):
    """A value that is equal to nothing but itself, for values that have no hash."""

    def __init__(self, value: T):
        self.value = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)  # pyright: ignore[reportCallIssue]  only functions are called

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.value is other.value

    def __repr__(self) -> str:
        return repr(self.value)


def hashable(value: T) -> T | ByIdentity[T]:
    """`value` itself where it has a hash, otherwise a stand-in that can be called."""
    try:
        hash(value)
    except TypeError:
        return ByIdentity(value)
    return value
