"""The verdict on a data set, with its numbers and its figure."""

from ._advice import Advice as Advice
from ._advise import advise as advise
from ._prepare import prepare as prepare
from ._table import Table as Table
