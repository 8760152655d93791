"""The rules of `forward` for loops, branches and checkpoints: each is built anew around the walk of its bodies."""

import jax

from robustjax.graph import _program, _rules


def _checkpoint(context, eqn, *values):
    (body,) = eqn.bodies["jaxpr"]
    run = jax.checkpoint(lambda *inner: context.run(body, *inner), prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return run(*values)


def _scan(context, eqn, *values):
    (body,) = eqn.bodies["jaxpr"]
    num_consts, num_carry = _program.scan_sizes(eqn.params)
    consts, carry, xs = values[:num_consts], values[num_consts : num_consts + num_carry], values[num_consts + num_carry :]

    def step(carry, x):
        outputs = context.run(body, *consts, *carry, *x)
        return _alike(context, eqn, outputs[:num_carry], carry), outputs[num_carry:]

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(step, list(carry), list(xs), **options)  # type: ignore[arg-type]
    return [*carry, *ys]


def _while(context, eqn, *values):
    (cond,), (body,) = eqn.bodies["cond_jaxpr"], eqn.bodies["body_jaxpr"]
    num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts, carry = values[:num_cond], values[num_cond : num_cond + num_body], values[num_cond + num_body :]
    return jax.lax.while_loop(
        lambda carry: _decided(context, eqn, context.run(cond, *cond_consts, *carry)[0]),
        lambda carry: _alike(context, eqn, context.run(body, *body_consts, *carry), carry),
        list(carry),
    )


def _cond(context, eqn, index, *values):
    first: list = []

    def branch(program):
        def run(*inner):
            outputs = context.run(program, *inner)
            first.append(outputs)
            return _alike(context, eqn, outputs, first[0])

        return run

    return jax.lax.switch(_decided(context, eqn, index), [branch(program) for program in eqn.bodies["branches"]], *values)


def _decided(context, eqn, value):
    return value if _rules.is_concrete(value) else _rules.no_rule(context, eqn, value)


def _alike(context, eqn, values, others):
    """The values, which lax can carry only where abstract values stay abstract, and arrays arrays."""
    structures = {jax.tree.structure(list(part)) for part in (values, others)}
    return values if len(structures) == 1 else _rules.no_rule(context, eqn, *values)


RULES = {"scan": _scan, "while": _while, "cond": _cond} | dict.fromkeys(_program.CHECKPOINTS, _checkpoint)
