"""Dual norms, steepest directions, projections, thresholds: their defining properties, and SciPy's optimisers."""

import math

import numpy as np
import pytest
import torch
from helpers.strategies import EXPONENTS, dot, draw, exact, exponents, matrices
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from advdim import norms

INF = math.inf


# Dual exponents


@pytest.mark.parametrize(("p", "q"), [(1, INF), (INF, 1), (2, 2), (3, 1.5), (4, 4 / 3), (1.25, 5)])
def test_dual_of_known_exponents(p, q):
    assert norms.dual(p) == pytest.approx(q, rel=1e-15)


@exact
@given(st.one_of(st.sampled_from(EXPONENTS), st.floats(1, 1e6)))
def test_dual_is_an_involution_and_reciprocals_add_to_one(p):
    q = norms.dual(p)
    assert 1 / p + 1 / q == pytest.approx(1, abs=1e-15)
    assert 1 / norms.dual(q) == pytest.approx(1 / p, rel=1e-9, abs=1e-15)


# Norms


@exact
@given(matrices, exponents)
def test_norm_is_the_power_mean_formula(x, q):
    size = np.abs(x)
    largest = size.max(axis=1)
    unit = size / np.where(largest > 0, largest, 1)[:, None]
    expected = largest if math.isinf(q) else largest * (unit**q).sum(axis=1) ** (1 / q)
    np.testing.assert_allclose(norms.norm(torch.from_numpy(x), q), expected, rtol=1e-12)


def test_norm_is_per_example_over_all_other_axes():
    x = draw(3, 2, 4, 5)
    for q in EXPONENTS:
        alone = torch.stack([norms.norm(image[None], q)[0] for image in x])
        torch.testing.assert_close(norms.norm(x, q), alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize("p", [1, 2, 3, INF])
def test_dual_norm_is_scipys_maximum_over_the_ball(p):
    """The supremum of <g, delta> over the l_p ball: a linear programme for p = 1 and inf, SLSQP between."""
    g = draw(1, 5).numpy()[0]
    n = len(g)
    if p == INF:
        best = -optimize.linprog(-g, bounds=[(-1, 1)] * n).fun
    elif p == 1:  # delta = a - b with a, b >= 0 and sum(a + b) <= 1
        best = -optimize.linprog(np.r_[-g, g], A_ub=np.ones((1, 2 * n)), b_ub=[1], bounds=[(0, None)] * (2 * n)).fun
    else:
        ball = {"type": "ineq", "fun": lambda z: 1 - (np.abs(z) ** p).sum()}
        best = -optimize.minimize(lambda z: -g @ z, np.zeros(n) + 0.01, constraints=ball, tol=1e-12).fun
    assert float(norms.norm(torch.tensor(g)[None], norms.dual(p))) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "scales", "rtol"),
    [(torch.float64, (1e-300, 1e-160, 1e160, 1e300), 1e-13), (torch.float32, (1e-37, 1e-25, 1e20, 1e37), 1e-5)],
)
@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_everything_scales_from_the_smallest_to_the_largest_numbers(dtype, scales, rtol, p):
    """Confident networks have gradients of 1e-25, whose squares are 0 in float32: no norm may lose them."""
    g = draw(4, 6).to(dtype)
    for scale in scales:
        tiny = g * scale
        q = norms.dual(p)
        torch.testing.assert_close(norms.norm(tiny, q) / scale, norms.norm(g, q), rtol=rtol, atol=0)
        torch.testing.assert_close(norms.steepest(tiny, p), norms.steepest(g, p), rtol=rtol, atol=rtol)
        if p in (1, 2, INF):
            torch.testing.assert_close(
                norms.project(tiny, p, 0.5 * scale) / scale, norms.project(g, p, 0.5), rtol=10 * rtol, atol=10 * rtol
            )


