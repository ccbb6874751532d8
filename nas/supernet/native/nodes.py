"""Passes over the nodes of a cell: what is added up, the sums that gradients need, and copies between layouts.

`start` and `stop` are the images of one thread. Sums are kept per image and added in order, so they do not depend on
the number of threads.
"""

from nas.supernet.native.compilation import compiled
from nas.supernet.native.images import clear, sums
from nas.supernet.native.vectors import fma, get, lanes, load, put, splat, store

A_Z, A_Z_IMAGE, A_COEFFICIENTS, A_FACTOR = range(4)
"""A term: address and bytes of an image of z, coefficients a and b, and a factor for each image (or 0)."""
N_OUT, N_OUT_IMAGE, N_PIXELS, N_CHANNELS, N_WITH_Z = range(5)
"""A node: address, bytes of an image, shape, and how many of its terms have a z."""
S_G, S_G_IMAGE, S_Z, S_Z_IMAGE, S_MEAN, S_PIXELS, S_CHANNELS, S_PART, S_PART_IMAGE = range(9)
"""Sums: gradient, z and mean (or 0), shape, and where they go."""


@compiled
def add_up(node, rows, start, stop, thread, work, zero):
    """A node: the sum over rows of factor (a z + b); the first `with_z` rows have a z."""
    pixels, channels, with_z = node[0, N_PIXELS], node[0, N_CHANNELS], node[0, N_WITH_Z]
    for n in range(start, stop):
        out = node[0, N_OUT] + n * node[0, N_OUT_IMAGE]
        for c in range(0, channels, lanes(zero)):
            b = splat(zero)
            for r in range(len(rows)):
                v = load(rows[r, A_COEFFICIENTS], channels + c, zero)
                if rows[r, A_FACTOR]:
                    v = v * splat(get(rows[r, A_FACTOR], n, zero))
                b = b + v
            whole = pixels - pixels % 8
            for i in range(c, c + whole * channels, 8 * channels):
                a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = b
                for r in range(with_z):
                    v = load(rows[r, A_COEFFICIENTS], c, zero)
                    if rows[r, A_FACTOR]:
                        v = v * splat(get(rows[r, A_FACTOR], n, zero))
                    z = rows[r, A_Z] + n * rows[r, A_Z_IMAGE]
                    a0 = fma(v, load(z, i, zero), a0)
                    a1 = fma(v, load(z, i + channels, zero), a1)
                    a2 = fma(v, load(z, i + 2 * channels, zero), a2)
                    a3 = fma(v, load(z, i + 3 * channels, zero), a3)
                    a4 = fma(v, load(z, i + 4 * channels, zero), a4)
                    a5 = fma(v, load(z, i + 5 * channels, zero), a5)
                    a6 = fma(v, load(z, i + 6 * channels, zero), a6)
                    a7 = fma(v, load(z, i + 7 * channels, zero), a7)
                store(out, i, a0)
                store(out, i + channels, a1)
                store(out, i + 2 * channels, a2)
                store(out, i + 3 * channels, a3)
                store(out, i + 4 * channels, a4)
                store(out, i + 5 * channels, a5)
                store(out, i + 6 * channels, a6)
                store(out, i + 7 * channels, a7)
            for i in range(c + whole * channels, c + pixels * channels, channels):
                a0 = b
                for r in range(with_z):
                    v = load(rows[r, A_COEFFICIENTS], c, zero)
                    if rows[r, A_FACTOR]:
                        v = v * splat(get(rows[r, A_FACTOR], n, zero))
                    a0 = fma(v, load(rows[r, A_Z] + n * rows[r, A_Z_IMAGE], i, zero), a0)
                store(out, i, a0)


@compiled
def sum_up(rows, start, stop, thread, work, zero):
    """Per image and channel: the inner product of a node's gradient with every z, and the gradient's sum."""
    for n in range(start, stop):
        for r in range(len(rows)):
            row = rows[r]
            sums(
                row[S_G] + n * row[S_G_IMAGE], row[S_Z] + n * row[S_Z_IMAGE], row[S_MEAN], row[S_PIXELS],
                row[S_CHANNELS], row[S_PART] + n * row[S_PART_IMAGE], zero,
            )  # fmt: skip


@compiled
def add_through(rows, start, stop, thread, work, zero):
    """Adds factor * a * g to a state's gradient: what passes through the identity.

    A row: address and bytes of an image of g, coefficients, factors (or 0), the state's gradient, pixels, channels, and
    whether to add to what is there.
    """
    for n in range(start, stop):
        for r in range(len(rows)):
            row = rows[r]
            g, out, channels = row[0] + n * row[1], row[4] + n * row[1], row[6]
            for c in range(0, channels, lanes(zero)):
                v = load(row[2], c, zero)
                if row[3]:
                    v = v * splat(get(row[3], n, zero))
                for i in range(c, c + row[5] * channels, channels):
                    before = splat(zero)
                    if row[7]:
                        before = load(out, i, zero)
                    store(out, i, fma(v, load(g, i, zero), before))


@compiled
def zero_out(rows, zero):
    """Sets stretches of memory to zero; a row is an address and a number of numbers."""
    for r in range(len(rows)):
        clear(rows[r, 0], rows[r, 1], zero)


@compiled
def copy(rows, start, stop, thread, work, zero):
    """Copies images between layouts; the channels that pad a vector become zeros.

    A row: address, bytes of an image, and strides in numbers of channel, row and column, of the source, the same of the
    target, height, width, channels of the source and of the target, and whether to add.
    """
    for n in range(start, stop):
        for r in range(len(rows)):
            row = rows[r]
            source, target = row[0] + n * row[1], row[5] + n * row[6]
            for h in range(row[10]):
                for w in range(row[11]):
                    i, o, first = h * row[3] + w * row[4], h * row[8] + w * row[9], 0
                    if row[2] == 1 and row[7] == 1:
                        first = row[12] - row[12] % lanes(zero)
                    for c in range(0, first, lanes(zero)):
                        vector = load(source, i + c, zero)
                        if row[14]:
                            vector = vector + load(target, o + c, zero)
                        store(target, o + c, vector)
                    for c in range(first, row[12]):
                        v = get(source, i + c * row[2], zero)
                        if row[14]:
                            v = v + get(target, o + c * row[7], zero)
                        put(target, o + c * row[7], v)
                    for c in range(row[12], row[13]):
                        put(target, o + c * row[7], zero)
