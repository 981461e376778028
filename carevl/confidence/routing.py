"""Every pair to one of three places, with a reason: the table `routes`.

high: the label can be trusted. low: it cannot, and the judge has to find out. dropped: no use to either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from carevl.confidence.guarantee import Tally
from carevl.confidence.pairs import Pairs
from carevl.confidence.signals import Ensemble, Signals
from carevl.store.schemas import ROUTES

Route = Literal["high", "low", "dropped"]
Block = tuple[pa.Table | pa.RecordBatch, pa.Table | pa.RecordBatch]
"""Some items and all of their scores."""

ROUTE_NAMES: tuple[Route, ...] = ("high", "low", "dropped")
REASONS: dict[str, tuple[Route, str]] = {
    "no_pair": ("dropped", "The item has an error or fewer than two responses."),
    "equal_responses": ("dropped", "Both responses are the same text."),
    "missing_caption": ("dropped", "Experts scored the responses, but never with a caption."),
    "missing_scores": ("dropped", "No expert scored both responses."),
    "text_only": (
        "dropped",
        "Without any caption the experts name the same winner, {no_caption_margin:+.2f} from even: beyond the limit of "
        "{text_only_limit:.2f}.",
    ),
    "undecided": ("low", "The experts together give both responses the same probability."),
    "against_source": ("low", "The source's own preference is not the experts' winner, response {winner}."),
    "too_few_votes": ("low", "Fewer than two experts take a side."),
    "experts_disagree": ("low", "Only {agreement:.0%} of the experts that take a side are for response {winner}."),
    "below_threshold": ("low", "Response {winner} wins with probability {confidence:.3f}, below {threshold:.3f}."),
    "unanimous": ("high", "All experts that take a side, at least two, are for response {winner}."),
    "above_threshold": ("high", "Response {winner} wins with probability {confidence:.3f}, at least {threshold:.3f}."),
    "text_only_share": (
        "dropped",
        "The item is about text alone, and there are more of these than may be learned from.",
    ),
    "no_testimony": ("low", "The judge has said nothing of this image that experts could read."),
    "no_labels": ("low", "No labelled pair tells whether what the judge says of images can be trusted."),
    "few_labels": ("low", "Too few labelled pairs tell how far labels of such questions can be trusted."),
    "group_below": ("low", "Labelled pairs of such questions are right less often than they have to be."),
}
"""Machine-readable reasons, in order of precedence: where each leads, and its sentence."""

_CODES = {reason: code for code, reason in enumerate(REASONS)}
_ELIGIBLE = -1


@dataclass(frozen=True)
class Filters:
    """Reasons against high that hold whatever the policy, while a threshold is chosen as well as afterwards."""

    text_only_limit: float | None = None
    require_source: bool = False

    def reasons(self, pairs: Pairs, signals: Signals) -> NDArray[np.int8]:
        """Return int8 [n_pairs], the code of the reason that applies, -1 for a pair the policy may decide."""
        scored = ~np.isnan(signals.probability)
        applies = {
            "no_pair": pairs.first < 0,
            "equal_responses": pairs.equal,
            "missing_caption": ~scored & ~np.isnan(pairs.no_caption).all(axis=1),
            "missing_scores": ~scored,
            "text_only": np.sign(signals.no_caption_margin) == signals.winner,
            "undecided": signals.winner == 0,
            "against_source": signals.source_agreement == 0,
        }
        if self.text_only_limit is None:
            del applies["text_only"]
        else:
            applies["text_only"] &= np.abs(signals.no_caption_margin) > np.float32(self.text_only_limit)
        if not self.require_source:
            del applies["against_source"]
        return _first_that_applies(applies)


@dataclass(frozen=True)
class Certificate:
    """The guarantee of `target_precision`, and the evidence for it."""

    precision: float
    confidence_level: float
    tested: Tally
    """At the chosen threshold, on the images that chose it."""
    checked: Tally
    """At the chosen threshold, on images that nothing was chosen on."""


@dataclass(frozen=True)
class Router:
    """A fitted policy: routes any number of pairs, each by itself, always the same way."""

    ensemble: Ensemble
    filters: Filters
    policy: str
    threshold: float | None
    """Least probability of the winner; None for `unanimous`."""
    certificate: Certificate | None
    notes: tuple[str, ...]
    """Sentences for the report: how each expert was calibrated, what is guaranteed and what is not."""

    def route(self, pairs: Pairs) -> pa.RecordBatch:
        """Return one row of ROUTES per pair, in the same order."""
        signals = self.ensemble.signals(pairs)
        codes = self.filters.reasons(pairs, signals)
        codes = np.where(codes == _ELIGIBLE, self._decisions(signals), codes)
        winner = np.where(signals.winner == 0, -1, np.where(signals.winner > 0, pairs.first, pairs.second))
        routes = np.array([ROUTE_NAMES.index(route) for route, _ in REASONS.values()], dtype=np.int8)[codes]
        columns = [
            pairs.item_id.take(pa.array(pairs.item)),
            pairs.first,
            pairs.second,
            _dictionary(routes, ROUTE_NAMES),
            pa.array(winner.astype(np.int32), mask=np.isnan(signals.winner)),
            *(
                pa.array(values, from_pandas=True)
                for values in (
                    signals.probability,
                    signals.agreement,
                    signals.stability,
                    signals.no_caption_margin,
                    signals.source_agreement,
                )
            ),
            pairs.lengths[:, 0] - pairs.lengths[:, 1],
            _dictionary(codes, tuple(REASONS)),
        ]
        return pa.record_batch([pa.array(column) for column in columns], schema=ROUTES)

    def route_stream(self, blocks: Iterable[Block]) -> Iterator[pa.RecordBatch]:
        """Route block by block, so that memory is bounded by the largest block.

        Args:
            blocks: record batches or tables of items, each with every score row of those items and no other, as
                the buckets of both tables give them.
        """
        experts = [calibration.expert for calibration in self.ensemble.calibrations]
        for items, scores in blocks:
            yield self.route(Pairs.from_arrow(items, scores, experts, self.ensemble.views))

    def explain(self, row: Mapping[str, Any]) -> str:
        """Write the sentence for a row of `routes` that this router made."""
        values = dict(row, threshold=self.threshold, text_only_limit=self.filters.text_only_limit)
        if row["probability"] is not None:
            values["confidence"] = max(row["probability"], 1 - row["probability"])
        return REASONS[row["reason"]][1].format(**values)

    def _decisions(self, signals: Signals) -> NDArray[np.int8]:
        if self.threshold is None:
            return _first_that_applies(
                {
                    "too_few_votes": signals.n_votes < 2,
                    "experts_disagree": signals.agreement < 1,
                    "unanimous": np.ones(len(signals.winner), dtype=np.bool_),
                }
            )
        high = signals.confidence >= np.float32(self.threshold)
        return np.where(high, _CODES["above_threshold"], _CODES["below_threshold"]).astype(np.int8)


def drop_items(routes: pa.RecordBatch, item_ids: Collection[str], reason: str) -> pa.RecordBatch:
    """Return rows of ROUTES, those of some items with the route that a reason leads to."""
    return reroute(routes, pc.is_in(routes["item_id"], pa.array(sorted(item_ids), pa.string())), reason)


def reroute(routes: pa.RecordBatch, chosen: pa.Array, reason: str) -> pa.RecordBatch:
    """Return rows of ROUTES, the chosen ones (bool [n_rows]) with the route that a reason leads to."""
    values = {"route": REASONS[reason][0], "reason": reason}
    for name, names in (("route", ROUTE_NAMES), ("reason", tuple(REASONS))):
        place = routes.schema.get_field_index(name)
        codes = pc.if_else(chosen, pa.scalar(names.index(values[name]), pa.int8()), routes[name].indices)
        column = pa.DictionaryArray.from_arrays(codes, pa.array(names))
        routes = routes.set_column(place, routes.schema.field(name), column)
    return routes


def _first_that_applies(applies: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.int8]:
    codes = [np.int8(_CODES[reason]) for reason in applies]
    return np.select(list(applies.values()), codes, default=np.int8(_ELIGIBLE))


def _dictionary(codes: NDArray[np.int8], names: tuple[str, ...]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names))
