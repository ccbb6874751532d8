"""Passes over the stages of a cell, image by image, so that an image stays in the cache: forward and backward.

A row is int64: sizes in numbers or pixels, and addresses. `start` and `stop` are the images of one thread, `work` the
bytes from the first thread's memory to its own.
"""

from operator import itemgetter

import numpy as np

from nas.supernet.native.compilation import compiled
from nas.supernet.native.images import clear, fill, max_pool, max_pool_gradient, moments, scale, sums
from nas.supernet.native.kernels import INT, dense, dense_weight, depthwise, depthwise_weight
from nas.supernet.native.vectors import cast, fma, get, lanes, load, splat, store, where_larger

STAGE = (
    # The input: address, bytes of an image, shape; margin of the padded copy; activation and a, b before it; number of
    # the copy, made anew where it is not that of the row before; whether no row after this one reads it.
    "source", "source_image", "height", "width", "channels", "margin", "act", "coefficients", "copy", "last", "maximum",
    # Weights and taps, in pixels of the padded copy; addresses of 0 stand for what is absent.
    "depthwise", "taps", "count", "dense", "dense_t", "outer",
    # Lists of pixels: of the padded copy for results and for inputs, plain ones, and their numbers.
    "at", "inside", "plain_out", "pixels", "blocks", "plain_in", "inputs", "input_blocks", "scale",
    # The result: address, bytes of an image; sums for its batch norm. Of a probe, whose result is not kept: gradient of
    # the node (0: it is none), bytes of an image, and where its sums with the result go, as many bytes as the others.
    "z", "z_image", "part", "part_image", "g", "g_image", "sums",
    # The padded gradient of the convolution that reads the input: pixels of results and of inputs, taps, size.
    "to", "back", "back_taps", "back_size",
    # Gradients: of the result (rows of the second table), of weights (0: not wanted), of the input.
    "term", "term_end", "depthwise_gradient", "dense_gradient", "gradient_thread", "want_input",
    "out", "out_image", "keep", "out_part", "out_part_image", "mean",
    # Memory of the first thread.
    "work_x", "work_y", "work_z", "work_dy", "work_dx",
)  # fmt: skip
TERM = ("g", "g_image", "coefficients", "factor")
"""A gradient of the result: address, bytes of an image, coefficients A, B, D, and a factor for each image (or 0)."""

(
    SOURCE, SOURCE_IMAGE, HEIGHT, WIDTH, CHANNELS, MARGIN, ACT, COEFFICIENTS, COPY, LAST, MAXIMUM,
    DEPTHWISE, TAPS, COUNT, DENSE, DENSE_T, OUTER,
    AT, INSIDE, PLAIN_OUT, PIXELS, BLOCKS, PLAIN_IN, INPUTS, INPUT_BLOCKS, SCALE,
    Z, Z_IMAGE, PART, PART_IMAGE, G, G_IMAGE, SUMS,
    TO, BACK, BACK_TAPS, BACK_SIZE,
    FIRST_TERM, TERM_END, DEPTHWISE_GRADIENT, DENSE_GRADIENT, GRADIENT_THREAD, WANT_INPUT,
    OUT, OUT_IMAGE, KEEP, OUT_PART, OUT_PART_IMAGE, MEAN,
    WORK_X, WORK_Y, WORK_Z, WORK_DY, WORK_DX,
) = range(len(STAGE))  # fmt: skip
in_order = itemgetter(*STAGE)
"""Returns a row of the fields of a stage."""

T_G, T_G_IMAGE, T_COEFFICIENTS, T_FACTOR = range(len(TERM))


@compiled
def fill_row(row, n, work, zero):
    """Makes the padded copy of a row's input."""
    outside = -np.inf if row[MAXIMUM] else 0.0
    source = row[SOURCE] + n * row[SOURCE_IMAGE]
    fill(
        source, row[HEIGHT], row[WIDTH], row[CHANNELS], row[MARGIN], row[ACT], row[COEFFICIENTS], outside,
        row[WORK_X] + work, zero,
    )  # fmt: skip


