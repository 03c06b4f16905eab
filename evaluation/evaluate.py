"""One pass over a validation set: every sample counts once, whatever the runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Optional

from evaluation import metrics
from evaluation.findings import gather_for

if TYPE_CHECKING:
    from dataset.loader import EvalLoader
    from runtime.base import Runtime


def evaluate(
    runtime: Runtime, loader: EvalLoader, loss_kind: str, progressed: Optional[Callable[[int], None]] = None
) -> metrics.EvalResult:
    """Loss (the config's `loss`), scores and findings over every sample of the loader's set, once; the same in every process.

    `progressed` is called with the number of samples that this process has gone through, batch by batch.
    """
    totals, gathered = metrics.empty_totals(), gather_for(loader, loss_kind)
    for batch in loader:
        logits = runtime.predict(batch.images)
        if logits is not None and batch.targets is not None:
            totals += metrics.batch_totals(logits, batch.targets, batch.rows, loss_kind)
            if gathered is not None:
                gathered.add(batch, logits)
        if progressed is not None:
            progressed(batch.num_valid)
    outcome = gathered.over_all(runtime) if gathered is not None else metrics.NOTHING
    return metrics.result_of(runtime.sum_totals(totals), loader.multi_label, outcome)
