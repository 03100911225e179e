"""The verdict on a data set, with its numbers and its figure."""

from ._advise import Advice as Advice, advise as advise
