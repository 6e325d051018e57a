"""The study in which people decide what is invisible: in a browser, over a run's candidates (docs/study.md).

From a run to a page: `catalogue` (which images there are), `plan` (what an observer gets to see), `server` or `static`
(who hands it out), `web/` (the page itself). From the page to a file: `store` (SQLite), `records` (what is kept of an
answer, and what each column means), `export`. `simulate` plays observers through the same doors.
"""
