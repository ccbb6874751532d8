"""Convolutions of one image and their gradients, with channels innermost.

Images are (pixels, channels) at an address, channels padded to whole vectors. A convolution is a list of taps: offsets
in pixels of a padded image. `at` and `to` are lists of pixels, one for each result, in blocks of eight (the last block
repeats the last pixel), so that strides, padding and odd sizes are the same code. Lists are addresses of int64.
"""

import numpy as np

from nas.supernet.native.compilation import compiled
from nas.supernet.native.vectors import BYTES, fma, get, lanes, load, splat, store

INT = np.int64(0)
BLOCK = 8
"""Results that stay in registers at once."""

TAPS = 9
"""Taps of a depthwise weight gradient that are summed in registers at once."""


def unit(size: int) -> int:
    """Returns of what number the padded channels are a multiple: whole vectors, and whole blocks; size in bytes."""
    return max(BYTES // size, BLOCK)


@compiled
def depthwise(x, at, taps, count, w, y, to, blocks, channels, accumulate, zero):
    """y[to] (+)= sum_t w[t] x[at + taps[t]], with w (taps, channels)."""
    nothing = splat(zero)
    for b in range(0, BLOCK * blocks, BLOCK):
        x0, y0 = get(at, b, INT) * channels, get(to, b, INT) * channels
        x1, y1 = get(at, b + 1, INT) * channels, get(to, b + 1, INT) * channels
        x2, y2 = get(at, b + 2, INT) * channels, get(to, b + 2, INT) * channels
        x3, y3 = get(at, b + 3, INT) * channels, get(to, b + 3, INT) * channels
        x4, y4 = get(at, b + 4, INT) * channels, get(to, b + 4, INT) * channels
        x5, y5 = get(at, b + 5, INT) * channels, get(to, b + 5, INT) * channels
        x6, y6 = get(at, b + 6, INT) * channels, get(to, b + 6, INT) * channels
        x7, y7 = get(at, b + 7, INT) * channels, get(to, b + 7, INT) * channels
        for c in range(0, channels, lanes(zero)):
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = nothing
            if accumulate:
                a0, a1, a2, a3 = (
                    load(y, y0 + c, zero),
                    load(y, y1 + c, zero),
                    load(y, y2 + c, zero),
                    load(y, y3 + c, zero),
                )
                a4, a5, a6, a7 = (
                    load(y, y4 + c, zero),
                    load(y, y5 + c, zero),
                    load(y, y6 + c, zero),
                    load(y, y7 + c, zero),
                )
            for t in range(count):
                v = load(w, t * channels + c, zero)
                o = get(taps, t, INT) * channels + c
                a0 = fma(v, load(x, x0 + o, zero), a0)
                a1 = fma(v, load(x, x1 + o, zero), a1)
                a2 = fma(v, load(x, x2 + o, zero), a2)
                a3 = fma(v, load(x, x3 + o, zero), a3)
                a4 = fma(v, load(x, x4 + o, zero), a4)
                a5 = fma(v, load(x, x5 + o, zero), a5)
                a6 = fma(v, load(x, x6 + o, zero), a6)
                a7 = fma(v, load(x, x7 + o, zero), a7)
            store(y, y0 + c, a0)
            store(y, y1 + c, a1)
            store(y, y2 + c, a2)
            store(y, y3 + c, a3)
            store(y, y4 + c, a4)
            store(y, y5 + c, a5)
            store(y, y6 + c, a6)
            store(y, y7 + c, a7)


@compiled
def dense(x, at, taps, count, w, inner, y, to, blocks, outer, accumulate, zero):
    """y[to] (+)= sum_t x[at + taps[t]] w[t], with w (taps, inner, outer)."""
    nothing = splat(zero)
    for b in range(0, BLOCK * blocks, BLOCK):
        x0, y0 = get(at, b, INT) * inner, get(to, b, INT) * outer
        x1, y1 = get(at, b + 1, INT) * inner, get(to, b + 1, INT) * outer
        x2, y2 = get(at, b + 2, INT) * inner, get(to, b + 2, INT) * outer
        x3, y3 = get(at, b + 3, INT) * inner, get(to, b + 3, INT) * outer
        x4, y4 = get(at, b + 4, INT) * inner, get(to, b + 4, INT) * outer
        x5, y5 = get(at, b + 5, INT) * inner, get(to, b + 5, INT) * outer
        x6, y6 = get(at, b + 6, INT) * inner, get(to, b + 6, INT) * outer
        x7, y7 = get(at, b + 7, INT) * inner, get(to, b + 7, INT) * outer
        for c in range(0, outer, lanes(zero)):
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = nothing
            if accumulate:
                a0, a1, a2, a3 = (
                    load(y, y0 + c, zero),
                    load(y, y1 + c, zero),
                    load(y, y2 + c, zero),
                    load(y, y3 + c, zero),
                )
                a4, a5, a6, a7 = (
                    load(y, y4 + c, zero),
                    load(y, y5 + c, zero),
                    load(y, y6 + c, zero),
                    load(y, y7 + c, zero),
                )
            for t in range(count):
                o = get(taps, t, INT) * inner
                k = t * inner * outer + c
                for i in range(o, o + inner):
                    v = load(w, k, zero)
                    k += outer
                    a0 = fma(v, splat(get(x, x0 + i, zero)), a0)
                    a1 = fma(v, splat(get(x, x1 + i, zero)), a1)
                    a2 = fma(v, splat(get(x, x2 + i, zero)), a2)
                    a3 = fma(v, splat(get(x, x3 + i, zero)), a3)
                    a4 = fma(v, splat(get(x, x4 + i, zero)), a4)
                    a5 = fma(v, splat(get(x, x5 + i, zero)), a5)
                    a6 = fma(v, splat(get(x, x6 + i, zero)), a6)
                    a7 = fma(v, splat(get(x, x7 + i, zero)), a7)
            store(y, y0 + c, a0)
            store(y, y1 + c, a1)
            store(y, y2 + c, a2)
            store(y, y3 + c, a3)
            store(y, y4 + c, a4)
            store(y, y5 + c, a5)
            store(y, y6 + c, a6)
            store(y, y7 + c, a7)


@compiled
def depthwise_weight(x, at, taps, count, g, to, pixels, channels, w, zero):
    """w[t] += sum over pixels of x[at + taps[t]] g[to]."""
    nothing = splat(zero)
    for c in range(0, channels, lanes(zero)):
        for first in range(0, count, TAPS):
            last = count - 1  # beyond it, the last tap is summed again and not stored
            o0, o1 = get(taps, first, INT) * channels + c, get(taps, min(first + 1, last), INT) * channels + c
            o2 = get(taps, min(first + 2, last), INT) * channels + c
            o3 = get(taps, min(first + 3, last), INT) * channels + c
            o4 = get(taps, min(first + 4, last), INT) * channels + c
            o5 = get(taps, min(first + 5, last), INT) * channels + c
            o6 = get(taps, min(first + 6, last), INT) * channels + c
            o7 = get(taps, min(first + 7, last), INT) * channels + c
            o8 = get(taps, min(first + 8, last), INT) * channels + c
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = nothing
            for p in range(pixels):
                d = load(g, get(to, p, INT) * channels + c, zero)
                o = get(at, p, INT) * channels
                a0 = fma(d, load(x, o + o0, zero), a0)
                a1 = fma(d, load(x, o + o1, zero), a1)
                a2 = fma(d, load(x, o + o2, zero), a2)
                a3 = fma(d, load(x, o + o3, zero), a3)
                a4 = fma(d, load(x, o + o4, zero), a4)
                a5 = fma(d, load(x, o + o5, zero), a5)
                a6 = fma(d, load(x, o + o6, zero), a6)
                a7 = fma(d, load(x, o + o7, zero), a7)
                a8 = fma(d, load(x, o + o8, zero), a8)
            sums = (a0, a1, a2, a3, a4, a5, a6, a7, a8)
            for t in range(first, min(first + TAPS, count)):
                i = t * channels + c
                store(w, i, load(w, i, zero) + sums[t - first])


@compiled
def dense_weight(x, at, taps, count, inner, g, to, pixels, outer, w, zero):
    """w[t] += sum over pixels of x[at + taps[t]] (outer product) g[to]; `inner` is a multiple of 8."""
    nothing, size = splat(zero), BYTES // lanes(zero)
    for t in range(count):
        for c in range(0, outer, lanes(zero)):
            for i in range(0, inner, 8):
                first = x + (get(taps, t, INT) * inner + i) * size
                a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = nothing
                for p in range(pixels):
                    d = load(g, get(to, p, INT) * outer + c, zero)
                    here = first + get(at, p, INT) * inner * size
                    a0 = fma(d, splat(get(here, 0, zero)), a0)
                    a1 = fma(d, splat(get(here, 1, zero)), a1)
                    a2 = fma(d, splat(get(here, 2, zero)), a2)
                    a3 = fma(d, splat(get(here, 3, zero)), a3)
                    a4 = fma(d, splat(get(here, 4, zero)), a4)
                    a5 = fma(d, splat(get(here, 5, zero)), a5)
                    a6 = fma(d, splat(get(here, 6, zero)), a6)
                    a7 = fma(d, splat(get(here, 7, zero)), a7)
                sums = (a0, a1, a2, a3, a4, a5, a6, a7)
                for n in range(8):
                    k = (t * inner + i + n) * outer + c
                    store(w, k, load(w, k, zero) + sums[n])
