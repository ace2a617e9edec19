"""One line in the log for each event in the life of a request."""

import logging

from coordinator.core.observation import RequestEnd
from stagecoach.contract.errors import StagecoachError

_log = logging.getLogger(__name__)


class RequestLog:
    """An `EngineObserver` that logs requests: their ids, ends, counts and times."""

    def request_accepted(self, request_id: str, num_prompt_tokens: int) -> None:
        """Logs who waits."""
        facts = {"request_id": request_id, "num_prompt_tokens": num_prompt_tokens}
        _log.info("request accepted", extra=facts)

    def request_refused(self, error: StagecoachError) -> None:
        """Logs why, by name alone: messages may quote what the client sent."""
        facts = {"error": error.reason, "field": error.details.get("field")}
        _log.info("request refused", extra={name: fact for name, fact in facts.items() if fact})

    def request_ended(self, end: RequestEnd) -> None:
        """Logs how it went."""
        facts = {
            "request_id": end.request_id,
            "finish_reason": end.reason.value,
            "num_prompt_tokens": end.num_prompt_tokens,
            "num_cached_tokens": end.num_cached_tokens,
            "num_completion_tokens": end.num_completion_tokens,
            "num_steps": end.num_steps,
            "num_preemptions": end.num_preemptions,
            "num_replays": end.num_replays,
            "queue_s": _seconds(end.arrival_ns, end.first_step_ns),
            "time_to_first_token_s": _seconds(end.arrival_ns, end.first_token_ns),
            "total_s": _seconds(end.arrival_ns, end.end_ns),
        }
        if end.error is None:
            _log.info("request ended", extra=facts)
        else:
            _log.warning("request ended", extra=facts | {"error": end.error.reason})


def _seconds(start_ns: int, end_ns: int | None) -> float | None:
    return None if end_ns is None else round((end_ns - start_ns) / 1e9, 6)
