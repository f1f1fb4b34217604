"""The command line as its users hold on to it: outputs, exit codes, one-line errors, nothing written on bad input."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from mnet_search.models.factory import build
from mnet_search.search.cli import app
from mnet_search.studies.export import read_config

from processes import call, load, mnet, write_space

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real, finished study of three trials."""
    folder = tmp_path_factory.mktemp("study")
    done = mnet(folder, "run", write_space(folder), "--executor", "local", "--n-trials", 3)
    assert done.returncode == 0, done.stderr
    (folder / "run.out").write_text(done.stdout)
    (folder / "run.err").write_text(done.stderr)
    return folder


def test_count_prints_the_exact_figures(tmp_path: Path) -> None:
    done = mnet(tmp_path, "count", "mobilenet_v1", "--json")
    found = json.loads(done.stdout)
    assert (found["mult_adds"], found["params"], found["family"]) == (568_740_352, 4_231_976, "mobilenet_v1")
    assert sum(layer["mult_adds"] for layer in found["layers"]) == found["mult_adds"]
    done = call(
        tmp_path,
        "count",
        "mobilenet_v1",
        "-s",
        "width=0.75",
        "-s",
        "resolution=192",
        "-s",
        "depth=full",
        "-s",
        "classes=1000",
        "--json",
    )
    assert json.loads(done.stdout)["options"]["width"] == 0.75


def test_count_layers_adds_up_on_screen(tmp_path: Path) -> None:
    done = call(tmp_path, "count", "mobilenet_v1", "--layers")
    assert "stage4.block6.pointwise.conv" in done.stdout
    assert "568,740,352" in done.stdout


def test_validate_counts_and_writes_nothing(tmp_path: Path) -> None:
    done = call(tmp_path, "validate", write_space(tmp_path), "--json")
    found = json.loads(done.stdout)
    assert (found["codes"], found["networks"], found["feasible"]) == (8, 8, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]
    assert "8 distinct networks" in call(tmp_path, "validate", tmp_path / "tiny.yaml").stdout


def test_schema_is_json_schema(tmp_path: Path) -> None:
    assert json.loads(call(tmp_path, "schema").stdout)["title"] == "SpaceFile"


def test_a_run_ends_with_the_front_and_what_to_type_next(study: Path) -> None:
    text = (study / "run.out").read_text()
    assert "Study tiny: 3 of 3 finished (3 in this run). Front:" in text
    assert "mnet-search dashboard tiny" in text
    assert "trial 0: accuracy" in (study / "run.err").read_text()


def test_studies_show_and_best(study: Path) -> None:
    listed = json.loads(call(study, "studies", "--json").stdout)
    assert [(s["name"], s["n_finished"], s["active"]) for s in listed] == [("tiny", 3, False)]
    assert "tiny" in call(study, "studies").stdout
    shown = json.loads(call(study, "show", "tiny", "--json").stdout)
    assert len(shown["trials"]) == 3
    assert shown["provenance"]["versions"]["torch"]
    assert 1 <= len(shown["front"]) <= 3
    everything = call(study, "show", "tiny", "--all").stdout
    assert everything.count("finished") >= 3
    frame = load(study)
    best = json.loads(call(study, "best", "tiny", "--json").stdout)
    assert best["accuracy"] == frame["accuracy"].max()
    limit = frame["params"].min()
    small = json.loads(call(study, "best", "tiny", "--max", f"params={limit}", "--json").stdout)
    assert small["params"] == limit


