"""Regularized clipping at several depths and widths: a part of
`reproduce_delta_gclip.py`.

Not a program of its own.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, ORANGE, Claim, Report, at_most
from _delta_gclip_wide import DELTA, Wide, descend, guarantee


def depths(report: Report) -> list[Claim]:
    """The guarantee at several depths, and a network too narrow for it.

    The rate is half of one over the curvature at the start: that of 1.1 in
    `wide_network` is too large for the deepest, whose curvature grows along the path.
    """
    width, hidden = (128, (1, 4)) if report.quick else (256, (1, 3, 6))
    claims = []
    for layers in hidden:
        wide = Wide(width, jr.key(report.seed), layers, 2.0)
        path = descend(wide, wide.clip(1e-3 * DELTA, DELTA), 1000)
        claims += guarantee(f"{layers + 1} layers, width {width}", path)
    narrow = Wide(6, jr.key(report.seed), 4, 2.0)
    path = descend(narrow, narrow.clip(1e-3 * DELTA, DELTA), 1000)
    kernel = path.geometry[:, 0]
    claims.append(at_most("5 layers, width 6: the kernel's condition fails, smallest "
                          "eigenvalue over that at w0 (ours)",
                          kernel.min() / kernel[0], 0.5))  # fmt: skip
    return claims


def drift(report: Report) -> list[Claim]:
    """How the tangent kernel moves the less the wider the network is.

    Liu, Zhu and Belkin (arXiv:2003.00307) bound the movement by one over the root of
    the width, up to logarithms; one over the width is what is seen in general
    (Dyer and Gur-Ari, arXiv:1909.11304).
    """
    widths = np.array([64, 256] if report.quick else [64, 128, 256, 512, 1024])
    keys = jr.split(jr.key(report.seed), 4)

    def moves(key, width):
        wide = Wide(int(width), key)
        clip = wide.clip(1e-3 * DELTA, DELTA)
        kernel = wide.run(clip, 150, 50, wide.kernel).observed
        smallest = jnp.linalg.eigvalsh(kernel)[:, 0]
        whole = jnp.linalg.norm(kernel - kernel[0], axis=(1, 2))
        return (jnp.max(jnp.abs(smallest / smallest[0] - 1)),
                jnp.max(whole) / jnp.linalg.norm(kernel[0]))  # fmt: skip

    # One seed after the other: the kernels of all at once would fill the memory.
    each = [jax.lax.map(lambda k, m=m: moves(k, m), keys) for m in widths]
    smallest, whole = np.log(np.array(each)).transpose(1, 2, 0)
    report.save("drift", width=widths, smallest=np.exp(smallest), whole=np.exp(whole))
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    claims = []
    for name, moved, color in (("smallest eigenvalue", smallest, BLUE),
                               ("whole kernel", whole, ORANGE)):  # fmt: skip
        slopes = np.polyfit(np.log(widths), moved.T, 1)[0]
        slope, error = slopes.mean(), slopes.std(ddof=1) / len(slopes) ** 0.5
        ax.loglog(widths, np.exp(moved.T), ".", color=color, alpha=0.4)
        ax.loglog(widths, np.exp(moved.mean(axis=0)), color=color,
                  label=f"{name}: exponent {slope:.2f} ± {error:.2f}")  # fmt: skip
        text = f"drift of the {name} against the width: exponent, +- {error:.2f}"
        claims.append(
            at_most(f"{text}: with 3 errors it is below", slope + 3 * error, 0)
        )
        if report.quick:
            said = "Liu, Zhu and Belkin: at most -1/2; two narrow widths, + 2 errors"
            claims.append(at_most(f"{text} ({said})", slope, -0.5 + 2 * error))
        else:
            said = "between the -1/2 of Liu, Zhu and Belkin and the -1 that is usual"
            claims.append(Claim(f"{text} ({said})", slope, -1 - 3 * error, -0.5))
    ax.set(xlabel="width of the network", ylabel="relative drift in 150 steps",
           title="Wider networks keep their kernel")  # fmt: skip
    ax.legend()
    report.finish(figure, "drift")
    return claims
