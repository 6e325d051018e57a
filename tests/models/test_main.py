"""The table of networks: what each line says against torch's counts and the declarations."""

import dataclasses
import re

import pytest

from cprl_jax.models import NETWORKS, __main__

# Few, because each line is a network that is traced.
SOME = {name: NETWORKS[name] for name in ("compact", "ma19", "squeezenet")} | {
    name: dataclasses.replace(NETWORKS[name], variants=("resnet18",)) for name in ("hyperiqa", "resnet")
}


def test_every_variant_has_a_line(capsys, monkeypatch):
    monkeypatch.setattr(__main__, "NETWORKS", SOME)
    assert __main__.main(["--list"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["network", "parameters", "images", "stages", "weights", "licences"]
    expected = [network.described(variant) for network in SOME.values() for variant in network.variants or ("",)]
    assert len(lines) == len(expected)
    for line, name in zip(lines, expected, strict=True):
        assert line.startswith(f"{name} ")
    found = dict(zip(expected, lines, strict=True))
    # As torchvision counts, without the classifier (512 to 1000) and with our head.
    assert re.search(rf" {11_689_512 - 513_000 + 513:,} +from 1 ", found["resnet (resnet18)"])
    assert "221 to 224" in found["hyperiqa (resnet18)"] and "from 17" in found["squeezenet"]
    assert " zwx8981/BIQA_CL " in found["ma19"] and found["ma19"].endswith(" MIT")
    assert "none: it starts from random ones" in found["compact"]


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    assert __main__.main([]) == 2
    output = capsys.readouterr()
    assert "config.model.weights" in output.out and "--list" in output.err
