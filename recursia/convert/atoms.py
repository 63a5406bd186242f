"""Matrix PCA: the atoms and coefficients nearest to the matrices of a model.

The matrices of a name, each a row, are cut to their largest singular values (MASA, arXiv
2508.04581): the squared error is the sum of the squares of the singular values that are dropped.
Where there are as many atoms as matrices, the atoms are the matrices, to the bit.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from recursia import model
from recursia import params as parameters
from recursia.architecture import Model
from recursia.params import Params
from recursia.sharing.atoms import Atoms, coefficients_of, slot_of


def with_atoms(
    params: Params, layers: list[Params], target: Model, kind: Atoms, *, key: parameters.Leaf
) -> Params:
    """Returns parameters of `target` whose matrices are as near as its atoms allow.

    Args:
      params: of `tensors.tied(target)`.
      layers: the weights of every step of the core, by slot.
      target: the model with atoms.
      kind: its weight kind.
      key: draws the atoms that no matrix needs.

    Raises:
      ValueError: if a combination is of several sets of atoms.
    """
    atoms, coefficients = slot_of(kind.slot), coefficients_of(kind.slot)
    core, plan = dict(params["core"]), target.schedule
    pairs = sorted(set(zip(plan.entry(atoms), plan.entry(coefficients), strict=True)))
    if len(pairs) > plan.size(coefficients):
        raise ValueError(
            f"varies.{coefficients}: steps with the same combination have other atoms; let it "
            "vary wherever the atoms do"
        )
    spec = {name: model.specs(target)["core"][name] for name in (atoms, coefficients)}
    made = parameters.init(spec, key)
    for name in kind.names:
        steps = np.stack([np.asarray(layer[kind.slot][name], np.float32) for layer in layers])
        for entry in range(plan.size(atoms)):
            members = [c for a, c in pairs if a == entry]
            used = [steps[plan.entry(coefficients) == c] for c in members]
            rows = np.stack([group[0] if len(group) == 1 else group.mean(0) for group in used])
            weights, found = pca(rows.reshape(len(rows), -1), kind.num_atoms)
            table = jnp.zeros((len(rows), kind.num_atoms)).at[:, : len(found)].set(weights)
            found = jnp.asarray(found.reshape(-1, *rows.shape[1:]))
            put = made[atoms][name].at[entry, : len(found)].set(found)
            made[atoms][name] = put
            made[coefficients][name] = made[coefficients][name].at[np.array(members)].set(table)
    core[kind.slot] = {n: w for n, w in core[kind.slot].items() if n not in kind.names}
    return {**params, "core": {**core, **made}}


def pca(
    rows: Float[np.ndarray, "N M"], count: int
) -> tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "A M"]]:
    """Returns the coefficients and atoms whose products are nearest to some rows.

    Atoms are as large as rows are on average.

    Args:
      rows: the matrices.
      count: atoms at most.
    """
    if len(rows) <= count:
        return np.eye(len(rows), dtype=rows.dtype), rows
    left, values, right = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    size = np.linalg.norm(values) / len(rows) ** 0.5 or 1.0
    weights, atoms = left[:, :count] * values[:count] / size, right[:count] * size
    return weights.astype(rows.dtype), atoms.astype(rows.dtype)
