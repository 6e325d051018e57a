"""Serves the study of a folder on a port, without limits, until it is killed: for tests."""

import sys
from pathlib import Path

from cprl_jax.study import host, page, server
from cprl_jax.study.store import open_store

folder, port = Path(sys.argv[1]), int(sys.argv[2])
page.parts = dict  # nobody looks at the page
server.SESSIONS_PER_MINUTE = server.STEPS_AT_ONCE = 100_000
host.serve(server.create_app(open_store(folder), admin="admin"), host.listen("127.0.0.1", port))
