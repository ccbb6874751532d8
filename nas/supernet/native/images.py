"""Loops over one image that are no convolutions: padding, pools and sums, with channels innermost."""

from nas.supernet.native.compilation import compiled
from nas.supernet.native.kernels import INT
from nas.supernet.native.vectors import cast, fma, get, lanes, load, splat, store, where_larger, where_nan


@compiled
def clear(x, count, zero):
    """Sets `count` numbers, whole vectors, to zero."""
    nothing = splat(zero)
    for i in range(0, count, lanes(zero)):
        store(x, i, nothing)


@compiled
def fill(source, height, width, channels, margin, act, coefficients, outside, x, zero):
    """Copies an image into the middle of a padded one, after x -> act(a x + b); `outside` fills the margin."""
    border, nothing, six = splat(cast(outside, zero)), splat(zero), splat(cast(6.0, zero))
    step, row = lanes(zero), width * channels
    edge, padded = margin * channels, (width + 2 * margin) * channels
    for i in range(0, margin * padded, step):
        store(x, i, border)
        store(x, (margin + height) * padded + i, border)
    for h in range(height):
        start, o = (margin + h) * padded, h * row
        for i in range(start, start + edge, step):
            store(x, i, border)
            store(x, i + edge + row, border)
        if coefficients == 0 and act == 0:
            for i in range(0, row, step):
                store(x, start + edge + i, load(source, o + i, zero))
        elif coefficients == 0:
            for i in range(0, row, step):
                v = load(source, o + i, zero)
                v = where_larger(nothing, v, nothing, v)
                if act > 1:
                    v = where_larger(v, six, six, v)
                store(x, start + edge + i, v)
        else:
            for c in range(0, channels, step):
                a, b = load(coefficients, c, zero), load(coefficients, channels + c, zero)
                for i in range(c, row, channels):
                    v = fma(a, load(source, o + i, zero), b)
                    if act > 0:
                        v = where_larger(nothing, v, nothing, v)
                    if act > 1:
                        v = where_larger(v, six, six, v)
                    store(x, start + edge + i, v)


@compiled
def scale(x, factors, pixels, channels, zero):
    """Multiplies every pixel by its factor."""
    for p in range(pixels):
        v = splat(get(factors, p, zero))
        for i in range(p * channels, (p + 1) * channels, lanes(zero)):
            store(x, i, v * load(x, i, zero))


@compiled
def max_pool(x, at, taps, count, y, pixels, channels, zero):
    """y = largest x[at + taps]; no number wins over all."""
    for p in range(pixels):
        o = get(at, p, INT) * channels
        for c in range(0, channels, lanes(zero)):
            best = load(x, o + get(taps, 0, INT) * channels + c, zero)
            for t in range(1, count):
                v = load(x, o + get(taps, t, INT) * channels + c, zero)
                best = where_nan(v, v, where_larger(v, best, v, best))
            store(y, p * channels + c, best)


@compiled
def max_pool_gradient(x, at, taps, count, g, d, pixels, channels, zero):
    """d[at + the first tap that is largest] += g."""
    nothing = splat(zero)
    for p in range(pixels):
        o = get(at, p, INT) * channels
        for c in range(0, channels, lanes(zero)):
            best, first = load(x, o + get(taps, 0, INT) * channels + c, zero), nothing
            for t in range(1, count):
                v, number = load(x, o + get(taps, t, INT) * channels + c, zero), splat(cast(t, zero))
                first = where_nan(v, number, where_larger(v, best, number, first))
                best = where_nan(v, v, where_larger(v, best, v, best))
            gradient = load(g, p * channels + c, zero)
            for t in range(count):
                number, i = splat(cast(t, zero)), o + get(taps, t, INT) * channels + c
                part = where_larger(number, first, nothing, where_larger(first, number, nothing, gradient))
                store(d, i, load(d, i, zero) + part)


@compiled
def moments(z, pixels, channels, out, zero):
    """out = per channel mean, and sum of squared deviations from it; one pass, around the first pixel."""
    count = cast(1.0 / pixels, zero)
    for c in range(0, channels, lanes(zero)):
        pivot = load(z, c, zero)
        s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = splat(zero)
        whole = pixels - pixels % 4
        for i in range(c, c + whole * channels, 4 * channels):
            v = load(z, i, zero) - pivot
            s0, q0 = s0 + v, fma(v, v, q0)
            v = load(z, i + channels, zero) - pivot
            s1, q1 = s1 + v, fma(v, v, q1)
            v = load(z, i + 2 * channels, zero) - pivot
            s2, q2 = s2 + v, fma(v, v, q2)
            v = load(z, i + 3 * channels, zero) - pivot
            s3, q3 = s3 + v, fma(v, v, q3)
        for p in range(whole, pixels):
            v = load(z, p * channels + c, zero) - pivot
            s0, q0 = s0 + v, fma(v, v, q0)
        s, q = (s0 + s1) + (s2 + s3), (q0 + q1) + (q2 + q3)
        mean = s * splat(count)
        store(out, c, pivot + mean)
        store(out, channels + c, q - s * mean)


@compiled
def sums(g, z, mean, pixels, channels, out, zero):
    """out = per channel sum of g (z - mean), and of g; an address of 0 stands for a mean of zero."""
    for c in range(0, channels, lanes(zero)):
        middle = splat(zero)
        if mean != 0:
            middle = load(mean, c, zero)
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = splat(zero)
        whole = pixels - pixels % 4
        for i in range(c, c + whole * channels, 4 * channels):
            d = load(g, i, zero)
            s0, t0 = fma(d, load(z, i, zero) - middle, s0), t0 + d
            d = load(g, i + channels, zero)
            s1, t1 = fma(d, load(z, i + channels, zero) - middle, s1), t1 + d
            d = load(g, i + 2 * channels, zero)
            s2, t2 = fma(d, load(z, i + 2 * channels, zero) - middle, s2), t2 + d
            d = load(g, i + 3 * channels, zero)
            s3, t3 = fma(d, load(z, i + 3 * channels, zero) - middle, s3), t3 + d
        for p in range(whole, pixels):
            d = load(g, p * channels + c, zero)
            s0, t0 = fma(d, load(z, p * channels + c, zero) - middle, s0), t0 + d
        store(out, c, (s0 + s1) + (s2 + s3))
        store(out, channels + c, (t0 + t1) + (t2 + t3))