def test_export_and_train(study: Path, tmp_path: Path) -> None:
    done = call(study, "export", "tiny", "--best", "-o", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    config_path, weights_path, card_path = map(Path, json.loads(done.stdout)["files"])
    assert card_path.name == f"{config_path.stem}.md"
    config, arch = read_config(config_path)
    best = load(study).sort_values(["accuracy", "mult_adds"], ascending=[False, True]).iloc[0]
    assert (arch.id, config.seed) == (best["arch_id"], 0)
    assert config.measured["accuracy"] == best["accuracy"]
    assert config.provenance["study"] == "tiny"
    with safe_open(weights_path, "pt") as weights:
        assert weights.metadata()["arch_id"] == arch.id
        build(arch).load_state_dict({name: weights.get_tensor(name) for name in weights.keys()})  # noqa: SIM118  # no mapping
    again = call(study, "export", "tiny", "--best", "-o", tmp_path)
    assert again.returncode == 2
    assert "exists already; give --force to replace it" in again.stderr
    assert call(study, "export", "tiny", "--front", "-o", tmp_path, "--force").returncode == 0
    trained = call(tmp_path, "train", config_path, "--json")
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    # the same network, seed, data and recipe: the search's own figure comes out again
    assert result["validation_accuracy"] == best["accuracy"]
    assert result["test_images"] > 300
    assert (Path(tmp_path / result["folder"]) / "curve.csv").read_text().count("\n") == 3
    assert call(tmp_path, "count", config_path).stdout.startswith(f"mobilenet_v1 {arch.id}")


def test_report_is_one_file_without_outside_links(study: Path, tmp_path: Path) -> None:
    done = call(study, "report", "tiny", "-o", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "r.html").read_text()
    assert re.search(r'<(script|link|img|iframe)[^>]+(src|href)="(https?:)?//', text) is None
    assert "Content-Security-Policy" in text


def test_latency_has_its_spread(tmp_path: Path) -> None:
    done = call(
        tmp_path, "latency", "mobilenet_v1", "-s", "width=0.25", "-s", "resolution=32", "--repeats", 5, "--json"
    )
    found = json.loads(done.stdout)
    assert 0 < found["q1_ms"] <= found["median_ms"] <= found["q3_ms"]
    assert (found["n"], found["threads"], found["batch"]) == (5, 1, 1)


def test_doctor_lists_what_there_is(tmp_path: Path) -> None:
    found = json.loads(call(tmp_path, "doctor", "--json").stdout)
    assert "mobilenet_v1" in found["families"]
    assert "cifar10" in found["data.name"]
    assert {"grid", "random", "tpe", "nsga2"} <= set(found["search.sampler"])


BAD = [
    (("count", "mobilenet_v9"), 2, "unknown network or file 'mobilenet_v9'; did you mean mobilenet_v2?"),
    (("count", "mobilenet_v1", "-s", "width=1e308"), 2, "width=1e+308 is not possible"),
    (("validate", "tiny.yaml", "-s", "parameters.width=null"), 2, "parameters.width: has no value; write a number"),
    (("validate", "tiny.yaml", "-s", "parameters.resolution={min: 12, max: 1000000000000}"), 2, "more than 100,000"),
    (("validate", "tiny.yaml", "-s", "search.seed=99999999999999"), 2, "search.seed: input should be less than"),
    (("count", "mobilenet_v1", "-s", "resolution=8"), 2, "resolution=8 is not possible"),
    (("run", "nothing.yaml"), 2, "nothing.yaml: no such file"),
    (("run", "tiny.yaml", "--n-trials", 0), 2, "--n-trials 0: ask for 1 or more finished trials"),
    (("run", "tiny.yaml", "--study", "../../escape"), 2, "--study '../../escape': a name is letters, digits"),
    (("run", "tiny.yaml", "--executor", "cloud"), 2, "unknown executor 'cloud' (known: ray, local"),
    (("run", "tiny.yaml", "-s", "family=mobilenet"), 2, "unknown family 'mobilenet'; did you mean mobilenet_v2?"),
    (("run", "tiny.yaml", "-s", "data.name=imagenet21k"), 2, "unknown name 'imagenet21k' (known: digits, cifar10"),
    (("run", "tiny.yaml", "-s", "objectives.size=minimize"), 2, "unknown objective 'size'"),
    (("run", "tiny.yaml", "-s", "parameters.block=[fancy]"), 2, "unknown block 'fancy'"),
    (("run", "tiny.yaml", "-s", "parameters.width=[]"), 2, "the list of values is empty"),
    (("run", "tiny.yaml", "-s", "parameters.resolution=[4]"), 2, "resolution=4 is not possible"),
    (("run", "tiny.yaml", "-s", "constraints.params.max=1k"), 2, "has params within 1 k: the smallest has"),
    (("run", "tiny.yaml", "-s", "data={name: cifar10, path: nowhere}"), 2, "nowhere"),
    (("run", "tiny.yaml", "-s", "search.scheduler=moash"), 2, "unknown scheduler 'moash'; did you mean moasha?"),
    (("run", "tiny.yaml", "-s", "resources.gpus_per_trial=1"), 2, "torch sees no GPU on this machine"),
    (("run", "tiny.yaml", "--runs-dir", "tiny.yaml/runs"), 2, "the runs folder cannot be written to (Not a directory)"),
    (
        ("run", "tiny.yaml", "-s", "resources.concurrency=0"),
        2,
        "resources.concurrency: input should be greater than or",
    ),
    (
        ("run", "tiny.yaml", "--timeout", "soon"),
        2,
        "--timeout soon: write a time above 0, such as 90 (seconds), 30m, 2h",
    ),
    (
        ("run", "tiny.yaml", "--executor", "local", "--address", "a:1"),
        2,
        "--address: it is for --executor ray, and this",
    ),
    (
        ("run", "tiny.yaml", "--executor", "local", "--ship-code"),
        2,
        "--ship-code: it is for --executor ray, and this run",
    ),
    (("run", "tiny.yaml", "--runs-dir", "nowhere://b/runs"), 2, "nowhere"),
    (
        ("run", "tiny.yaml", "--storage", "postgresql://u:secret@127.0.0.1:1/d"),
        3,
        "u:***@127.0.0.1:1/d: the server cannot be",
    ),
    (
        ("run", "tiny.yaml", "--storage", "mysql://u:secret@h/d"),
        2,
        "mysql://u:***@h/d: studies are not stored in 'mysql'",
    ),
    (("run", "tiny.yaml", "--max-failures", -1), 2, "--max-failures -1: write 0 or more"),
    (("run", "tiny.yaml", "--lease", "inf"), 2, "--lease"),
    (("run", "tiny.yaml", "--runs-dir", ""), 2, "--runs-dir '': name a folder, or a URL such as s3://bucket/runs"),
    (("run", "tiny.yaml", "--runs-dir", "sftp://u:secret@h/x"), 2, "--runs-dir sftp://u:***@h/x: the study would keep"),
    (("run", "tiny.yaml", "--address", "127.0.0.1:1"), 3, "no Ray cluster answers at 127.0.0.1:1 (connection refused)"),
    (("status", "tiny"), 3, "no such database"),
    (("stop", "tiny"), 3, "no such database"),
    (("run", "tiny.yaml", "--storage", "tiny.yaml"), 3, "is not a SQLite database"),
    (("studies",), 3, "study.db: no such database; start a search first"),
    (("report", "tiny"), 3, "no such database"),
    (("export", "tiny"), 2, "one of --trial N, --best or --front"),
    (("train", "tiny.yaml"), 2, "no training config (it has no `arch:`)"),
    (("runn",), 2, "No such command 'runn'"),
    (("run",), 2, "Missing argument 'SPACE'"),
]


@pytest.mark.parametrize(("arguments", "code", "text"), BAD, ids=[" ".join(map(str, a))[:60] for a, _, _ in BAD])
def test_bad_input_is_one_line_with_its_exit_code_and_nothing_is_written(
    tmp_path: Path, arguments: tuple, code: int, text: str
) -> None:
    if arguments[0] == "run" and arguments[-1] == "resources.gpus_per_trial=1":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    write_space(tmp_path)
    done = call(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stderr.startswith("mnet-search: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert "secret" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"tiny.yaml", "runs"}
    assert not any((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("show", "tinny"), 3, "no study 'tinny' in study.db; did you mean tiny?; it has: tiny"),
        (("best", "tiny", "--max", "params=1"), 2, "no finished trial has params within 1; the least is"),
        (("best", "tiny", "--max", "colour=1"), 2, "--max colour: not a figure of a trial"),
        (("best", "tiny", "--max", "params"), 2, "--max params: write NAME=NUMBER"),
        (("export", "tiny", "--trial", 99), 2, "no trial 99 in this study (it has: 0 to 2)"),
        (("export", "tiny", "--best", "--format", "onx"), 2, "unknown export format 'onx'; did you mean onnx?"),
        (
            ("export", "tiny", "--best", "--format", "pickle"),
            2,
            "unknown export format 'pickle' (known: config, weights",
        ),
        (
            ("dashboard", "--host", "192.0.2.7"),
            2,
            "host '192.0.2.7' lets other machines reach the page: give a token that they need, with --token TEXT",
        ),
    ],
)
def test_bad_questions_about_a_study(study: Path, arguments: tuple, code: int, text: str) -> None:
    done = call(study, *arguments)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_checkpoint_is_not_exported(study: Path, tmp_path: Path) -> None:
    path = Path(load(study).set_index("number").loc[1, "checkpoint"])
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-10] + b"0123456789")
        done = call(study, "export", "tiny", "--trial", 1, "-o", tmp_path)
        assert done.returncode == 2
        assert "is damaged" in done.stderr
        assert call(study, "export", "tiny", "--trial", 1, "--format", "config", "-o", tmp_path / "c").returncode == 0
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"config_version": 2}, "newer than this mnet-search reads (1)"),
        ({"arch": {}}, "is required"),
        ({"extra": 1}, "unknown key"),
    ],
)
def test_configs_that_cannot_be_read(tmp_path: Path, change: dict, text: str) -> None:
    good = {
        "config_version": 1,
        "arch": {
            "family": "mobilenet_v1",
            "options": {"resolution": 32, "in_channels": 1, "classes": 10},
            "arch_id": "0" * 12,
        },
    }
    good |= {"data": {"name": "digits"}, "training": {"epochs": 1}, "seed": 0}
    (tmp_path / "c.yaml").write_text(json.dumps(good | change))
    done = call(tmp_path, "train", "c.yaml")
    assert done.returncode == 2
    assert text in done.stderr
    (tmp_path / "c.yaml").write_text(json.dumps(good))
    assert "its options give the network" in call(tmp_path, "train", "c.yaml").stderr


def test_every_command_stands_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    for group in app.registered_groups:
        commands = group.typer_instance.registered_commands if group.typer_instance else []
        names += [f"{group.name} {c.name or c.callback.__name__}" for c in commands if c.callback]
    assert [name for name in names if f"mnet-search {name}" not in text] == []


def test_json_has_no_nan() -> None:
    from mnet_search.search.printing import _clean

    assert _clean({"a": [math.nan, 1.0, (math.inf,)]}) == {"a": [None, 1.0, [None]]}
