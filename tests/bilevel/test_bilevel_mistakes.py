"""What a user can get wrong with bilevel problems is named at trace time: what was expected, what was got, what to do."""

import functools

import jax
import jax.numpy as jnp
import mistakes
import optax
import pytest

from robustjax import base, bilevel
from robustjax.base import Bilevel

PHI, THETA, KEY = jnp.ones(3), jnp.zeros(3), jax.random.key(0)


def inner(theta, phi, batch):
    del batch
    return jnp.sum((theta - phi) ** 2)


def outer(theta, phi, batch):
    del phi, batch
    return jnp.sum(theta**2)


GOOD = Bilevel(inner, outer)
SOLVE = base.bind(bilevel.descend, inner_loss=inner, num_steps=2, step_size=0.1)
CG = base.bind(bilevel.conjugate_gradient, num_steps=2)


def product(p):
    return p


def implicit(problem=GOOD, solve=SOLVE, phi=PHI, theta=THETA, linear_fn=CG, **options):
    return lambda: bilevel.implicit(problem, solve, phi, theta, linear_fn=linear_fn, **options)


def value_function(solve=SOLVE, weight=10.0):
    return lambda: bilevel.value_function(GOOD, solve, PHI, THETA, weight=weight)


def descend(**options):
    return lambda: bilevel.descend(PHI, THETA, **({"inner_loss": inner, "num_steps": 2, "step_size": 0.1} | options))


def minimize(method=bilevel.unrolled, solve=SOLVE, phi=PHI, **options):
    of_descent = {"optimizer": optax.sgd(0.1)} | {name: options.pop(name) for name in ("optimizer", "project_fn") if name in options}
    return lambda: bilevel.minimize(
        bilevel.hypergradient_descent(GOOD, method, solve, **of_descent), phi, THETA, **({"num_steps": 2} | options)
    )


def penalty(problem=GOOD, **options):
    options = {"rho": 1.0, "weight": 1.0, "optimizer_phi": optax.sgd(0.1), "optimizer_theta": optax.sgd(0.1)} | options
    return bilevel.penalty_method(problem, **options)


def penalty_init(phi=PHI, theta=THETA, **options):
    return lambda: penalty(**options).init(phi, theta)


def penalty_step(problem=GOOD, change=lambda state: state):
    return lambda: penalty(problem).step(change(penalty_init()()))


def approx_grad(solve=SOLVE, linear_fn=CG, change=lambda state: state, **options):
    algorithm = lambda: bilevel.approx_grad(GOOD, solve, linear_fn=linear_fn, optimizer=optax.sgd(0.1), **options)  # noqa: E731
    return lambda: algorithm().step(change(algorithm().init(PHI, THETA)))


def lissa(**options):
    options = {"key": KEY, "sampled_fn": lambda key, p: p, "num_steps": 2} | options
    return lambda: bilevel.lissa(product, THETA, THETA, **options)


