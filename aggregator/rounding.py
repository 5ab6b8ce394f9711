"""Products that keep their bits, whatever the compiler does with the sums and products around them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def rounded(product: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`product`, rounded to its dtype before anything is added to it; put it around a product that feeds a sum.

    XLA's fusions let a multiplication and an addition contract to one multiply-add, which rounds once instead of twice,
    where the two happen to meet in one fusion: the last bit then depends on the program around them. Neither
    `optimization_barrier` nor `reduce_precision` to the same precision prevents it (seen on the CPU with jax 0.10.2: a
    quarter of the sums differ); a maximum in between does. It also keeps a product of three factors in the order it was
    written in, which the compiler changes where two of them are broadcast. A value of -inf becomes the lowest finite
    number.
    """
    return jnp.maximum(product, jnp.finfo(product.dtype).min)
