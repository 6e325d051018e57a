"""Asks people which candidates of a perceptual attack they can tell from their originals (docs/study.md).

  python -m cprl_jax.study serve --run=runs/perceptual_attack      the study as a page; send its link to observers
  python -m cprl_jax.study static --run=RUN --out=DIR --plans=15   the same as a folder, without a server
  python -m cprl_jax.study import --run=RUN answers-*.json         what observers saved in such a folder
  python -m cprl_jax.study simulate --run=RUN --observers=15       modelled observers, to try a study out
  python -m cprl_jax.study status --run=RUN                        how far it is
  python -m cprl_jax.study analyse --run=RUN                       verdicts, JNDs and the paper's tables
  python -m cprl_jax.study export --run=RUN --out=DIR              answers as CSV and JSON, with a data dictionary
  python -m cprl_jax.study delete --run=RUN --observer=7           forgets an observer
  python -m cprl_jax.study bundle                                  fetches the libraries of the page (`make study`)

The study lies in RUN/study (another one of the same run: --study=NAME; simulated ones: RUN/simulated). Its settings are
decided by the first command and kept: trials, timing, exclusion rules, before there are answers.

Exit code: 0; 1 if files could not be imported; 2 for a mistake in the command line.
"""

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped; every answer that was acknowledged is kept, and the same command goes on")

import argparse
import dataclasses
import math
import secrets
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path
from cprl_jax.runtime.parser import Parser
from cprl_jax.study import settings as settings_lib
from cprl_jax.study.settings import Settings

_BEGIN = ("serve", "static", "simulate")  # what may begin a study, and therefore takes settings


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and does what it asks for; returns the exit code."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int | None:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.work(arguments)
    except sqlite3.Error as error:
        raise UserError(
            f"{arguments.run}: answers cannot be read or kept ({error}); those that were acknowledged are kept, and "
            "the same command goes on when the disk has room"
        ) from None


def _parser() -> Parser:
    parser = Parser(prog="python -m cprl_jax.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    works = {
        "serve": _serve,
        "static": _static,
        "import": _import,
        "simulate": _simulate,
        "status": _status,
        "analyse": _analyse,
        "export": _export,
        "delete": _delete,
        "bundle": _bundle,
    }
    made = {}
    for name, work in works.items():
        made[name] = command = commands.add_parser(name, description=f"{work.__doc__} See docs/study.md.")
        command.set_defaults(work=work)
        if name == "bundle":
            continue
        command.add_argument("--run", required=True, help="the folder of a perceptual attack (its --workdir)")
        default = "simulated" if name == "simulate" else "study"
        command.add_argument("--study", default=default, help=f"name of the study in that folder (default {default})")
        if name in _BEGIN:
            _add_settings(command)
    made["serve"].add_argument("--port", type=int, default=8000, help="0 = any free one (default 8000)")
    made["serve"].add_argument("--host", default="127.0.0.1", help="0.0.0.0 = also for other machines (default: not)")
    made["static"].add_argument("--out", required=True, help="the folder to write")
    made["static"].add_argument("--plans", type=int, default=15, help="how many observers to plan for (default 15)")
    made["import"].add_argument("files", nargs="+", help="answers-*.json")
    simulate = made["simulate"]
    simulate.add_argument("--observers", type=int, default=15, help="how many (default 15)")
    simulate.add_argument("--url", default="", help="of a server of the same study ('' = one in this process)")
    simulate.add_argument("--accelerated", action="store_true", help="without the time that a person would take")
    simulate.add_argument(
        "--thresholds", default="", help="such as chebyshev=0.02,ssim=0.01 ('' = the median distance of each)"
    )
    made["export"].add_argument("--out", required=True, help="the folder to write")
    analyse = made["analyse"]
    analyse.add_argument("--answers", nargs="+", default=[], help="study.json of exports (default: the study in RUN)")
    analyse.add_argument("--out", default="", help="the folder to write (default: RUN/STUDY/analysis)")
    analyse.add_argument(
        "--shape", default="gaussian", choices=("gaussian", "logistic", "weibull"), help="of psychometric functions"
    )
    made["delete"].add_argument("--observer", type=int, required=True, help="the number in observers.csv")
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("settings, decided when a study begins")
    for field in dataclasses.fields(Settings):
        choices = field.metadata["choices"]
        text = field.metadata["help"] + (f": {', '.join(choices)}" if choices else "")
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        text = f"{text} (default {default!r})" if default == "" else f"{text} (default {default})"
        group.add_argument(f"--{field.name}", metavar="VALUE", help=text.replace("%", "%%"))