@compiled
def forward(rows, start, stop, thread, work, zero):
    """Runs stages: activation, depthwise, dense, and the sums that batch norms and probes need; or max pools."""
    for n in range(start, stop):
        copy = -1
        for r in range(len(rows)):
            row = rows[r]
            if row[COPY] != copy:
                fill_row(row, n, work, zero)
                copy = row[COPY]
            z, channels, outer = row[Z] + n * row[Z_IMAGE], row[CHANNELS], row[OUTER]
            at, plain, pixels, blocks = row[AT], row[PLAIN_OUT], row[PIXELS], row[BLOCKS]
            taps, count, x = row[TAPS], row[COUNT], row[WORK_X] + work
            if row[G]:
                z = row[WORK_Z] + work
            if row[MAXIMUM]:
                max_pool(x, at, taps, count, z, pixels, channels, zero)
            elif row[DENSE] == 0:
                depthwise(x, at, taps, count, row[DEPTHWISE], z, plain, blocks, channels, False, zero)
            elif row[DEPTHWISE] == 0:
                dense(x, at, taps, count, row[DENSE], channels, z, plain, blocks, outer, False, zero)
            else:
                y = work + row[WORK_Y]
                depthwise(x, at, taps, count, row[DEPTHWISE], y, plain, blocks, channels, False, zero)
                dense(y, plain, plain, 1, row[DENSE], channels, z, plain, blocks, outer, False, zero)
            if row[SCALE]:
                scale(z, row[SCALE], pixels, outer, zero)
            if row[PART]:
                moments(z, pixels, outer, row[PART] + n * row[PART_IMAGE], zero)
            if row[G]:  # around the image's mean, since the batch's is not known yet
                part, to = row[PART] + n * row[PART_IMAGE], row[SUMS] + n * row[PART_IMAGE]
                sums(row[G] + n * row[G_IMAGE], z, part, pixels, outer, to, zero)


@compiled
def output_gradient(row, terms, n, d, to, zero):
    """Writes the gradient of a stage's result, the sum over its uses of A g + B z + D, at the pixels `to` of d."""
    outer, pixels, z = row[OUTER], row[PIXELS], row[Z] + n * row[Z_IMAGE]
    for c in range(0, outer, lanes(zero)):
        for t in range(row[FIRST_TERM], row[TERM_END]):
            coefficients, g = terms[t, T_COEFFICIENTS], terms[t, T_G] + n * terms[t, T_G_IMAGE]
            a = load(coefficients, c, zero)
            b, e = load(coefficients, outer + c, zero), load(coefficients, 2 * outer + c, zero)
            if terms[t, T_FACTOR]:
                a = a * splat(get(terms[t, T_FACTOR], n, zero))
            if t == row[FIRST_TERM]:
                for p in range(pixels):
                    i = p * outer + c
                    store(d, get(to, p, INT) * outer + c, fma(a, load(g, i, zero), fma(b, load(z, i, zero), e)))
            else:
                for p in range(pixels):
                    i, o = p * outer + c, get(to, p, INT) * outer + c
                    store(d, o, load(d, o, zero) + fma(a, load(g, i, zero), fma(b, load(z, i, zero), e)))
        if row[SCALE]:
            for p in range(pixels):
                o = get(to, p, INT) * outer + c
                store(d, o, load(d, o, zero) * splat(get(row[SCALE], p, zero)))


