"""Splits the matrices of a tied model into tensors, of which each step then has its own copy."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from recursia.architecture import Model
from recursia.params import Params
from recursia.sharing import key_banks, matrices, mpo
from recursia.sharing.schedule import KEYS
from recursia.sharing.tied import Tied


def tied(target: Model) -> Model:
    """Returns the model whose matrices are as the tensors of `target` are shared."""
    own = tuple((slot, how) for slot, how in target.varies if slot in target.block.slots)
    return dataclasses.replace(target, weights=Tied(), varies=own)


def with_tensors(params: Params, target: Model, kind: mpo.Mpo) -> Params:
    """Returns parameters of `target` that compute the same where no bond is cut.

    All copies of an auxiliary tensor come from the decomposition of one matrix.

    Args:
      params: of `tied(target)`.
      target: the model with tensors.
      kind: its weight kind.
    """
    plan, core = target.schedule, dict(params["core"])

    def used(slot: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps that have a weight of a slot, and the entry of each."""
        bank = key_banks.bank(slot, name, target.key_weights)
        steps = np.unique(plan.owners) if bank.endswith(KEYS) else np.arange(plan.num_steps)
        return steps, plan.entry(bank)[steps]

    for slot in kind.slots:
        specs, auxiliaries = matrices.named(target.block_specs[slot]), {}

        def leaf(name: str, bank: jnp.ndarray, slot=slot, specs=specs, found=auxiliaries):
            parts = [kind.split(specs[name], entry) for entry in bank]
            (_, shared), (_, private) = used(slot, name), used(mpo.auxiliary(slot), name)
            firsts = np.unique(private, return_index=True)[1]  # a step of each private entry
            others = [k for k in parts[0] if k != str(kind.centre)]
            copies = lambda k: jnp.stack([parts[entry][k] for entry in shared[firsts]])
            found[name] = {k: copies(k) for k in others}
            return jnp.stack([part[str(kind.centre)] for part in parts])

        core[slot] = matrices.replaced(core[slot], specs, leaf)
        core[mpo.auxiliary(slot)] = auxiliaries
    return {**params, "core": core}
