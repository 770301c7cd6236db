"""Computes the polynomial coefficients in elementwise_math.rs: `python fit.py` (needs mpmath).

Each is the polynomial of least maximal weighted error, found by Remez exchange in 60 digits and then rounded to f32.
"""
import mpmath as mp

mp.mp.dps = 60


def remez(f, weight, basis, a, b, rounds=20):
    """Coefficients c of sum(c[i] * basis[i]) with the least maximum of |weight * (f - sum)| on [a, b]."""
    n = len(basis)
    points = [(a + b) / 2 - (b - a) / 2 * mp.cos(mp.pi * i / n) for i in range(n + 1)]
    for _ in range(rounds):
        rows = [[g(x) for g in basis] + [(-1) ** i / weight(x)] for i, x in enumerate(points)]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([f(x) for x in points]))
        c = solution[:n]
        error = lambda x: weight(x) * (f(x) - sum(k * g(x) for k, g in zip(c, basis)))
        grid = [a + (b - a) * (1 - mp.cos(mp.pi * i / 600)) / 2 for i in range(601)]
        values = [error(x) for x in grid]
        # The extreme of each run of one sign is the next reference.
        extremes, best = [], 0
        for i in range(1, 601):
            if mp.sign(values[i]) != mp.sign(values[best]):
                extremes.append(best)
                best = i
            elif abs(values[i]) > abs(values[best]):
                best = i
        extremes.append(best)
        if len(extremes) < n + 1:
            break
        while len(extremes) > n + 1:
            extremes.pop(0 if abs(values[extremes[0]]) < abs(values[extremes[-1]]) else -1)
        points = [grid[i] for i in extremes]
    return c, max(abs(v) for v in values)


def power(k):
    return lambda x: x**k


def show(name, c, error):
    print(f"{name}: error {mp.nstr(error, 3)}")
    for k in c:
        print(f"    {mp.nstr(k, 10)},")


one = mp.mpf(1)
half_ln2 = mp.log(2) / 2 * mp.mpf("1.01")
# exp(r) = 1 + r + r^2 q(r)
q = lambda r: (mp.exp(r) - 1 - r) / r**2 if abs(r) > mp.mpf(10) ** -15 else one / 2 + r / 6
show("exp", *remez(q, lambda r: r**2 / mp.exp(r) + mp.mpf("1e-4"), [power(k) for k in range(5)], -half_ln2, half_ln2))


# The scaled tail of the normal distribution, Phi(-t) exp(t^2/2) = u p(u) where u = 1 / (1 + t / C).
def tail(c, degree):
    at = lambda u: (1 / u - 1) * c
    scaled = lambda t: mp.erfc(t / mp.sqrt(2)) / 2 * mp.exp(t * t / 2)
    f = lambda u: scaled(at(u)) / u
    return remez(f, lambda u: 1 / f(u), [power(k) for k in range(degree + 1)], 1 / (1 + mp.mpf("14.5") / c), one)


show("tail, C = 3", *tail(mp.mpf(3), 9))

# erf(x) = x p(x^2) below 1, tanh(x) = x p(x^2) below 5/8.
erf = lambda s: mp.erf(mp.sqrt(s)) / mp.sqrt(s) if s > 0 else 2 / mp.sqrt(mp.pi)
show("erf", *remez(erf, lambda s: 1 / erf(s), [power(k) for k in range(7)], mp.mpf(0), one))
tanh = lambda s: mp.tanh(mp.sqrt(s)) / mp.sqrt(s) if s > 0 else one
show("tanh", *remez(tanh, lambda s: 1 / tanh(s), [power(k) for k in range(6)], mp.mpf(0), mp.mpf("0.390625")))
