"""What the noise of differentially private SGD buys, and how much of it is needed."""

from ._accounting import epsilon as epsilon, noise_multiplier as noise_multiplier