@settings(derandomize=True, deadline=None, max_examples=25)
@given(exponents, st.floats(0.5, 6), st.integers(0, 9))
def test_float32_loses_nothing_on_200_000_pixels(p, tail, seed):
    """Against float64, for flat and for heavy-tailed gradients; of plain sums the rounding adds up to 1e-4."""
    exact = draw(1, 200_000, seed=seed).float().double()
    exact = (exact.sign() * exact.abs() ** tail).float().double()
    g, q = exact.float(), norms.dual(p)
    for exponent in (p, q):
        torch.testing.assert_close(norms.norm(g, exponent).double(), norms.norm(exact, exponent), rtol=1e-6, atol=0)
    direction = norms.steepest(g, p).double()
    torch.testing.assert_close(norms.norm(direction, p), torch.ones(1, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(dot(exact, direction), norms.norm(exact, q), rtol=1e-6, atol=0)


# Steepest directions: Hoelder's inequality with equality


def test_steepest_of_a_tie_at_p_1_is_one_pixel():
    g = torch.tensor([[1.0, -3.0, 3.0, 3.0], [0.0, 0.0, -2.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(norms.steepest(g, 1), expected)


@pytest.mark.parametrize("p", EXPONENTS)
def test_steepest_keeps_shape_dtype_and_examples_apart(p):
    g = draw(3, 2, 4, 4).float()
    g[1] = 0
    direction = norms.steepest(g, p)
    assert direction.shape == g.shape
    assert direction.dtype == torch.float32
    assert not direction[1].any()
    assert torch.isfinite(direction).all()
    # A zero example must not divide by zero in float32 either.
    torch.testing.assert_close(dot(g, direction).double(), norms.norm(g.double(), norms.dual(p)), rtol=2e-5, atol=1e-6)


# Projections


@exact
@given(matrices, st.sampled_from([1, 2, INF]), st.floats(0, 20), st.integers(0, 9))
def test_projection_is_in_the_ball_idempotent_and_at_an_obtuse_angle(x, p, eps, seed):
    """<x - Px, z - Px> <= 0 for every z of the ball says that Px is the nearest point of a convex set."""
    x = torch.from_numpy(x)
    px = norms.project(x, p, eps)
    assert (norms.norm(px, p) <= eps + 1e-14 * (eps + norms.norm(x, 1))).all()  # up to the rounding of x
    torch.testing.assert_close(norms.project(px, p, eps), px, rtol=1e-12, atol=1e-12)
    z = draw(20, *x.shape, seed=seed)
    z = z / norms.norm(z.flatten(0, 1), p).view(20, -1, 1) * eps
    corners = torch.eye(x.shape[1], dtype=x.dtype)[:, None] * eps
    for point in (*z, *corners, *-corners):
        assert (dot(x - px, point - px) <= 1e-9).all()
    inside = norms.norm(x, p) <= eps
    assert torch.equal(px[inside], x[inside])


@pytest.mark.parametrize("p", [1, 2, INF])
@pytest.mark.parametrize("eps", [0.1, 1.0, 2.5])
def test_projection_is_scipys_constrained_minimiser(p, eps):
    x = draw(3, 4, seed=5)
    for row, projected in zip(x.numpy(), norms.project(x, p, eps).numpy(), strict=True):
        n = len(row)
        # delta = a - b with a, b >= 0, so that the l_1 constraint is linear.
        length = {
            1: lambda z: eps - z.sum(),
            2: lambda z, n=n: eps**2 - ((z[:n] - z[n:]) ** 2).sum(),
            INF: lambda z, n=n: eps - np.abs(z[:n] - z[n:]),
        }[p]
        found = optimize.minimize(
            lambda z, row=row, n=n: ((z[:n] - z[n:] - row) ** 2).sum(),
            np.full(2 * n, 0.01 * eps),
            method="SLSQP",
            bounds=[(0, None)] * (2 * n),
            constraints={"type": "ineq", "fun": length},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(projected, found.x[:n] - found.x[n:], atol=2e-5)


def test_projection_onto_the_simplex_of_known_answers():
    x = torch.tensor([[3.0, 1.0, 0.0], [2.0, -2.0, 0.0], [0.2, 0.2, 0.2], [1.0, 1.0, -1.0]], dtype=torch.float64)
    expected = [[1.0, 0.0, 0.0], [0.5, -0.5, 0.0], [0.2, 0.2, 0.2], [1 / 3, 1 / 3, -1 / 3]]
    torch.testing.assert_close(
        norms.project(x, 1, 1.0), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("p", [1, 2, INF])
def test_projection_takes_one_radius_per_example(p):
    x = draw(4, 1, 3, 3)
    eps = torch.tensor([0.0, 0.5, 2.0, INF], dtype=torch.float64)
    px = norms.project(x, p, eps)
    for i in range(4):
        assert torch.equal(px[i : i + 1], norms.project(x[i : i + 1], p, float(eps[i])))
    assert not px[0].any()
    assert torch.equal(px[3], x[3])


@pytest.mark.parametrize("p", [1, 2, INF])
def test_projection_in_float32_of_many_pixels(p):
    x = draw(2, 3, 64, 64).float()
    eps = 0.1 * float(norms.norm(x, p).max())
    px = norms.project(x, p, eps)
    assert px.dtype == torch.float32
    torch.testing.assert_close(px.double(), norms.project(x.double(), p, eps), rtol=1e-4, atol=1e-6)
    assert (norms.norm(px.double(), p) <= eps * (1 + 1e-5)).all()


# Thresholds


@exact
@given(st.floats(1e-3, 10), exponents, st.integers(1, 40), st.integers(0, 9))
def test_threshold_is_the_norm_of_constant_size(eps_inf, p, d, seed):
    sign = draw(1, d, seed=seed).sign() * eps_inf
    assert norms.threshold(eps_inf, p, d) == pytest.approx(float(norms.norm(sign, p)), rel=1e-12)
    assert norms.threshold(eps_inf, INF, d) == eps_inf
