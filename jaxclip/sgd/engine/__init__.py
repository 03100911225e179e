"""The ways to compute a run."""

from ._base import AbstractEngine as AbstractEngine
from ._blocked import Blocked as Blocked
from ._default import default_engine as default_engine
from ._direct import Direct as Direct
from ._lumped import Lumped as Lumped
