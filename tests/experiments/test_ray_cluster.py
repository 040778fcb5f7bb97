"""The Ray engine on a real cluster of two machines, both of them this one."""

import importlib
import os
import signal
import sys

import psutil
import pytest
import torch
from helpers import fakes
from helpers.fakes import KEYS, command_line, eventually, family, log, plan, states
from helpers.tiny import THREE

from advdim.cli import main
from advdim.experiments import locks, runner, store
from advdim.experiments.engines.ray_cluster import ray_cluster

pytestmark = pytest.mark.process

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def address():
    """Two nodes with room for one point each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", fakes.TESTS)  # the workers', who import the fakes
        node = {"num_cpus": 1, "object_store_memory": 10**8}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        cluster.add_node(**node)
        yield cluster.address
        cluster.shutdown()


def run(folder, address, **options):
    return runner.run(THREE, folder, device=CPU, command="c", engine=ray_cluster(address, **options))


def test_the_numbers_are_those_of_the_serial_engine_bit_for_bit(address, tmp_path):
    assert run(tmp_path / "ray", address) == 0
    assert runner.run(THREE, tmp_path / "serial", device=CPU, command="c") == 0
    for key in KEYS:
        there, here = (store.load(tmp_path / name, key) for name in ("ray", "serial"))
        assert there["metrics"] == here["metrics"]
        for record in (there, here):
            del record["provenance"]["seconds"]
        assert there == here


def test_a_worker_is_killed_and_its_point_resumed_by_another(address, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_measure", fakes.measure)
    plan(tmp_path, w8=["wait"], w9=["die"], w10=["die", "die"])
    (tmp_path / "go").touch()
    assert run(tmp_path, address) == 1
    assert states(tmp_path) == ["done", "done", "failed"]
    expected = {"w8": ["begun", "done"], "w9": ["begun", "resumed", "done"], "w10": ["begun", "resumed"]}
    assert {width: [what for w, what in log(tmp_path) if w == width] for width in expected} == expected
    assert "its worker died 2 times" in store.load(tmp_path, KEYS[2])["error"]
    plan(tmp_path)
    assert run(tmp_path, address) == 0
    assert states(tmp_path) == ["done"] * 3


def test_both_machines_are_used_at_once(address, tmp_path, monkeypatch):
    """Two points wait for each other's begin; and one at a time when so asked for."""
    monkeypatch.setattr(runner, "_measure", fakes.measure)
    plan(tmp_path, w8=["meet"], w9=["meet"])
    assert run(tmp_path, address) == 0
    with ray_cluster(address) as workers:
        assert workers.slots() == 2
    with ray_cluster(address, jobs=1) as workers:
        assert workers.slots() == 1


def test_a_cluster_without_room_or_gpus_is_refused(address, tmp_path):
    for options in ({"gpus": 0.5}, {"threads": 3}):
        with pytest.raises(ValueError, match=r"the cluster has .*'CPU': 2.*'GPU': 0"):
            run(tmp_path, address, **options)
    assert list(tmp_path.glob("*.json")) == []
    assert not any(locks.is_held(tmp_path, key) for key in KEYS)


def test_workers_without_the_package_end_the_sweep(address, tmp_path, monkeypatch):
    (tmp_path / "here_alone.py").write_text("def measure(job): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runner, "_measure", importlib.import_module("here_alone").measure)
    with pytest.raises(ValueError, match=r"(?s)cannot run advdim.*'here_alone'"):
        run(tmp_path / "runs", address)
    assert states(tmp_path / "runs") == ["to do"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_takes_its_cluster_with_it(tmp_path, number):
    points = tmp_path / "initialisation"
    plan(points, w9=["hang"], w10=["hang"])
    options = ["--engine", "ray", "--jobs", "2"]
    with command_line(points, *options) as process:
        eventually(lambda: len(list(points.glob("*.checkpoint"))) == 2)
        eventually(lambda: states(points)[0] == "done")
        workers = [p for p in family(process) if p.name() == "ray::measure"]
        assert len(workers) == 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), output
    assert states(points) == ["done", "to do", "to do"]
    assert not any(locks.is_held(points, key) for key in KEYS)
    plan(points)
    assert runner.run(THREE, points, device=CPU, command="c") == 0


def test_without_ray_or_cluster_the_error_is_one_line(tmp_path, monkeypatch, capsys):
    arguments = ["run", "initialisation", "--engine", "ray", "--device", "cpu", "--runs", str(tmp_path)]
    monkeypatch.setitem(fakes.grids.GRIDS, "initialisation", lambda scale, data: THREE)
    assert main([*arguments, "--address", "127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("advdim: ")
    assert "127.0.0.1:1" in error
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(arguments) == 1
    assert "pip install 'advdim[ray]'" in capsys.readouterr().err
