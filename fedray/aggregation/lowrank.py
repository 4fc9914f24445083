"""Products of low-rank factors that are never multiplied out: sums, norms, truncated SVDs.

Letters of shapes: R rank, I a linear's input width, O its output width. Arithmetic is float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedray.adapter import Factors


class LowRank(NamedTuple):
    """The matrix ``b @ a``, [O, I], its scale folded into ``b``."""

    b: Tensor  # [O, R]
    a: Tensor  # [R, I]


def product(factors: Factors, factor: float = 1.0) -> LowRank:
    """``factor * scale * B A`` in float64."""
    return LowRank(factors.b.double() * (factor * factors.scale), factors.a.double())


def stacked(parts: Sequence[LowRank]) -> LowRank:
    """The sum of products as one, exactly: its rank is the sum of theirs."""
    return LowRank(torch.cat([p.b for p in parts], dim=1), torch.cat([p.a for p in parts], dim=0))


def bounded(part: LowRank) -> LowRank:
    """The same matrix in at most min(O, I) ranks.

    Past that rank the two factors hold more numbers than their product, which then is the
    narrower side's only factor beside an identity: nothing is cut off and nothing is decomposed.
    """
    outputs, inputs = part.b.shape[0], part.a.shape[1]
    if part.a.shape[0] <= min(outputs, inputs):
        return part
    return _with_identity(part.b @ part.a)


def _with_identity(whole: Tensor) -> LowRank:
    outputs, inputs = whole.shape
    if outputs <= inputs:
        return LowRank(torch.eye(outputs, dtype=whole.dtype), whole)
    return LowRank(whole, torch.eye(inputs, dtype=whole.dtype))


def trimmed(part: LowRank) -> LowRank:
    """The same matrix in as many ranks as it has, to rounding: none where the parts cancel.

    Singular values count as rounding below eps * max(O, I) times the norms of both sides.
    """
    core, q_b, q_a = _core(part)
    u, values, vt = torch.linalg.svd(core, full_matrices=False)
    widest = max(part.b.shape[0], part.a.shape[1])
    rounding = torch.finfo(values.dtype).eps * widest * torch.linalg.norm(part.b) * torch.linalg.norm(part.a)
    kept = int((values > rounding).sum())
    return LowRank((q_b @ u[:, :kept]) * values[:kept], vt[:kept] @ q_a.T)


def grown(old: Factors | None, more: LowRank, dtype: torch.dtype) -> Factors:
    """A site's base delta and what a round adds to it, in at most min(O, I) ranks; the scale is 1."""
    total = more if old is None else bounded(stacked([product(old), more]))
    return Factors(a=total.a.to(dtype), b=total.b.to(dtype), scale=1.0)


def frobenius(part: LowRank) -> float:
    """The Frobenius norm of ``b @ a``, through a QR of each side.

    Traces of Gram matrices would be cheaper, and leave 1e-8 of the parts where parts cancel.
    """
    core, _, _ = _core(part)
    return float(torch.linalg.norm(core))


def _core(part: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    q_b, r_b = torch.linalg.qr(part.b)
    q_a, r_a = torch.linalg.qr(part.a.T)
    return r_b @ r_a.T, q_b, q_a


def best_of_rank(part: LowRank, rank: int, scale: float) -> Factors:
    """The nearest matrix of at most ``rank``, float64: singular values in B, rows of A orthonormal.

    QR of both sides, SVD of the small core [min(O, R), min(I, R)]. Eckart-Young makes it the best in
    Frobenius norm. Ranks that ``part`` does not have are zero on both sides, and so can never learn:
    a caller that wants them alive gives a part with as many ranks.

    Source: the SVD of FlexLoRA (2402.11505), by the stacked QR of FLoRIST (2506.09199).
    """
    core, q_b, q_a = _core(part)
    u, values, vt = torch.linalg.svd(core, full_matrices=False)
    kept = min(rank, values.numel())
    b, a = part.b.new_zeros(part.b.shape[0], rank), part.a.new_zeros(rank, part.a.shape[1])
    b[:, :kept] = (q_b @ u[:, :kept]) * (values[:kept] / scale)
    a[:kept] = vt[:kept] @ q_a.T
    return Factors(a=a, b=b, scale=scale)


def is_in_svd_form(factors: Factors, tolerance: float = 1e-5) -> bool:
    """Whether the leading ranks are already the best approximation, as `best_of_rank` leaves them.

    A zero B counts: every approximation of nothing is nothing. Else the columns of B must be
    orthogonal and descending, and the rows of A orthonormal where B is not zero.
    """
    norms = factors.b.double().norm(dim=0)
    used = int((norms > 0).sum())
    if not bool((norms[1:] <= norms[:-1] * (1 + tolerance)).all()):
        return False
    directions, rows = factors.b.double()[:, :used] / norms[:used], factors.a.double()[:used]
    identity = torch.eye(used, dtype=torch.float64)
    return bool(
        torch.allclose(directions.T @ directions, identity, rtol=0.0, atol=tolerance)
        and torch.allclose(rows @ rows.T, identity, rtol=0.0, atol=tolerance)
    )


class RunningSum:
    """The sum of weight * b @ a over many updates, exactly, in at most min(O, I) ranks.

    Below that bound the parts are kept as they came, above it their sum is (see `bounded`), so what
    it holds stops growing however many updates come.
    """

    def __init__(self) -> None:
        self._parts: list[LowRank] = []
        self._whole: Tensor | None = None

    def add(self, part: LowRank, weight: float) -> None:
        """Add ``weight * part``; the weight goes into ``b``."""
        weighted = LowRank(part.b * weight, part.a)
        if self._whole is not None:
            self._whole.addmm_(weighted.b.double(), weighted.a.double())
            return
        self._parts.append(weighted)
        if sum(p.a.shape[0] for p in self._parts) > min(part.b.shape[0], part.a.shape[1]):
            every = stacked(self._parts)
            self._whole, self._parts = every.b.double() @ every.a.double(), []

    def value(self, factor: float) -> LowRank | None:
        """``factor`` times the sum in float64, None if nothing was added."""
        if self._whole is not None:
            return _with_identity(self._whole * factor)
        if not self._parts:
            return None
        every = stacked(self._parts)
        return LowRank(every.b.double() * factor, every.a.double())
