"""Preconditioners for the Hessian of a softmax head: factors of its blocks, or of the whole."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.core.newton_cg import Apply, SoftmaxProblem

# The preconditioner need not be exact. It is computed from about max(SAMPLE_ROWS, SAMPLE_TIMES * d) rows.
SAMPLE_ROWS, SAMPLE_TIMES = 8192, 8
FLOOR = 0.01  # the least weight of a row in the preconditioner, as a share of the mean curvature
HESSIAN_ROWS = 8192  # rows at once in the sums of the Hessian
HESSIAN_NUMBERS = 2**30  # numbers that a factor of the whole Hessian may have: 4 GiB
RAISES = 8  # of the diagonal, until the sums are positive definite


def _sample(problem: SoftmaxProblem, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return `h` and the probabilities of evenly spaced rows, in the dtype of the products."""
    n, d = problem.z.shape
    every = max(1, n // max(SAMPLE_ROWS, SAMPLE_TIMES * d))
    z = problem.z[::every].to(problem.dtype)
    return torch.cat([z, z.new_ones(len(z), 1)], dim=1), probabilities[::every].to(z)


def _factor(h: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """Return the upper Cholesky factor of `1/n sum weight_i h_i h_i^T + ridge I`, in the dtype of `h`."""
    weight = weight + FLOOR * weight.mean()
    matrix = ((h.T * weight) @ h).double() / len(h)
    # The products may be float32, so the diagonal is raised by their rounding error as well.
    matrix.diagonal().add_(ridge + 1e-7 * float(matrix.diagonal().max()))
    upper: Tensor = torch.linalg.cholesky(matrix, upper=True)
    return upper.to(h.dtype)


def class_blocks(problem: SoftmaxProblem, probabilities: Tensor) -> Tensor:
    """Return a factor per class, `(C, p, p)`, of the diagonal blocks of the Hessian, from a sample of rows."""
    h, p = _sample(problem, probabilities)
    return torch.stack([_factor(h, q * (1 - q), problem.ridge) for q in p.T])


@torch.no_grad()
def hessian_block(problem: SoftmaxProblem, probabilities: Tensor) -> Tensor:
    """Return a factor of the whole Hessian, `(1, C p, C p)`, from all rows. The unknowns of a class are contiguous.

    The block of the classes a and b is `1/n sum p_a ([a = b] - p_b) h h^T`, plus the ridge on the diagonal. Raises
    ValueError where it would have more than HESSIAN_NUMBERS numbers, or is not positive definite for its rounding.
    """
    (n, d), c = problem.z.shape, probabilities.shape[1]
    size = c * (d + 1)
    if size**2 > HESSIAN_NUMBERS:
        raise ValueError(
            f"a factor of the Hessian of {size:,} weights takes {size**2 * 4 / 2**30:.0f} GiB; use factor: classes"
        )
    dtype = problem.dtype
    hessian = torch.zeros(c, d + 1, c, d + 1, dtype=dtype, device=problem.z.device)
    for z, p in zip(torch.split(problem.z, HESSIAN_ROWS), torch.split(probabilities, HESSIAN_ROWS), strict=True):
        h = torch.cat([z.to(dtype), z.new_ones(len(z), 1, dtype=dtype)], dim=1)
        for a in range(c):
            for b in range(a, c):
                weight = p[:, a] * (float(a == b) - p[:, b]) / n
                hessian[a, :, b].addmm_(h.T * weight, h)
    # `cholesky` reads the upper triangle only. Sums in float32 can leave it indefinite, so the diagonal is raised.
    matrix = hessian.view(size, size)
    shift = problem.ridge
    for _ in range(RAISES):
        matrix.diagonal().add_(shift)
        factor, bad = torch.linalg.cholesky_ex(matrix, upper=True)
        if not int(bad):
            whole: Tensor = factor[None]
            return whole
        shift = 10 * max(shift, torch.finfo(dtype).eps * float(matrix.diagonal().max()))
    raise ValueError("the Hessian is not positive definite; use a larger ridge, or factor: classes")


class Blocks:
    """The preconditioner from factors of blocks of the Hessian, `(C, p, p)` or `(1, C p, C p)`, used at every step.

    A shift common to all classes does not change the softmax, so along it the Hessian is exactly `ridge I`, far below
    the blocks of single classes. Those are applied to the rest, `P B^-1 P` with P the removal of the mean over classes.
    """

    def __init__(self, blocks: Tensor, ridge: float) -> None:
        self.blocks, self.ridge = blocks, ridge

    def __call__(self, w: Tensor, probabilities: Tensor) -> Apply:
        """Return the approximate inverse; it is the same for every `w` and `probabilities`."""
        if len(self.blocks) == 1:
            return self._solve

        def apply(r: Tensor) -> Tensor:
            common = r.mean(dim=0)
            solved = self._solve(r - common)
            return solved - solved.mean(dim=0) + common / self.ridge

        return apply

    def _solve(self, r: Tensor) -> Tensor:
        upper = self.blocks
        right = r.to(upper.dtype).reshape(len(upper), -1, 1)
        half = torch.linalg.solve_triangular(upper.mT, right, upper=False)
        solved: Tensor = torch.linalg.solve_triangular(upper, half, upper=True)
        return solved.reshape(r.shape).double()


class Refreshed:
    """Preconditioners that are computed again while the probabilities still change.

    At the steps SHARED it is one factor for all classes. At weight zero this is the scaled factor of the ridge head,
    and exactly the inverse Hessian for gradients that sum to zero over classes. From the first of the steps BLOCKS on
    it is a factor for each class, because the curvatures of the classes differ more and more. If these factors would
    have more than BLOCK_NUMBERS numbers, the shared factor stays.
    """

    SHARED, BLOCKS = (0, 1, 2, 4, 8, 16), (3, 6, 10, 15)
    BLOCK_NUMBERS = 2**28

    def __init__(self, problem: SoftmaxProblem) -> None:
        self.problem, self.step = problem, -1
        self.apply: Apply = torch.clone

    def __call__(self, w: Tensor, probabilities: Tensor) -> Apply:
        """Return the approximate inverse for the next step, at `w` and the probabilities there."""
        self.step += 1
        by_class = self.step >= self.BLOCKS[0] and w.numel() * w.shape[1] <= self.BLOCK_NUMBERS
        if by_class and self.step in self.BLOCKS:
            self.apply = Blocks(class_blocks(self.problem, probabilities), self.problem.ridge)(w, probabilities)
        elif not by_class and self.step in self.SHARED:
            self.apply = self._shared(probabilities)
        return self.apply

    def _shared(self, probabilities: Tensor) -> Apply:
        h, p = _sample(self.problem, probabilities)
        upper = _factor(h, (p * (1 - p)).mean(dim=1), self.problem.ridge)

        def apply(r: Tensor) -> Tensor:
            half = torch.linalg.solve_triangular(upper.T, r.T.to(upper.dtype), upper=False)
            solved: Tensor = torch.linalg.solve_triangular(upper, half, upper=True).T
            return solved.double()

        return apply
