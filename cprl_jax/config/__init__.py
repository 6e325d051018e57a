"""The configuration of runs: defaults, checks, command line and what the files of configs/ share."""


def __getattr__(name: str):
    # Late: the defaults are made from the declarations of methods and networks, which use cprl_jax.config.field.
    if name == "default":
        from cprl_jax.config.defaults import default

        return default
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
