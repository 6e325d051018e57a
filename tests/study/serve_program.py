"""Serves the study of a folder on a port, without limits, until it is killed: for tests."""

import sys
from pathlib import Path

from cprl_jax.study import catalogue, host, page, server, settings
from cprl_jax.study.store import Store

folder, port = Path(sys.argv[1]), int(sys.argv[2])
page.parts = dict  # nobody looks at the page
server.SESSIONS_PER_MINUTE = server.STEPS_AT_ONCE = 100_000
store = Store(folder, settings.read(folder), catalogue.read(folder))
host.serve(server.create_app(store, admin="admin"), host.listen("127.0.0.1", port))
