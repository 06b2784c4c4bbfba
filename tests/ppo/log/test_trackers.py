"""Trackers through on_step: what a training says is what can be read back from what the real package wrote."""

import ast
import json
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ppo.distributed import Processes
from ppo.log.to_mlflow import to_mlflow
from ppo.log.to_trackio import to_trackio
from ppo.log.to_wandb import to_wandb
from ppo.log.tracker import Tracker
from ppo.types import Step
from tests.fakes import one_line
from tests.ppo.run.small import SMALL, make
from tests.processes import ENVIRONMENT, ROOT

CONFIG = SMALL.replace(save_every_steps=0)


def trained(tracker, steps=2):
    """The metrics of each step of a training that was tracked."""
    seen = []

    def both(step):
        seen.append(step.metrics)
        tracker(step)

    make(CONFIG).train(steps, progress=False, on_step=both)
    return seen


def wandb_records(data):
    """The records of a .wandb file: after seven bytes, a log as LevelDB writes it, in blocks of 32 KiB."""
    place, begun = 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # too little for a header: the block is padded
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield begun
            begun = b""


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    with to_wandb("demem", config=CONFIG, name="one", mode="offline", folder=tmp_path) as tracker:
        seen = trained(tracker)
        tracker(Step(0, None, {"score/mean": 7.0}))  # as a resumed run, which goes back
    wandb.teardown()  # the program that writes for it ends, and with it its writing
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    lines, settings, ends = [], {}, []
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = record.history.item
        if items:
            lines.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.WhichOneof("record_type") == "exit":
            ends.append(record.exit.exit_code)
    assert [line["step"] for line in lines] == [0, 1, 0]
    assert lines[2]["score/mean"] == 7.0
    for metrics, line in zip(seen, lines, strict=False):
        assert {name: line[name] for name in metrics} == metrics
    assert settings["learning_rate"] == CONFIG.learning_rate
    assert ends == [0]


def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the small package has no database
    uri = (tmp_path / "runs").as_uri()
    client = mlflow.MlflowClient(tracking_uri=uri)
    with to_mlflow("demem", config=CONFIG, name="one", tracking_uri=uri) as tracker:
        seen = trained(tracker)
    home = client.get_experiment_by_name("demem").experiment_id
    (run,) = client.search_runs([home])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    assert run.data.params["learning_rate"] == str(CONFIG.learning_rate)
    for name in seen[0]:
        points = client.get_metric_history(run.info.run_id, name)
        assert [(p.step, p.value) for p in points] == [(i, metrics[name]) for i, metrics in enumerate(seen)]
    again = to_mlflow("demem", run_id=run.info.run_id, tracking_uri=uri)
    again(Step(2, None, {"score/mean": 7.0}))
    with pytest.raises(ZeroDivisionError), again:
        _ = 1 / 0
    assert [p.step for p in client.get_metric_history(run.info.run_id, "score/mean")] == [0, 1, 2]
    assert client.get_run(run.info.run_id).info.status == "FAILED"
    (only,) = client.search_runs([home])  # no second run
    assert only.info.run_id == run.info.run_id


TRACKIO = """
import json, sys
from tests.ppo.log.test_trackers import CONFIG, trained
from ppo.log.to_trackio import to_trackio
from ppo.types import Step

with to_trackio("demem", config=CONFIG, name="one") as tracker:
    seen = trained(tracker)
with to_trackio("demem", config=CONFIG, name="one") as tracker:
    tracker(Step(2, None, {"score/mean": 7.0}))
import trackio
runs = trackio.Api().runs("demem")
assert len(runs) == 1, runs
from trackio.sqlite_storage import SQLiteStorage
lines = SQLiteStorage.get_logs("demem", "one")
open(sys.argv[1], "w").write(json.dumps({"seen": seen, "lines": lines, "config": runs[0].config}))
"""


def test_trackio_in_a_folder(tmp_path):
    """In a program of its own: the package reads its folder from the environment when it is imported."""
    pytest.importorskip("trackio")
    out = tmp_path / "found.json"
    home = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(out)], cwd=ROOT, env=ENVIRONMENT | home, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert any((tmp_path / "trackio").iterdir())
    found = json.loads(out.read_text())
    assert [line["step"] for line in found["lines"]] == [0, 1, 2]
    assert found["lines"][2]["score/mean"] == 7.0
    for metrics, line in zip(found["seen"], found["lines"], strict=False):
        assert {name: line[name] for name in metrics} == metrics
    assert found["config"]["learning_rate"] == CONFIG.learning_rate


@pytest.mark.parametrize(
    ("make_tracker", "package", "module"),
    [(to_wandb, "wandb", "wandb"), (to_trackio, "trackio", "trackio"), (to_mlflow, "mlflow", "mlflow")],
)
def test_a_missing_package_is_named_in_one_line(monkeypatch, make_tracker, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    message = f"{make_tracker.__name__} needs the package {package}: pip install {package}"
    with pytest.raises(ImportError, match=one_line(message)):
        make_tracker("demem")


def test_nothing_is_imported_before_it_is_asked_for():
    """Each package in one function of one file of the library."""
    found = []
    for file in (ROOT / "ppo").rglob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        within = {id(x) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for x in ast.walk(f)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            packages = {name.split(".")[0] for name in names} & {"wandb", "trackio", "mlflow"}
            found += [(package, file.name, id(node) in within) for package in packages]
    assert sorted(found) == [(name, f"to_{name}.py", True) for name in ("mlflow", "trackio", "wandb")]


@pytest.mark.parametrize("make_tracker", [to_wandb, to_trackio, to_mlflow])
def test_of_several_processes_the_first_alone_opens_a_run(monkeypatch, make_tracker):
    monkeypatch.setattr(Processes, "current", classmethod(lambda cls: Processes(1, 2)))
    for package in ("wandb", "trackio", "mlflow"):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace())  # an attempt to use it would fail
    with make_tracker("demem") as tracker:
        tracker(Step(0, None, {"score/mean": 1.0}))


def test_a_tracker_is_closed_once():
    calls = []
    tracker = Tracker(lambda metrics, step: calls.append((step, dict(metrics))), lambda failed: calls.append(failed))
    tracker(Step(3, None, {"a": 1.0}))
    tracker.close()
    tracker.close()
    assert calls == [(3, {"a": 1.0}), False]
    with pytest.raises(ValueError, match="this tracker is closed"):
        tracker(Step(4, None, {}))
