"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("jaxclip")
    except PackageNotFoundError:
        # A checkout that is on the path, but was not installed, has no metadata.
        return "0+unknown"


# A constant, and no `__getattr__` of the package: to a type checker that would make
# every misspelt name of the package a right one. JAX has imported `importlib.metadata`
# before, and what is left takes a fifth of a millisecond.
__version__ = _installed()
