"""The limits of what people run, against runs: one table of claims.

Batches, momentum, weight decay and private noise, exact means and bands in finitely
many dimensions, losses other than the square, rules for each coordinate, Adam and its
kin, and scaling laws. Each claim says whose it is; most are derived here. Runs are in
100, 400 and 1600 dimensions: how far one is from its limit falls with the square root
of the dimension. Writes the data into `results/high_dim/`, and exits with an error
where a claim fails. `--quick` has the losses alone, with fewer runs.
"""

import jax
from _claims import reproduce
from _high_dim_adam import adam
from _high_dim_batches import batches
from _high_dim_coordinates import coordinates
from _high_dim_losses import losses
from _high_dim_means import means
from _high_dim_momentum import momentum
from _high_dim_scaling import scaling

jax.config.update("jax_enable_x64", True)

if __name__ == "__main__":
    long = [means, coordinates, adam, batches, momentum, scaling]
    reproduce(__doc__ or "", "high_dim", 0, [losses], long)
