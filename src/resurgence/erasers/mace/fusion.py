"""Fuse the LoRAs of many concepts into one change of the projections (MACE, Eq. 6), closed or constrained.

With C_i = sum e e^T over the captions of concept i (all positions), dW_i its LoRA, W the base's projection, W' the
refined one, C = prior + omega domain:

    W_f = argmin sum_i sum ||W_f e - (W' + dW_i) e||^2 + s sum_corpus ||W_f e - W e||^2 + lamb ||W_f - W'||_F^2
        = W' + ( sum_i dW_i C_i + s (W - W') C ) S^-1,   S = sum_i C_i + s C + lamb I .

dW_i C_i = up_i (down_i C_i), so that of a concept's C_i only (r, d) a projection is kept. The constrained form solves
the same objective under constraints, by cvxpy, row by row: objective and constraints are separable over the output
dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from resurgence.erasers.closed_form.solver import Factor, factorise, right_divide, system
from resurgence.erasers.lora import Lora
from resurgence.progress import Progress

GRAM = "gram"  # sum_i C_i among the sums


def caption_moment(rows: torch.Tensor) -> torch.Tensor:
    """C_i, the sum of e e^T over embeddings (T, L, d): (d, d)."""
    rows = rows.flatten(0, 1)
    return rows.T @ rows


def lora_sums(concepts: Iterable[tuple[Lora, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What fusion needs of the captions of all concepts, which no setting of the fusion changes.

    Args:
        concepts: pairs of LoRA and C_i, (d, d) float64, read once.

    Returns:
        GRAM: sum_i C_i, (d, d); and projection -> down_i C_i of all concepts, (K r, d).
    """
    gram, products = None, {}
    for lora, moment in concepts:
        gram = moment if gram is None else gram + moment
        downs = [down.to(moment) for down, _ in lora.values()]
        all_products = (torch.cat(downs) @ moment).split([len(down) for down in downs])  # one for all projections
        for name, product in zip(lora, all_products, strict=True):
            products.setdefault(name, []).append(product)
    return {GRAM: gram} | {name: torch.cat(parts) for name, parts in products.items()}


def fuse_closed(
    base: Mapping[str, torch.Tensor],
    refined: Mapping[str, torch.Tensor],
    sums: Mapping[str, torch.Tensor],
    loras: Mapping[str, Lora],
    scale: float,
    moment: torch.Tensor | None,
    lamb: float,
) -> tuple[dict[str, torch.Tensor], torch.Tensor, Factor]:
    """The unconstrained optimum: (projection -> W_f float64, S, its factor).

    Args:
        base, refined: projection -> W and W', (out, d).
        sums: of `lora_sums`, for these LoRAs.
        moment: C = prior + omega domain, (d, d), needed if scale is positive.

    Raises:
        ValueError: if S is not positive definite.
    """
    names = list(refined)
    sums = {name: sums[name].to(refined[names[0]].device) for name in (GRAM, *names)}
    matrix = system(sums[GRAM], lamb, scale, moment)
    factor = factorise(matrix, f"lamb = {lamb:g}, fuse_preserve_scale = {scale:g}")
    targets = [torch.cat([lora[n][1].to(sums[n]) for lora in loras.values()], 1) @ sums[n] for n in names]
    if scale > 0:
        pull = scale * moment.to(matrix)
        targets = [t + (base[n].double() - refined[n].double()) @ pull for t, n in zip(targets, names, strict=True)]
    changes = right_divide(torch.cat(targets), factor).split([len(t) for t in targets])  # one solve for all rows
    return {n: refined[n].double() + change for n, change in zip(names, changes, strict=True)}, matrix, factor


def independent_rows(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal basis (k, d) of the span of rows.

    Raises:
        ValueError: if they span the whole space, so that only the base itself preserves them.
    """
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[values > values[0] * max(rows.shape) * 10 * torch.finfo(rows.dtype).eps]
    if len(basis) >= rows.shape[1]:
        raise ValueError(
            f"{len(rows)} preserved embeddings span all {rows.shape[1]} dimensions: nothing could change; "
            "retain fewer concepts, or set preserve_retained: false"
        )
    return basis


class RowProblem:
    """min ||L^T (z - z0)||^2 subject to F z = 0 and ||z|| <= bound, for one row z = (w_f - w) / ||w||.

    Compiled once by cvxpy and solved for each row.
    """

    def __init__(self, matrix: torch.Tensor, fixed: torch.Tensor | None, bound: float | None) -> None:
        import cvxpy as cp

        size = len(matrix)
        unit = matrix / (matrix.diagonal().sum() / size)  # only the scale of the objective, for the solver's tolerances
        root = torch.linalg.cholesky(unit).T.cpu().numpy()
        self.root, self.fixed, self.bound = root, fixed, bound
        self.z, self.centre = cp.Variable(size), cp.Parameter(size)
        constraints = [] if fixed is None else [fixed.cpu().numpy() @ self.z == 0]
        if bound is not None:
            constraints.append(cp.norm(self.z, 2) <= bound)
        self.problem = cp.Problem(cp.Minimize(cp.sum_squares(root @ self.z - self.centre)), constraints)

    def solve(self, z0: torch.Tensor) -> torch.Tensor:
        """The optimal row (d,) for the unconstrained optimum z0 (d,).

        Raises:
            RuntimeError: if the solver does not reach its tolerance.
        """
        import cvxpy as cp

        self.centre.value = self.root @ z0.cpu().numpy()
        self.problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
        if self.problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            raise RuntimeError(f"cvxpy ended with {self.problem.status!r}; raise lamb, or relax max_relative_change")
        z = torch.as_tensor(self.z.value).to(z0)
        if self.fixed is not None:
            z = z - (z @ self.fixed.T) @ self.fixed  # exactly, not only to the solver's tolerance
        if self.bound is not None and z.norm() > self.bound:
            z = z * (self.bound / z.norm())
        return z


def fuse_constrained(
    base: Mapping[str, torch.Tensor],
    optimum: Mapping[str, torch.Tensor],
    matrix: torch.Tensor,
    preserved: torch.Tensor | None = None,
    bound: float | None = None,
) -> dict[str, torch.Tensor]:
    """Minimise the objective of fusion under constraints: projection -> W_f float64.

    The objective is (w_f - w*) S (w_f - w*)^T + constant for each row, w* being the unconstrained optimum.

    Args:
        base: W, what the constraints refer to. optimum: W* of `fuse_closed`. matrix: S.
        preserved: embeddings e (k, d) whose W_f e = W e must hold exactly.
        bound: upper limit of ||w_f - w|| / ||w|| for each row.
    """
    fixed = None if preserved is None else independent_rows(preserved.to(matrix))
    problem = RowProblem(matrix, fixed, bound)
    progress, fused = Progress("constrained fusion", sum(len(w) for w in base.values()), "rows"), {}
    for name, weight in base.items():
        w = weight.to(matrix)
        norms = w.norm(dim=1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        rows = []
        for z in (optimum[name] - w) / norms:
            free = fixed is None and (bound is None or float(z.norm()) <= bound)  # the constraint does not bind
            rows.append(z if free else problem.solve(z))
            progress.add()
        fused[name] = w + torch.stack(rows) * norms
    return fused
