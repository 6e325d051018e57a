"""The table of networks: what each line says against torch's counts and the declarations."""

import re

import pytest

from cprl_jax.models import NETWORKS, __main__

SOME = {name: NETWORKS[name] for name in ("compact", "hyperiqa", "ma19", "resnet", "squeezenet")}


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
    # As torchvision counts them, without the classifier (512 or 2048 to 1000) and with our head.
    for name, count in (("resnet18", 11_689_512 - 513_000 + 513), ("resnet50", 25_557_032 - 2_049_000 + 2049)):
        assert re.search(rf" {count:,} +from 1 ", found[f"resnet ({name})"])
    assert "221 to 224" in found["hyperiqa (resnet50)"] and "from 17" in found["squeezenet"]
    assert " zwx8981/BIQA_CL " in found["ma19"] and found["ma19"].endswith(" MIT")
    assert "none: it starts from random ones" in found["compact"]


def test_help(capsys):
    for arguments in (["--help"], []):
        with pytest.raises(SystemExit) as ended:
            __main__.main(arguments)
        assert ended.value.code == (0 if arguments else 2)
    output = capsys.readouterr()
    assert "config.model.weights" in output.out and "--list" in output.err
