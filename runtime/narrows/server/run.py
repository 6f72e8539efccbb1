"""`narrows serve`: in one process, or fronts and an engine in processes of their own under a supervisor."""

import logging
from collections.abc import Callable

from narrows.process import available_cores
from narrows.settings import ServerSettings

log = logging.getLogger(__name__)

CORES_A_FRONT = 8  # a front keeps up with the encoder of about so many


def serve(settings: ServerSettings, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends it at once. `ready` is told the address.

    Raises:
        BundleError, IndexFileError, MismatchError: what is to be served cannot be.
        SettingsError: the address cannot be listened on.
    """
    fronts = front_count(settings.frontends, available_cores())
    # Each way imports what it needs: a supervisor needs no model, no index and no gRPC.
    if fronts:
        from narrows.server.supervisor import supervise

        supervise(settings, fronts, ready)
    else:
        from narrows.server.in_process import serve_in_process

        serve_in_process(settings, ready)
    log.info("stopped")


def front_count(frontends: int | str, cores: int) -> int:
    """How many front processes to start; 0 for none beside the engine. `auto` goes by the cores."""
    return cores // CORES_A_FRONT if frontends == "auto" else int(frontends)