MISTAKES = {
    "two losses that are no Bilevel": (implicit((inner, outer)), "expected base.Bilevel", "got a tuple"),
    "a loss of theta alone": (implicit(Bilevel(lambda theta: theta.sum(), outer)), "inner_loss(theta, phi, batch)", "too many"),
    "an outer loss that is None": (implicit(Bilevel(inner, None)), "expected a function outer_loss", "got None"),
    "a loss per example": (implicit(Bilevel(lambda t, p, b: (t - p) ** 2, outer)), "inner_loss to return one real number", "[3]", "mean"),
    "an outer loss [1]": (implicit(Bilevel(inner, lambda t, p, b: jnp.sum(t**2)[None])), "outer_loss to return one real number", "[1]"),
    "an outer loss with aux": (implicit(Bilevel(inner, lambda t, p, b: (jnp.sum(t), 1.0))), "got a tuple", "nothing beside it"),
    "an outer loss of integers": (implicit(Bilevel(inner, lambda t, p, b: jnp.sum(t > 0))), "one real number", "int32[]"),
    "integer phi": (implicit(phi=jnp.arange(3)), "phi is differentiated", "int32[3]", "float"),
    "labels in phi": (implicit(phi={"x": PHI, "y": jnp.arange(3)}), "phi['y'] is differentiated", "batch"),
    "phi a number": (implicit(phi=1.0), "phi is differentiated", "1.0 of type float"),
    "phi empty": (implicit(phi={}), "phi holds no array", "got {}"),
    "phi None": (implicit(phi=None), "phi holds no array", "got None"),
    "integer theta": (implicit(theta=jnp.zeros(3, int)), "theta0 is differentiated", "int32[3]"),
    "phi without effect": (implicit(Bilevel(lambda t, p, b: jnp.sum(t**2), outer)), "phi has no effect", "inside inner_loss"),
    "solve unbound": (implicit(solve=bilevel.descend), "solve(phi, theta0, batch)", "missing", "base.bind(descend"),
    "solve half bound": (implicit(solve=base.bind(bilevel.descend, inner_loss=inner)), "missing", "'num_steps'"),
    "solve a solution": (implicit(solve=THETA), "expected a function solve(phi, theta0, batch)"),
    "solve of theta alone": (implicit(solve=lambda theta: theta), "solve(phi, theta0, batch)", "too many"),
    "theta of another structure": (implicit(solve=lambda p, t, b: {"w": t}), "what solve returns", "like theta0"),
    "theta of another shape": (implicit(solve=lambda p, t, b: t[:2]), "what solve returns", "(3,)", "got (2,)"),
    "solve with its history": (implicit(solve=lambda p, t, b: (t, None)), "what solve returns", "like theta0"),
    "linear_fn unbound": (implicit(linear_fn=bilevel.conjugate_gradient), "linear_fn(product, v, start)", "'num_steps'"),
    "linear_fn by name": (implicit(linear_fn="cg"), "expected a function linear_fn", "'cg'"),
    "linear_fn of another shape": (implicit(linear_fn=lambda product, v, start: v[:1]), "what linear_fn returns", "got (1,)"),
    "linear_start of another shape": (implicit(linear_start=jnp.zeros(4)), "linear_start like theta", "got (4,)"),
    "negative damping": (implicit(damping=-0.1), "damping", "at least 0", "-0.1"),
    "damping NaN": (implicit(damping=float("nan")), "damping is not finite"),
    "no steps of CG": (implicit(linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=0)), "num_steps=0", "pass num_steps >= 1"),
    "steps as a float": (implicit(linear_fn=base.bind(bilevel.neumann, step_size=0.1, num_steps=10.0)), "num_steps", "10.0 of type float"),
    "a matrix for a product": (lambda: bilevel.conjugate_gradient(jnp.eye(3), PHI, PHI, num_steps=3), "expected a function product(p)"),
    "a negative step of Neumann": (implicit(linear_fn=base.bind(bilevel.neumann, step_size=-0.1, num_steps=3)), "step_size", "-0.1"),
    "an infinite rate of Adam": (
        implicit(linear_fn=base.bind(bilevel.solve_by_adam, learning_rate=jnp.inf, num_steps=3)),
        "learning_rate",
        "inf",
    ),
    "lissa without a key": (lissa(key=0), "expected a key", "jax.random.key"),
    "lissa with several keys": (lissa(key=jax.random.split(KEY, 3)), "one key", "(3,)"),
    "lissa without repeats": (lissa(num_repeats=0), "num_repeats=0"),
    "lissa with a product for samples": (lissa(sampled_fn=product), "sampled_fn(key, p)", "too many"),
    "eigenvalues of a matrix": (lambda: bilevel.extreme_eigenvalues(jnp.eye(3), THETA), "expected a function product(p)"),
    "eigenvalues in no step": (lambda: bilevel.largest_eigenvalue(product, THETA, num_steps=0), "num_steps=0"),
    "solution unbound": (
        lambda: bilevel.solution(inner, bilevel.descend, linear_fn=CG)(PHI, THETA), "solve(phi, theta0, batch)", "base.bind(descend",
    ),
    "solution of a vector loss": (
        lambda: bilevel.solution(lambda t, p, b: (t - p) ** 2, SOLVE, linear_fn=CG)(PHI, THETA), "one real number", "[3]",
    ),
    "solution with integer phi": (lambda: bilevel.solution(inner, SOLVE, linear_fn=CG)(jnp.arange(3), THETA), "phi is differentiated"),
    "descent without steps": (descend(num_steps=0), "num_steps=0"),
    "descent of negative steps": (descend(num_steps=-5), "num_steps=-5"),
    "descent with True steps": (descend(num_steps=True), "num_steps", "True of type bool"),
    "descent with two ways": (descend(optimizer=optax.sgd(0.1)), "either step_size", "both or neither"),
    "descent with step 0": (descend(step_size=0.0), "step_size", "positive"),
    "descent with step NaN": (descend(step_size=jnp.nan), "step_size", "nan"),
    "an optimizer that was not called": (descend(step_size=None, optimizer=optax.adam), "optax transformation", "optax.adam(0.01)"),
    "weight 0": (value_function(weight=0.0), "weight", "positive"),
    "weight infinite": (value_function(weight=jnp.inf), "weight", "inf"),
    "value function of any solver": (value_function(solve=lambda p, t, b: t), "solves a second problem", "base.bind(bilevel.descend"),
    "back-gradient of an optimizer": (
        lambda: bilevel.back_gradient(GOOD, base.bind(SOLVE, step_size=None, optimizer=optax.sgd(0.1)), PHI, THETA),
        "reverses plain gradient descent", "step_size=",
    ),
    "back-gradient without steps": (
        lambda: bilevel.back_gradient(GOOD, base.bind(bilevel.descend, inner_loss=inner, step_size=0.1), PHI, THETA), "'num_steps'",
    ),
    "back-gradient of no step": (lambda: bilevel.back_gradient(GOOD, base.bind(SOLVE, num_steps=0), PHI, THETA), "num_steps=0"),
    "a tail that is a number": (lambda: bilevel.truncated(GOOD, SOLVE, PHI, THETA, tail=5), "expected a function solve", "5"),
    "first order through theta alone": (lambda: bilevel.first_order(GOOD, SOLVE, PHI, THETA), "through theta alone", "use `implicit`"),
    "unrolled with an unbound solver": (lambda: bilevel.unrolled(GOOD, bilevel.descend, PHI, THETA), "base.bind(descend"),
    "forward with integer phi": (lambda: bilevel.forward(GOOD, SOLVE, jnp.arange(3), THETA), "phi is differentiated"),
    "minimize without steps": (minimize(num_steps=0), "num_steps=0"),
    "minimize with an unbound method": (minimize(bilevel.implicit), "method(problem, solve, phi, theta0, batch)", "'linear_fn'"),
    "minimize with a method's name": (minimize("implicit"), "expected a function method", "'implicit'"),
    "minimize with a gradient": (minimize(lambda problem, solve, phi, theta0, batch: phi), "to return a HyperGradient"),
    "minimize with a rate": (minimize(optimizer=0.1), "optax transformation", "0.1"),
    "minimize with integer phi": (minimize(phi=jnp.arange(3)), "phi is differentiated"),
    "a projection to another shape": (minimize(project_fn=lambda phi: phi[:1]), "what project_fn returns", "like phi"),
    "a batch_fn of the batch alone": (minimize(batch_fn=lambda batch: batch), "batch_fn(batch, step)", "too many"),
    "penalty with rho below 0": (penalty_init(rho=-1.0), "rho", "at least 0", "-1.0"),
    "penalty with a tolerance NaN": (penalty_init(tolerance=float("nan")), "tolerance is not finite"),
    "penalty with a rate for an optimizer": (penalty_init(optimizer_phi=0.1), "optimizer_phi", "optax transformation"),
    "penalty with inner steps -1": (penalty_init(num_inner_steps=-1), "num_inner_steps=-1"),
    "penalty with integer phi": (penalty_init(phi=jnp.arange(3)), "phi is differentiated"),
    "penalty that shrinks": (penalty_init(growth=0.9), "growth", "at least 1", "0.9"),
    "penalty whose tolerance grows": (penalty_init(tolerance_decay=1.1), "tolerance_decay", "(0, 1]", "1.1"),
    "penalty steps of something else": (penalty_step(change=lambda state: state.phi), "expected a PenaltyState", "penalty_method"),
    "penalty of blind losses": (penalty_step(Bilevel(outer, lambda t, p, b: jnp.float32(1.0))), "phi has no effect"),
    "penalty with a projection for its steps": (penalty_init(project_fn=0.5), "expected a function project_fn(phi)", "0.5"),
    "minimize with a method for an algorithm": (
        lambda: bilevel.minimize(bilevel.unrolled, PHI, THETA, num_steps=2), "expected an Algorithm", "hypergradient_descent",
    ),
    "a step of another state": (approx_grad(change=lambda state: state.phi), "expected a DescentState", "init makes the first"),
    "ApproxGrad with an unbound system": (approx_grad(linear_fn=bilevel.conjugate_gradient), "linear_fn(product, v, start)", "'num_steps'"),
    "ApproxGrad with a system by name": (approx_grad(linear_fn="cg"), "expected a function linear_fn", "'cg'"),
    "ApproxGrad with damping -1": (approx_grad(damping=-1.0), "damping", "at least 0", "-1.0"),
    "ApproxGrad with a projection for its steps": (approx_grad(project_fn=0.5), "expected a function project_fn(phi)", "0.5"),
    "the check of a vector loss": (
        lambda: bilevel.penalty_check(Bilevel(lambda t, p, b: t - p, outer), penalty_init()()), "one real number", "[3]",
    ),
    "theta given for phi": (lambda: bilevel.check(GOOD, (), PHI, None), "phi holds no array"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_named_with_what_was_expected_and_what_to_do(name):
    mistakes.check(*MISTAKES[name])


def test_mistakes_are_named_while_a_program_is_traced():
    unbound = functools.partial(bilevel.implicit, GOOD, bilevel.descend, linear_fn=CG)
    with pytest.raises(TypeError, match="bind the rest"):
        jax.eval_shape(unbound, PHI, THETA)
    with pytest.raises(TypeError, match="num_steps fixes shapes or loops"):
        jax.eval_shape(lambda num_steps: descend(num_steps=num_steps)(), 3)
