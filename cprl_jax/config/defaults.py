"""The defaults that every experiment starts from, and the configurations of runs.

A file of `configs/` calls `default()`, changes what its experiment needs and returns that from `get_config(argument)`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_collections

from cprl_jax.config.field import Field
from cprl_jax.config.fields import FIELDS, group_of, within
from cprl_jax.methods import check_names
from cprl_jax.runtime.errors import UserError

_WITHOUT_MODELS = {
    "paper_table": "give one of the folders in it",
    "leave_one_out": "give a run of --config=configs/causal_iqa.py",
    "perceptual_attack": "give one of those that it attacks, which its config.json names in perceptual.models",
}
_ALWAYS = ("job", "seed", "methods", "dataset", "model", "train", "evaluation")  # in the config.json of every version


def default() -> ml_collections.ConfigDict:
    """Returns the configuration that every experiment starts from (fields are locked, values may change)."""
    return _values(FIELDS)


def _values(fields: Mapping[str, Field | Mapping]) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    for name, entry in fields.items():
        config[name] = entry.default if isinstance(entry, Field) else _values(entry)
    return config


def to_json(config: ml_collections.ConfigDict) -> str:
    """The whole configuration as readable JSON (tuples become lists), the same text for the same values."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def read_config(run: Path, *, file: str = "config.json") -> ml_collections.ConfigDict:
    """The configuration of a run, from the config.json in its folder; fields that it lacks have their defaults.

    An earlier version, or one without some plug, may not have known them.

    Args:
      run: its folder.
      file: report/settings.json has that of the last evaluation.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = run / file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if missing := [name for name in _ALWAYS if content.get(name) in (None, {}, [])]:
            raise ValueError(f"it has no {missing[0]}")
        content = completed(content)
        check_names(content["methods"])
        return ml_collections.ConfigDict(content)
    except OSError as error:
        if splits := sorted(path.parent.name for path in run.glob("*/config.json")):
            raise UserError(f"{run} is not the folder of one run; give one in it, such as {run / splits[0]}") from None
        raise UserError(f"{run} is not the folder of a run: {file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); put back a copy, or give another --workdir") from None


def completed(content: Mapping, fields: Mapping[str, Field | Mapping] = FIELDS, prefix: str = "") -> dict:
    """The content of a config.json, checked, with the defaults of the fields that it lacks.

    Raises:
      ValueError: naming the field whose value is not allowed.
    """
    values = dict(content)
    for name, entry in fields.items():
        if isinstance(entry, Field):
            values.setdefault(name, entry.default)
            entry.check(f"{prefix}{name}", values[name])
        elif not isinstance(block := values.get(name, {}), Mapping):
            raise ValueError(f"{prefix}{name} is not a JSON object")
        else:
            values[name] = completed(block, entry, f"{prefix}{name}.")
    return values


def method_of(config: ml_collections.ConfigDict, method: str, run: Path) -> str:
    """The folder, within that of a run, of the model that is meant.

    Args:
      config: of the run.
      method: one of its methods; '' = cprl where it was trained, else the last. Of a run of Causal-IQA, one of its
        updates ('cis', '' = the last), which means its first seed, or 'cis/seed-3'.
      run: its folder, for messages.

    Raises:
      UserError: a method that the run did not train, or a run that keeps no models.
    """
    if config.job in _WITHOUT_MODELS:
        raise UserError(
            f"{run} is a run of the job {config.job!r}, which keeps no models; {_WITHOUT_MODELS[config.job]}"
        )
    trained = tuple(config.methods)
    if config.job == "causal_iqa":
        method = method or config.causal_iqa.updates[-1]
        seeds = range(config.seed, config.seed + config.causal_iqa.seeds)
        trained = tuple(f"{update}/seed-{seed}" for update in config.causal_iqa.updates for seed in seeds)
        method = f"{method}/seed-{config.seed}" if "/" not in method else method
    if method and method not in trained:
        raise UserError(f"method {method!r} was not trained in {run}; there are {', '.join(trained)}")
    return method or ("cprl" if "cprl" in trained else trained[-1])


def check_same_run(
    path: Path, config: ml_collections.ConfigDict, *, fixed: tuple[str, ...] = (), free: tuple[str, ...] = ()
) -> None:
    """Checks that what trained the run whose config.json is at `path` is what this configuration trains.

    Fields that a run of an earlier version does not know may have their default value now.

    Args:
      fixed: fields, or blocks of fields, that may not differ either.
      free: those that may differ nonetheless.

    Raises:
      UserError: naming the fields that differ.
    """
    old, new = (json.loads(to_json(values)) for values in (read_config(path.parent), config))
    changed = []
    for line in differences(old, new):
        field = line.partition(":")[0]
        counts = (group_of(field) == "trains" or within(field, fixed)) and not within(field, free)
        if counts:
            changed.append(line)
    if changed:
        raise UserError(
            f"{path.parent} holds a run of another configuration ({'; '.join(changed[:4])}"
            f"{'; ...' if changed[4:] else ''}); give another --workdir, or delete that folder"
        )


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Lists the fields in which two configurations (parsed JSON) differ, as 'field: old -> new'."""
    found = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found