def _serve(arguments: argparse.Namespace) -> None:
    """Serves the study's page; its link goes to observers."""
    from cprl_jax.study import page

    server, host = _server_modules()
    listener = host.listen(arguments.host, arguments.port)  # before a study begins, which decides its settings
    page.parts()  # which refuses where libraries are missing
    store = _open(arguments)
    admin, link = secrets.token_urlsafe(24), host.address(listener)
    app = server.create_app(store, admin=admin)
    program.show(_rules(store.settings))
    program.show(f"Link for observers: {link}?participant=NAME   (the name may be left out)")
    program.show(f"Token for exports: {admin}   (curl -H 'Authorization: Bearer {admin}' {link}api/admin/status)")
    if not host.is_loopback(listener):
        program.show("Other machines can reach this server, without encryption: docs/study.md says how to add it.")
    if host.is_any(listener):
        program.show("In the link for observers, write this machine's name or address in the place of the host.")
    host.serve(app, listener)


def _static(arguments: argparse.Namespace) -> None:
    """Writes the study as a folder that a browser opens, from a disk or any web server."""
    from cprl_jax.study import catalogue, page, static

    out = user_path(arguments.out, field="--out").resolve()
    run = user_path(arguments.run, field="--run").resolve()
    catalogue.check_run(run)
    folder = _folder(run, arguments.study)
    if out.is_relative_to(run):
        raise UserError(f"--out={out} is in the folder of the run, which keeps its own files there; give another")
    static.check(out, plans=arguments.plans)  # before a study begins, which decides its settings
    if (out / static.STUDY).exists() and not (folder / settings_lib.FILE).exists():
        raise static.another(out)
    page.parts()  # which refuses where libraries are missing
    store = _open(arguments)
    folder = static.write(store, out, plans=arguments.plans)
    program.show(_rules(store.settings))
    program.show(f"Open {folder / 'index.html'}; observers send what it saves at the end, and `import` reads it")


def _import(arguments: argparse.Namespace) -> int:
    """Reads the files that observers saved at the end of a study in a folder."""
    from cprl_jax.study import static

    store, rejected = _open(arguments), 0
    for name in arguments.files:
        try:
            program.show(f"{name}: {static.read(store, user_path(name, field='FILES'))}")
        except UserError as error:
            rejected += 1
            program.complain(error)
    return int(bool(rejected))


def _simulate(arguments: argparse.Namespace) -> None:
    """Plays modelled observers through the study's HTTP interface."""
    import contextlib

    from cprl_jax.study import export, simulate

    server, host = _server_modules()
    if arguments.observers < 1:
        raise UserError(f"--observers={arguments.observers}: it must be at least 1")
    if arguments.url:
        simulate.Client(arguments.url).close()  # its form
    thresholds = _thresholds(arguments.thresholds, user_path(arguments.run, field="--run").resolve())
    store = _open(arguments)  # last: a study that begins decides its settings
    if any(not str(row["participant"]).startswith(simulate.NAME) for row in store.rows("observers")):
        raise UserError(f"--study={arguments.study} has answers of people; give another name")
    model = simulate.Observers(thresholds or simulate.median_thresholds(store.catalogue))
    app = contextlib.nullcontext(arguments.url)
    if not arguments.url:
        app = host.in_background(server.create_app(store, admin=secrets.token_urlsafe(24)))
    with app as url:
        options = {"observers": arguments.observers, "seed": store.settings.seed, "accelerated": arguments.accelerated}
        simulate.run(url, store.catalogue, store.settings, model, **options)
    program.show(export.status(store))


def _status(arguments: argparse.Namespace) -> None:
    """Says how many observers and answers there are."""
    from cprl_jax.study import export

    program.show(export.status(_open(arguments)))


def _analyse(arguments: argparse.Namespace) -> None:
    """Turns answers into verdicts, just-noticeable differences and the paper's tables."""
    from cprl_jax.report import page
    from cprl_jax.study import export
    from cprl_jax.study.analysis import analyse, answers

    run = user_path(arguments.run, field="--run").resolve()
    if arguments.answers:
        given = answers.read(arguments.answers)
    else:
        given = answers.combine({str(run / arguments.study): export.as_json(_open(arguments))})
    out = user_path(arguments.out, field="--out") if arguments.out else run / arguments.study / "analysis"
    program.show(page.terminal(analyse.run(run, given, out, shape=arguments.shape)))
    program.show(f"\nReport: {out / 'report.html'}")


