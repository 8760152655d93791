"""Evaluating a function's jaxpr with a table of rules, one per primitive: the one walk behind `lowering` and the bounds.

A rule `(eqn, *values) -> list of outputs` stands in for its primitive; every other equation is bound as it was. jit is inlined;
scan, while, cond and checkpoint are rebuilt around the rewritten body; custom_jvp and custom_vjp equations stay whole, so that a
straight-through gradient or the convention of relu at 0 survives.
"""

from collections.abc import Callable, Mapping

import jax
from jax.extend import core

from robustjax import configured

Rule = Callable[..., list]


def rewrite(function: Callable, rules: Mapping[str, Rule]) -> Callable:
    """The same function of pytrees, with the primitives named in `rules` replaced; arguments that are no numbers stay static."""

    def rewritten(*args, **kwargs):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        traced = [configured.is_number(leaf) for leaf in leaves]

        def of_arrays(*arrays):
            values = iter(arrays)
            args, kwargs = jax.tree.unflatten(treedef, [next(values) if t else leaf for t, leaf in zip(traced, leaves, strict=True)])
            return function(*args, **kwargs)

        arrays = [leaf for t, leaf in zip(traced, leaves, strict=True) if t]
        closed, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        return jax.tree.unflatten(jax.tree.structure(shape), evaluate(closed.jaxpr, closed.consts, rules, *arrays))

    return rewritten


def evaluate(jaxpr: core.Jaxpr, consts, rules: Mapping[str, Rule], *args) -> list:
    """The outputs of a jaxpr at `args` under the rules."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        rule = rules.get(eqn.primitive.name) or _STRUCTURE.get(eqn.primitive.name)
        inputs = [read(atom) for atom in eqn.invars]
        if rule is None:
            outputs = bind(eqn, *inputs)
        elif rule in _STRUCTURE.values():
            outputs = rule(eqn, rules, *inputs)
        else:
            outputs = rule(eqn, *inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn, *inputs) -> list:
    """The equation as it was."""
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return outputs if eqn.primitive.multiple_results else [outputs]


def equations(jaxpr: core.Jaxpr):
    """Every equation of a jaxpr and of the functions inside it, with the number of times it runs (None inside a while loop)."""
    for eqn in jaxpr.eqns:
        yield eqn, 1
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in core.jaxprs_in_params(eqn.params):
            for inner_eqn, inner_times in equations(inner):
                bounded = eqn.primitive.name != "while" and inner_times is not None
                yield inner_eqn, (times * inner_times if bounded else None)


def _closed(rules, closed, *args):
    return evaluate(closed.jaxpr, closed.consts, rules, *args)


def _jit(eqn, rules, *args):
    return _closed(rules, eqn.params["jaxpr"], *args)


def _checkpoint(eqn, rules, *args):
    body = jax.checkpoint(
        lambda *inner: evaluate(eqn.params["jaxpr"], (), rules, *inner),
        prevent_cse=eqn.params["prevent_cse"],
        policy=eqn.params["policy"],
    )
    return body(*args)


def _scan(eqn, rules, *args):
    if "ft_in" in eqn.params:  # jax 0.12
        num_consts, num_carry, _ = map(len, eqn.params["ft_in"].unpack())
    else:
        num_consts, num_carry = eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, xs = args[:num_consts], args[num_consts : num_consts + num_carry], args[num_consts + num_carry :]

    def body(carry, x):
        outputs = _closed(rules, eqn.params["jaxpr"], *consts, *carry, *x)
        return outputs[:num_carry], outputs[num_carry:]

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(body, list(carry), list(xs), **options)  # type: ignore[arg-type]
    return [*carry, *ys]


def _while(eqn, rules, *args):
    num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts, carry = args[:num_cond], args[num_cond : num_cond + num_body], args[num_cond + num_body :]
    return jax.lax.while_loop(
        lambda carry: _closed(rules, eqn.params["cond_jaxpr"], *cond_consts, *carry)[0],
        lambda carry: _closed(rules, eqn.params["body_jaxpr"], *body_consts, *carry),
        list(carry),
    )


def _cond(eqn, rules, index, *args):
    branches = [lambda *inner, b=branch: _closed(rules, b, *inner) for branch in eqn.params["branches"]]
    return jax.lax.switch(index, branches, *args)


_STRUCTURE = {
    "jit": _jit,
    "pjit": _jit,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