@compiled
def backward(rows, terms, start, stop, thread, work, zero):
    """Gradients of stages: of their weights, and of their inputs, summed over the stages that read the same one."""
    for n in range(start, stop):
        copy, used = -1, False
        for r in range(len(rows)):
            row = rows[r]
            if row[COPY] != copy:
                fill_row(row, n, work, zero)
                copy, used = row[COPY], False
            channels, outer, plain, pixels = row[CHANNELS], row[OUTER], row[PLAIN_OUT], row[PIXELS]
            at, taps, count, blocks = row[AT], row[TAPS], row[COUNT], row[BLOCKS]
            x, d, dx, to = work + row[WORK_X], work + row[WORK_DY], work + row[WORK_DX], row[TO]
            offset = thread * row[GRADIENT_THREAD]
            if row[MAXIMUM]:
                dz = work + row[WORK_Z]
                output_gradient(row, terms, n, dz, plain, zero)
                clear(dx, row[BACK_SIZE] * channels, zero)
                max_pool_gradient(x, at, taps, count, dz, dx, pixels, channels, zero)
                used = True
            elif row[DEPTHWISE]:
                clear(d, row[BACK_SIZE] * channels, zero)
                if row[DENSE]:
                    dz = work + row[WORK_Z]
                    output_gradient(row, terms, n, dz, plain, zero)
                    if row[DENSE_GRADIENT]:
                        y = work + row[WORK_Y]
                        depthwise(x, at, taps, count, row[DEPTHWISE], y, plain, blocks, channels, False, zero)
                        dense_weight(
                            y, plain, plain, 1, channels, dz, plain, pixels, outer, row[DENSE_GRADIENT] + offset, zero
                        )
                    dense(dz, plain, plain, 1, row[DENSE_T], outer, d, to, blocks, channels, False, zero)
                else:
                    output_gradient(row, terms, n, d, to, zero)
                if row[DEPTHWISE_GRADIENT]:
                    depthwise_weight(
                        x, at, taps, count, d, to, pixels, channels, row[DEPTHWISE_GRADIENT] + offset, zero
                    )
                if row[WANT_INPUT]:
                    depthwise(
                        d, row[BACK], row[BACK_TAPS], count, row[DEPTHWISE], dx, row[PLAIN_IN], row[INPUT_BLOCKS],
                        channels, used, zero,
                    )  # fmt: skip
                    used = True
            else:
                clear(d, row[BACK_SIZE] * outer, zero)
                output_gradient(row, terms, n, d, to, zero)
                if row[DENSE_GRADIENT]:
                    dense_weight(x, at, taps, count, channels, d, to, pixels, outer, row[DENSE_GRADIENT] + offset, zero)
                if row[WANT_INPUT]:
                    dense(
                        d, row[BACK], row[BACK_TAPS], count, row[DENSE_T], outer, dx, row[PLAIN_IN],
                        row[INPUT_BLOCKS], channels, used, zero,
                    )  # fmt: skip
                    used = True
            if row[LAST] and used:
                input_gradient(row, n, x, dx, zero)


@compiled
def input_gradient(row, n, x, dx, zero):
    """Takes dx through the activation; adds it to the state's gradient, or keeps it for the stage before."""
    channels, inside = row[CHANNELS], row[INSIDE]
    out, nothing, six = row[OUT] + n * row[OUT_IMAGE], splat(zero), splat(cast(6.0, zero))
    place = inside if row[MAXIMUM] else row[PLAIN_IN]
    for p in range(row[INPUTS]):
        i, o, m = p * channels, get(place, p, INT) * channels, get(inside, p, INT) * channels
        for c in range(0, channels, lanes(zero)):
            v = load(dx, o + c, zero)
            if row[ACT] > 0:
                v = where_larger(load(x, m + c, zero), nothing, v, nothing)
            if row[ACT] > 1:
                v = where_larger(six, load(x, m + c, zero), v, nothing)
            if not row[KEEP]:
                v = v + load(out, i + c, zero)
            store(out, i + c, v)
    if row[OUT_PART]:
        z = row[SOURCE] + n * row[SOURCE_IMAGE]
        sums(out, z, row[MEAN], row[INPUTS], channels, row[OUT_PART] + n * row[OUT_PART_IMAGE], zero)
