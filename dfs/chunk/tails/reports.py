"""Tells the leader now and then which tails are here, and removes those that it no longer needs.

Owns: when that is told. Refuses to know: how tails are kept (dfs.chunk.tails.service).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dfs.chunk.leader import LeaderConnection
from dfs.chunk.tails.service import TailService
from dfs.errors import DfsError
from dfs.ids import ServerId
from dfs.log import get_logger
from dfs.net.auth import ClusterKey
from dfs.net.messages import TailReport, TailReportReply

REPORT_INTERVAL_S = 3.0  # nothing waits for it but the space of tails that were sealed

log = get_logger(__name__)


class TailReports:
    """`run` is the root of a thread, `report` one round of it."""

    def __init__(self, tails: TailService, server_id: ServerId, masters: Sequence[str], key: ClusterKey) -> None:
        self._tails = tails
        self._server_id = server_id
        self._leader = LeaderConnection(masters, key)

    def run(self, stop: threading.Event) -> None:
        """Report until `stop`."""
        while not stop.wait(REPORT_INTERVAL_S):
            try:
                self.report()
            except DfsError as error:  # no leader at the moment, most often; the next round tells the same
                log.debug("tails_not_reported", reason=error.message)
            except Exception:
                log.exception("tail_report_failed")

    def report(self) -> None:
        """Tell what is here, if anything is, and drop what the leader says."""
        held = self._tails.held()
        if not held:
            return
        for handle in self._leader.call(TailReport(self._server_id, held), TailReportReply).drops:
            self._tails.drop(handle)

    def close(self) -> None:
        self._leader.close()
