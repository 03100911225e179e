"""SGD itself."""

from ._basins import basins as basins
from ._loop import Run as Run
from ._run_spider import run_spider as run_spider
from ._simulate import simulate as simulate, train as train
from ._spider import Spider as Spider, SpiderRun as SpiderRun
from .engine import (
    AbstractEngine as AbstractEngine,
    Blocked as Blocked,
    Direct as Direct,
    Lumped as Lumped,
    default_engine as default_engine,
)
