"""SGD itself."""

from ._simulate import (
    AbstractEngine as AbstractEngine,
    Blocked as Blocked,
    Direct as Direct,
    simulate as simulate,
    train as train,
)