def _export(arguments: argparse.Namespace) -> None:
    """Writes all answers as CSV and JSON, with a data dictionary."""
    from cprl_jax.study import export

    for path in export.write(_open(arguments), user_path(arguments.out, field="--out")):
        program.show(str(path))


def _delete(arguments: argparse.Namespace) -> None:
    """Deletes everything about an observer."""
    if not _open(arguments).delete(arguments.observer):
        raise UserError(f"--observer={arguments.observer}: there is no such observer; `export` lists them")
    program.show(f"observer {arguments.observer} is deleted; exports and analyses made before still have the answers")


def _bundle(arguments: argparse.Namespace) -> None:
    """Fetches the libraries of the page from the npm registry, where they are not there yet."""
    from cprl_jax.study import bundle

    if trouble := bundle.bundle():
        raise UserError(trouble)
    program.show(f"The page is complete: {bundle.VENDOR}")


def _open(arguments: argparse.Namespace):
    """The study of a command; begun, where there is none and the command may."""
    from cprl_jax.study import catalogue, page
    from cprl_jax.study.store import Store, open_store

    run = user_path(arguments.run, field="--run").resolve()
    folder = _folder(run, arguments.study)
    if arguments.command not in _BEGIN:
        return open_store(folder)
    if getattr(arguments, "url", ""):
        settings_lib.read(folder)  # whoever started that server began the study
    given = {
        field.name: settings_lib.parse(field, getattr(arguments, field.name))
        for field in dataclasses.fields(Settings)
        if getattr(arguments, field.name) is not None
    }
    catalogue.check_run(run)
    if not (folder / settings_lib.FILE).exists():  # they are kept last: a study that could not begin decides nothing
        chosen = Settings(**given)
        text = page.consent_text(chosen)
        catalogue.make(run, folder, chosen)
        page.keep_consent(folder, text)
    settings = settings_lib.settle(folder, given)
    if "consent" in given:
        page.check_consent(folder, settings)
    return Store(folder, settings, catalogue.open_or_make(run, folder, settings))


def _folder(run: Path, name: str) -> Path:
    """Where a study lies: a folder of its own in that of the run."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise UserError(f"--study={name!r}: give a name without slashes")
    folder = user_path(run / name, field="--study")
    if folder.is_dir() and not (folder / settings_lib.FILE).exists():
        others = (path.name for path in folder.iterdir() if not path.name.startswith("."))
        strange = sorted(set(others) - {"images", "catalogue.json", "consent.txt"})  # of one that was stopped early
    else:
        strange = [name] if folder.is_file() else []
    if strange:
        raise UserError(f"--study={name}: {folder} is not of a study (it has {strange[0]}); give another name")
    return folder


def _server_modules() -> tuple[Any, Any]:
    try:
        from cprl_jax.study import host, server
    except ModuleNotFoundError as error:
        raise UserError(f"the study's server needs {error.name}; pip install 'cprl_jax[study]'") from None
    return server, host


def _rules(settings: Settings) -> str:
    """What will be left out, said before there are answers."""
    from cprl_jax.study.analysis import exclusion

    rules = exclusion.stated(dataclasses.asdict(settings))
    return "\n".join(["What counts (stated now, applied in this order):", *(f"  - {rule}" for rule in rules)])


def _thresholds(text: str, run: Path) -> dict[str, float]:
    """'chebyshev=0.02,ssim=0.01' as a dictionary; empty, or with every fidelity of the run's candidates."""
    from cprl_jax.study import catalogue

    thresholds = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            thresholds[name.strip()] = float(number)
        except ValueError:
            number = "0"
        if not 0 < thresholds.get(name.strip(), 0) < math.inf:
            raise UserError(f"--thresholds: {part!r} is not FIDELITY=DISTANCE with a distance above 0")
    known = {row["fidelity"] for row in catalogue.read_report(catalogue.check_run(run), needed=("fidelity",))}
    if strange := thresholds.keys() - known:
        raise UserError(f"--thresholds: {min(strange)} is no fidelity of {run}; it has {', '.join(sorted(known))}")
    if thresholds and (missing := known - thresholds.keys()):
        raise UserError(f"--thresholds: none given for {', '.join(sorted(missing))}")
    return thresholds


if __name__ == "__main__":
    sys.exit(main())
