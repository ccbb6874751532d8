"""Batch norms as coefficients of what is added up, and the packing of parameters into whole vectors; single threaded.

With the mean m, the inverse deviation r and a weight w, an edge adds w (gamma r (z - m) + beta) = a z + b. In the
backward, with S = sum g (z - m) and G = sum g over batch and pixels, the gradient of z is A g + B z + D with
A = a, B = -a r^2 S / N and D = -a G / N - B m (Ioffe and Szegedy, 2015, arXiv:1502.03167).
"""

from nas.supernet.native.compilation import compiled
from nas.supernet.native.kernels import INT
from nas.supernet.native.vectors import cast, get, put

N_PART, N_PART_IMAGE, N_PIXELS, N_CHANNELS, N_PADDED, N_GAMMA, N_BETA, N_MEAN, N_VARIANCE, N_TRACKED = range(10)
N_OUT_MEAN, N_OUT_INVERSE, N_OUT = range(10, 13)
"""part: sums per image, 0 without a norm or with running statistics. running_*: 0 where they are not read or kept.
tracked: address of num_batches_tracked, 0 if the statistics stay untouched. mean, inverse: where they are kept, 0
without a norm. out: where a and b go."""

(
    F_PART, F_PART_IMAGE, F_PADDED, F_CHANNELS, F_MEAN, F_INVERSE, F_GAMMA, F_BETA, F_PIXELS, F_FACTOR, F_BATCH, F_OUT,
    F_GAMMA_GRADIENT, F_BETA_GRADIENT, F_VALUE, F_CONSTANT, F_MEANS,
) = range(17)  # fmt: skip
"""part: sums from `sum_up`. means: each image's, if the sums are around those (0: around the batch's). batch: whether
batch statistics were used. out: where A, B and D go, 0 if not wanted. value: index of the weight's gradient, -1 if not
wanted; constant: whether it is an offset's, the sum of g alone."""


@compiled
def normalise(rows, scalars, images, zero):
    """Turns sums into mean and inverse deviation, updates running statistics, and writes a and b.

    Args:
        rows: (R, 13) int64.
        scalars: (R, 3) float64: eps, momentum (negative: a cumulative average), weight.
        images: Images of the batch.
        zero: Of the numbers' type.
    """
    for r in range(len(rows)):
        row = rows[r]
        eps, momentum, weight = scalars[r, 0], scalars[r, 1], scalars[r, 2]
        padded, pixels = row[N_PADDED], row[N_PIXELS]
        if row[N_TRACKED]:
            count = get(row[N_TRACKED], 0, INT) + 1
            put(row[N_TRACKED], 0, count)
            if momentum < 0:
                momentum = 1.0 / count
        for c in range(padded):
            inside = c < row[N_CHANNELS]
            a, b = weight, 0.0
            if row[N_OUT_MEAN]:
                mean, variance = 0.0, 0.0
                if row[N_PART]:
                    for n in range(images):
                        mean += get(row[N_PART] + n * row[N_PART_IMAGE], c, zero)
                    mean /= images
                    for n in range(images):
                        part = row[N_PART] + n * row[N_PART_IMAGE]
                        apart = get(part, c, zero) - mean
                        variance += get(part, padded + c, zero) + pixels * apart * apart
                    if row[N_TRACKED] and inside:
                        kept = (1 - momentum) * get(row[N_MEAN], c, zero) + momentum * mean
                        put(row[N_MEAN], c, cast(kept, zero))
                        unbiased = variance / (images * pixels - 1)
                        kept = (1 - momentum) * get(row[N_VARIANCE], c, zero) + momentum * unbiased
                        put(row[N_VARIANCE], c, cast(kept, zero))
                    variance /= images * pixels
                elif inside:
                    mean, variance = float(get(row[N_MEAN], c, zero)), float(get(row[N_VARIANCE], c, zero))
                inverse = 1.0 / (variance + eps) ** 0.5
                put(row[N_OUT_MEAN], c, cast(mean, zero))
                put(row[N_OUT_INVERSE], c, cast(inverse, zero))
                a *= inverse
                if row[N_GAMMA]:
                    a *= get(row[N_GAMMA], c, zero) if inside else zero
                b = -a * mean
                if row[N_BETA] and inside:
                    b += weight * get(row[N_BETA], c, zero)
            put(row[N_OUT], c, cast(a, zero))
            put(row[N_OUT], padded + c, cast(b, zero))


