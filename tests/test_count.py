"""`mnet-search count`: every network answers, and the paper's tables stand beside the exact figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mnet_search.models.complexity import costs
from mnet_search.models.families import FAMILIES, create
from mnet_search.models.published import ROWS, TABLE_2, TABLE_3, compare

from processes import call


@pytest.mark.parametrize("name", [*sorted(FAMILIES), "torchvision:squeezenet1_0"])
def test_every_network_answers(name: str, tmp_path: Path) -> None:
    done = call(tmp_path, "count", name, "--json")
    assert done.returncode == 0, done.stderr
    found, exact = json.loads(done.stdout), costs(create(name))
    assert (found["params"], found["mult_adds"]) == (exact.params, exact.mult_adds)
    assert sum(layer["mult_adds"] for layer in found["layers"]) == exact.mult_adds
    assert sum(share["mult_adds"] for share in found["shares"].values()) == pytest.approx(1)
    assert sum(share["weights"] for share in found["shares"].values()) == pytest.approx(1)
    assert {"peak_activations", "weight_bytes", "receptive_field", "arch_id", "family"} <= set(found)


def test_stages_are_summed_and_what_a_pixel_sees_is_said(tmp_path: Path) -> None:
    done = call(tmp_path, "count", "mobilenet_v1", "--layers")
    lines = done.stdout.splitlines()
    stage = next(line for line in lines if line.startswith("= stage5"))
    rows = [line.split() for line in lines if line.startswith("stage5.")]
    rows = [row for row in rows if row[1] in ("conv", "depthwise")]
    assert stage.split()[-2].replace(",", "").isdigit()
    assert int(stage.split()[-2].replace(",", "")) == sum(int(r[-2].replace(",", "")) for r in rows)
    assert "315 px  receptive field" in done.stdout
    assert "1x1 conv 94.9% / 74.6%" in done.stdout


def test_the_papers_tables_stand_beside_the_exact_figures(tmp_path: Path) -> None:
    rows = list(compare())
    assert len(rows) == len(TABLE_2) + len(TABLE_3) + len(ROWS)
    assert {row.table for row in rows} == set(range(2, 10))
    exact = {row.model: (row.exact_mult_adds, row.exact_params) for row in rows if row.note and row.table > 2}
    assert exact == {
        "all full convolutions": (4_867_293_184, 29_294_088),
        "0.75 MobileNet-224": (325_400_448, 2_585_560),
        "1.0 MobileNet-160": (290_675_200, 4_231_976),
        "GoogleNet": (1_498_376_192, 6_624_904),
        "VGG 16": (15_470_264_320, 138_357_544),
        "0.50 MobileNet-160": (76_524_800, 1_331_592),
        "SqueezeNet": (818_924_576, 1_248_424),
        "AlexNet": (714_188_480, 61_100_840),
    }
    for row in rows:
        off = abs(row.exact_mult_adds / row.printed_mult_adds - 1), abs(row.exact_params / row.printed_params - 1)
        # within the print's last digit, or with a note that says why not
        digit = 0.01 if row.table == 2 else 0.006
        assert row.note or (off[0] < digit and off[1] < 0.07), row
    done = call(tmp_path, "count", "--table", "paper", "--json")
    assert [row["model"] for row in json.loads(done.stdout)] == [row.model for row in rows]
    shown = call(tmp_path, "count", "--table", "paper").stdout
    assert "568,740,352" in shown
    assert "a misprint for 1.91" in shown
    assert "printed at 2 per multiply-add" in shown


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--table", "other"), "--table other: the one table is `mnet-search count --table paper`"),
        (("mobilenet_v1", "--table", "paper"), "without a network"),
        ((), "count what? a family (mobilenet_v1), torchvision:NAME, a space, a config, or --table paper"),
        (("torchvision:squeezenet",), "unknown torchvision classifier 'squeezenet'"),
        (("torchvision:alexnet", "-s", "resolution=32"), "resolution=32 is not possible"),
        (("torchvision:alexnet", "-s", "width=2"), "family torchvision:alexnet has no option 'width'"),
        (("mobilenet_v1", "-s", "family=x"), "family mobilenet_v1 has no option 'family'"),
        (("mobilenet_v1", "-s", "=1"), "--set =1: write NAME=VALUE, for example -s width=0.5"),
        (("nothing.yaml",), "nothing.yaml: no such file"),
        ((".",), "unknown network or file '.' (known: mobilenet_v1"),
        (("--table", "paper", "--layers"), "without a network"),
        (("resnet_v2_50", "-s", "resolution=8"), "resolution=8 is not possible"),
    ],
)
def test_what_cannot_be_counted_is_said_in_a_line(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    done = call(tmp_path, "count", *arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