@compiled
def finish(rows, weights, values, images, zero):
    """Turns sums into the gradients of weights, gamma and beta, and into the coefficients A, B and D.

    Args:
        rows: (R, 17) int64.
        weights: (R,) float64.
        values: Gradients of weights and offsets, added to, float64.
        images: Images of the batch.
        zero: Of the numbers' type.
    """
    for r in range(len(rows)):
        row = rows[r]
        weight, padded, value = weights[r], row[F_PADDED], 0.0
        count = images * row[F_PIXELS]
        for c in range(padded):
            s, g, mean = 0.0, 0.0, 0.0
            if row[F_MEAN]:
                mean += get(row[F_MEAN], c, zero)
            for n in range(images if row[F_PART] else 0):
                part = row[F_PART] + n * row[F_PART_IMAGE]
                factor = 1.0
                if row[F_FACTOR]:
                    factor = float(get(row[F_FACTOR], n, zero))
                s += factor * get(part, c, zero)
                g += factor * get(part, padded + c, zero)
                if row[F_MEANS]:
                    s += (get(row[F_MEANS] + n * row[F_PART_IMAGE], c, zero) - mean) * get(part, padded + c, zero)
            inside = c < row[F_CHANNELS]
            a, b, d = weight, 0.0, 0.0
            if row[F_CONSTANT]:
                value += g
            elif row[F_MEAN]:
                inverse = float(get(row[F_INVERSE], c, zero))
                gamma, beta = 1.0, 0.0
                if row[F_GAMMA]:
                    gamma = float(get(row[F_GAMMA], c, zero)) if inside else 0.0
                if row[F_BETA] and inside:
                    beta = float(get(row[F_BETA], c, zero))
                value += gamma * inverse * s + beta * g
                a *= gamma * inverse
                if row[F_BATCH]:
                    b = -a * inverse * inverse * s / count
                    d = -a * g / count - b * mean
                if row[F_GAMMA_GRADIENT] and inside:
                    put(row[F_GAMMA_GRADIENT], c, cast(weight * inverse * s, zero))
                if row[F_BETA_GRADIENT] and inside:
                    put(row[F_BETA_GRADIENT], c, cast(weight * g, zero))
            else:
                value += s
            if row[F_OUT]:
                put(row[F_OUT], c, cast(a, zero))
                put(row[F_OUT], padded + c, cast(b, zero))
                put(row[F_OUT], 2 * padded + c, cast(d, zero))
        if row[F_VALUE] >= 0:
            values[row[F_VALUE]] += value


@compiled
def pack(rows, zero):
    """Lays out weights for the kernels: (taps, inputs, outputs), its transpose, or (taps, channels).

    A row: address and four strides of a weight, its shape (outputs, inputs, height, width), padded inputs and outputs,
    first output, first tap, address, address of the transpose (0: not wanted), whether it is depthwise.
    """
    for r in range(len(rows)):
        row = rows[r]
        for o in range(row[5]):
            for i in range(row[6]):
                for h in range(row[7]):
                    for w in range(row[8]):
                        v = get(row[0], o * row[1] + i * row[2] + h * row[3] + w * row[4], zero)
                        t = row[12] + h * row[8] + w
                        if row[15]:
                            put(row[13], t * row[10] + o, v)
                        else:
                            put(row[13], (t * row[9] + i) * row[10] + row[11] + o, v)
                            if row[14]:
                                put(row[14], (t * row[10] + row[11] + o) * row[9] + i, v)


@compiled
def unpack(rows, threads, zero):
    """Sums the threads' gradients of packed weights into contiguous gradients; rows as of `pack`.

    Row entries 0, 13 and 14 are the gradient, the first thread's sums, and the bytes from one thread's to the next.
    """
    for r in range(len(rows)):
        row = rows[r]
        for o in range(row[5]):
            for i in range(row[6]):
                for t in range(row[7] * row[8]):
                    k = ((row[12] + t) * row[9] + i) * row[10] + row[11] + o
                    if row[15]:
                        k = t * row[10] + o
                    v = zero
                    for thread in range(threads):
                        v += get(row[13] + thread * row[14], k, zero)
                    put(row[0], (o * row[6] + i) * row[7] * row[8] + t, v)
