"""The launch scripts: what they print and what they run, with programs on PATH that only write down how they were called."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest

ROOT = Path(__file__).resolve().parent.parent
POD = ["-s", "vipu", "-o", "eno1", "-b", "enp1", "-p", "part", "-c", "cluster"]
RECORDER = """#!{python}
import json, os, sys
with open({record!r}, "a") as file:
    engine = os.environ.get("POPLAR_ENGINE_OPTIONS", "")
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], engine, os.getcwd()]) + "\\n")
"""
RUN_HERE = "os.execvp('sh', ['sh', '-c', sys.argv[-1]])\n"  # what ssh does, on this host
RUN_TASKS = (
    "import subprocess\n"
    "command = sys.argv[1 + next(i for i, a in enumerate(sys.argv[1:]) if not a.startswith('-')):]\n"
    "for task in range(2):\n"
    "    subprocess.run(command, env={**os.environ, 'SLURM_PROCID': str(task)}, check=True)\n"
)


class Bench:
    """A folder of programs that write down how they are called, and a copy of the scripts at a path with a space in it."""

    def __init__(self, folder: Path, **bodies: str) -> None:
        self.record, self.work = folder / "record", folder / "working folder"
        self.code, programs = folder / "the code", folder / "bin"
        for path in (self.code, programs, self.work):
            path.mkdir()
        for script in ("run_multihosts.sh", "run_singlehost.sh"):
            shutil.copy(ROOT / script, self.code)
        for name, body in bodies.items():
            (programs / name).write_text(RECORDER.format(python=sys.executable, record=str(self.record)) + body)
            (programs / name).chmod(0o755)
        self.environment = {"PATH": f"{programs}:/usr/bin:/bin"}

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.code / command[0]), *command[1:]],
            cwd=self.work,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background have it ignored, and bash cannot trap what was ignored when it began.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *command: str, code: int = 0, **environment: str) -> str:
        process = self.start(*command, **environment)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == code, output + errors
        return output if code == 0 else errors

    def calls(self, program: str) -> List[List[Any]]:
        lines = [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.exists() else []
        return [line for line in lines if line[0] == program]


def names(count: int) -> str:
    return ",".join(f"host{number}" for number in range(count))


def options(arguments: List[str]) -> Dict[str, str]:
    """--name=value and --name value alike."""
    found = {}
    for word, following in zip(arguments, [*arguments[1:], ""]):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else following
    return found


# hosts -> ILDs, replicas, instances, accumulation, micro batch, rebatched, workers, iterations. 4, 8 and 16 as published.
PODS = {
    1: (1, 4, 1, 1365, 12, 1365, 64, 64),
    3: (1, 12, 3, 455, 12, 910, 64, 192),
    4: (8, 16, 8, 341, 12, 1364, 32, 256),
    8: (2, 32, 8, 146, 14, 1168, 64, 512),
    16: (4, 64, 16, 73, 14, 584, 64, 1024),
}


@pytest.mark.parametrize("count", PODS)
def test_poprun_gets_everything_in_one_command(tmp_path: Path, count: int) -> None:
    bench = Bench(tmp_path, poprun="", python="")
    flags = ["run_multihosts.sh", "-n", names(count), *POD]
    extra = ["--", "--wandb-run-name", "two words", "--comment", "it's"]
    shown = bench.run(*flags, "--dry-run", *extra)
    assert not bench.calls("poprun")
    assert shown.count("\n") == 1
    bench.run(*flags, *extra)
    ((_, arguments, engine, _),) = bench.calls("poprun")
    assert not bench.calls("python")  # poprun starts it
    words = shlex.split(shown)
    assert words[words.index("poprun") + 1 :] == arguments
    assert json.loads(engine) == {"target.hostSyncTimeout": "3000"}
    found = options(arguments)
    keys = ("--num-ilds", "--num-replicas", "--num-instances", "--gradient-accumulation", "--micro-batch-size")
    keys += ("--rebatched-worker-size", "--dataloader-workers", "--iterations")
    assert tuple(int(found[key]) for key in keys) == PODS[count]
    assert found["--host"] == names(count)
    assert found["--vipu-server-host"] == "vipu"
    assert found["--vipu-partition"] == "part"
    assert found["--vipu-cluster"] == "cluster"
    assert found["--mpi-global-args"].endswith("oob_tcp_if_include eno1 --mca btl_tcp_if_include enp1")
    assert "-x POPLAR_ENGINE_OPTIONS" in found["--mpi-local-args"]
    start = arguments.index("python")
    program = [
        str(bench.code / "pretrain.py"),
        "--config",
        "b16_in1k_pretrain",
        "--runtime",
        "ipu",
        "--dataset",
        "generated",
    ]
    assert arguments[start + 1 : start + 8] == program
    assert arguments[-4:] == extra[1:]
    assert list(bench.work.glob("vit_scalability_*.log"))
    assert found["--mpi-global-args"].startswith("--output-filename output_poprun ")
    assert {"/vit_scalability_*.log", "/output_poprun/"} <= set((ROOT / ".gitignore").read_text().splitlines())


# options -> what poprun starts, without its flags
DATA = ["--dataset-path", "/data/in1k"]
REAL_DATA = [
    (["--", *DATA], ["pretrain.py", "--config", "b16_in1k_pretrain", "--runtime", "ipu", *DATA]),
    (["--", "--dataset=cifar10"], ["pretrain.py", "--config", "b16_in1k_pretrain", "--runtime", "ipu", "--dataset=cifar10"]),
    (["--config", "mine"], ["pretrain.py", "--config", "mine", "--runtime", "ipu"]),
    (["--", "--config", "mine"], ["pretrain.py", "--runtime", "ipu", "--config", "mine"]),
    (["--", "--config_file=a.yaml"], ["pretrain.py", "--runtime", "ipu", "--config_file=a.yaml"]),
    (
        ["--script", "finetune.py", "--config=mine", "--", "--runtime", "auto"],
        ["finetune.py", "--config", "mine", "--runtime", "ipu", "--runtime", "auto"],
    ),
    (["--script=validation.py", "--config", "mine"], ["validation.py", "--config", "mine", "--runtime", "ipu"]),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "program"), REAL_DATA)
def test_a_config_or_data_that_is_named_keeps_its_settings_on_a_pod(
    tmp_path: Path, flags: List[str], program: List[str]
) -> None:
    bench = Bench(tmp_path, poprun="")
    words = shlex.split(bench.run("run_multihosts.sh", "-n", names(4), *POD, "--dry-run", *flags))
    assert words[words.index("python") + 1 :] == [str(bench.code / program[0]), *program[1:]]
    found = options(words)
    assert [found[f"--num-{kind}"] for kind in ("ilds", "replicas", "instances")] == ["8", "16", "8"]


@pytest.mark.parametrize("script", ["finetune.py", "validation.py"])
def test_torchrun_starts_the_script_that_is_named(tmp_path: Path, script: str) -> None:
    bench = Bench(tmp_path, torchrun="")
    shown = bench.run("run_multihosts.sh", "-n", "a", "--script", script, "--config", "mine", "--dry-run")
    assert shlex.split(shown)[-3:] == [str(bench.code / script), "--config", "mine"]


def test_the_documentation_shows_what_a_dry_run_prints(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "hosts.md").read_text()
    bench = Bench(tmp_path, torchrun="")
    command = re.findall(r"^\./(run_multihosts\.sh --torchrun .*)$", text, re.MULTILINE)[0].split()
    shown = bench.run(command[0], "--dry-run", *command[1:]).splitlines()
    for path, there in (
        (bench.work, "/home/me"),
        (bench.code, "/shared/pipevit"),
        (tmp_path / "bin", "/shared/pipevit/.venv/bin"),
    ):
        shown = [line.replace(str(path), there) for line in shown]
    assert [" ".join(shlex.split(line)) for line in shown] == re.findall(r"^host\d: .*$", text, re.MULTILINE)


@pytest.mark.parametrize("count", range(1, 33))
def test_any_number_of_hosts_trains_on_about_65536_images_an_update(tmp_path: Path, count: int) -> None:
    found = options(
        shlex.split(Bench(tmp_path, poprun="").run("run_multihosts.sh", "-n", names(count), *POD, "--dry-run"))
    )
    micro, replicas, accumulation = (
        int(found[key]) for key in ("--micro-batch-size", "--num-replicas", "--gradient-accumulation")
    )
    assert abs(micro * replicas * accumulation / 65536 - 1) < 0.02
    assert accumulation >= 4
    share, rest = divmod(micro * replicas * accumulation, int(found["--num-instances"]))
    assert rest == 0
    assert share % int(found["--rebatched-worker-size"]) == 0


@pytest.mark.parametrize("count", [1, 3, 4, 8, 16])
def test_without_poprun_every_host_gets_its_torchrun_by_ssh(tmp_path: Path, count: int) -> None:
    bench = Bench(tmp_path, ssh=RUN_HERE, torchrun="")
    flags = ["run_multihosts.sh", "-n", names(count), "-b", "ib0", "--nproc-per-node", "4", "--config", "digits"]
    extra = ["--", "--dataset-path", "/data/it's here"]
    shown = bench.run(*flags, "--dry-run", *extra).splitlines()
    assert [line.partition(": ")[0] for line in shown] == names(count).split(",")
    assert not bench.calls("ssh")
    bench.run(*flags, *extra)
    assert sorted(arguments[-2] for _, arguments, _, _ in bench.calls("ssh")) == sorted(names(count).split(","))
    started = bench.calls("torchrun")
    assert len(started) == count
    assert {folder for _, _, _, folder in started} == {str(bench.work)}
    for number, line in enumerate(shown):
        words = shlex.split(line.partition(" && ")[2])
        assert words[:3] == ["env", "GLOO_SOCKET_IFNAME=ib0", "NCCL_SOCKET_IFNAME=ib0"]
        (arguments,) = [a for _, a, _, _ in started if f"--node-rank={number}" in a]
        assert words[4:] == arguments
        assert arguments[1:] == [
            *(f"--nnodes={count}", "--master-addr=host0", "--master-port=29400", "--nproc-per-node=4"),
            *(str(bench.code / "pretrain.py"), "--config", "digits", *extra[1:]),
        ]


def test_torchrun_may_be_asked_for_where_poprun_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path, poprun="", ssh="", torchrun="")
    bench.run("run_multihosts.sh", "--torchrun", "-n", "a,b")
    assert len(bench.calls("ssh")) == 2
    assert not bench.calls("poprun")


def test_in_a_slurm_allocation_srun_starts_one_torchrun_a_host(tmp_path: Path) -> None:
    bench = Bench(tmp_path, srun=RUN_TASKS, scontrol="print('n1\\nn2')\n", torchrun="")
    flags = ["run_multihosts.sh", "--srun", "--", "--dataset-path", "/data/it's here"]
    shown = bench.run("run_multihosts.sh", "--srun", "--dry-run", *flags[2:], SLURM_JOB_NODELIST="n[1-2]")
    bench.run(*flags, SLURM_JOB_NODELIST="n[1-2]")
    ((_, arguments, _, _),) = bench.calls("srun")
    assert shlex.split(shown) == ["srun", *arguments]
    assert arguments[:3] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    started = [a for _, a, _, _ in bench.calls("torchrun")]
    assert [a[0] for a in started] == ["--node-rank=0", "--node-rank=1"]
    assert all("--master-addr=n1" in a and a[-1] == "/data/it's here" for a in started)


def test_a_host_that_fails_gives_its_exit_code(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ssh=RUN_HERE, torchrun="sys.exit(3)\n")
    assert "error" not in bench.run("run_multihosts.sh", "-n", "a,b", code=3)


def test_others_are_ended_when_one_host_fails_to_start(tmp_path: Path) -> None:
    fails = "sys.exit(3) if '--node-rank=1' in sys.argv else None\nimport time\ntime.sleep(60)\n"
    begun = time.monotonic()
    Bench(tmp_path, ssh=RUN_HERE, torchrun=fails).run("run_multihosts.sh", "-n", "a,b,c", code=3, HOSTS_PATIENCE="2")
    assert time.monotonic() - begun < 30


def test_ctrl_c_ends_the_hosts_in_order(tmp_path: Path) -> None:
    waiting = (
        "import signal, time\n"
        "def end(*_):\n    print('saved', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('started', flush=True)\ntime.sleep(60)\n"
    )
    bench = Bench(tmp_path, ssh=RUN_HERE, torchrun=waiting)
    process = bench.start("run_multihosts.sh", "-n", "a,b")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["started\n"] * 2
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output == "saved\nsaved\n"
    assert process.returncode == 130
    assert time.monotonic() - begun < 10


def test_one_host_of_ipus(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, python="print(os.environ['IPUOF_VIPU_API_HOST'], os.environ['IPUOF_VIPU_API_PARTITION_ID'])\n"
    )
    flags = ["run_singlehost.sh", "-s", "vipu", "-p", "my part"]
    extra = ["--", "--comment", "it's two"]
    shown = bench.run(*flags, "--dry-run", *extra)
    assert bench.run(*flags, *extra) == "vipu my part\n"
    ((_, arguments, _, _),) = bench.calls("python")
    assert shlex.split(shown)[4:] == arguments
    found = options(arguments)
    assert int(found["--micro-batch-size"]) * int(found["--gradient-accumulation"]) * 4 == 65520
    assert found["--replication-factor"] == "4"
    assert found["--runtime"] == "ipu"
    assert arguments[-2:] == extra[1:]


MISUSE = [
    (["run_multihosts.sh"], "-n is missing"),
    (["run_multihosts.sh", "-n", "a,b"], "poprun needs -s, -o, -b, -p, -c, too"),
    (["run_multihosts.sh", "-n", "a,b", *POD[:-2]], "poprun needs -c, too"),
    (["run_multihosts.sh", "-n"], "-n needs a value"),
    (["run_multihosts.sh", "-n", "a,,b", *POD], "has an empty name or a space"),
    (["run_multihosts.sh", "-n", "a, b", *POD], "has an empty name or a space"),
    (["run_multihosts.sh", "-n", "a,b,a", *POD], "names a host twice"),
    (["run_multihosts.sh", "-n", "a,b", *POD, "--epochs", "3"], "--epochs is no option of this script"),
    (["run_multihosts.sh", "--torchrun", "-n", "a,b", "--nproc-per-node", "0"], "--nproc-per-node 0"),
    (["run_multihosts.sh", "--torchrun", "-n", "a,b", "--nproc-per-node", "0"], "a number, gpu, cpu or auto"),
    *((["run_multihosts.sh", "--torchrun", "-n", "a,b", "--master-port", port], f"--master-port {port}: a number from 1 to")
      for port in ("0", "65536", "99999999", "http")),
    (["run_multihosts.sh", "-n", "a,b", *POD, "--nproc-per-node", "4"], "are for torchrun, but poprun is on PATH"),
    (["run_multihosts.sh", "-n", "a,b", *POD, "--master-port=1234"], "are for torchrun, but poprun is on PATH"),
    (["run_multihosts.sh", "-n", "a,b", *POD, "--script", "plan.py"], "--script plan.py: pretrain.py, finetune.py or"),
    (["run_multihosts.sh", "-n", "a,b", *POD, "--script", "finetune.py"], "--script finetune.py needs --config, too"),
    *((["run_multihosts.sh", *POD, "-n", "a,b", option, "--dry-run"], f"{option} needs a value")
      for option in ("-n", "-s", "-o", "-b", "-p", "-c", "--config", "--script", "--nproc-per-node", "--master-port")),
    *((["run_multihosts.sh", *POD, "-n", "a,b", word], f"{word[:2]} needs a value") for word in ("-b--dry-run", "-s-")),
    (["run_multihosts.sh", *POD, "-n", "a,b", "--config="], "--config needs a value"),
    (["run_multihosts.sh", "-n", "", *POD], "-n needs a value"),
    (["run_multihosts.sh", "--torchrun", "-n", "a,b"], "no torchrun on PATH"),
    (["run_multihosts.sh", "--srun"], "needs a Slurm allocation"),
    (["run_multihosts.sh", "--srun", "-n", "a,b"], "leave -n out"),
    (["run_singlehost.sh", "-s", "vipu"], "-p is missing"),
    (["run_singlehost.sh", "-p", "part"], "-s is missing"),
    (["run_singlehost.sh", "-s"], "-s needs a value"),
    *((["run_singlehost.sh", "-s", "vipu", "-p", "part", option, "--dry-run"], f"{option} needs a value")
      for option in ("-s", "-p", "--config")),
    (["run_singlehost.sh", "-s", "vipu", "-p", "part", "--config=--dry-run"], "--config needs a value"),
    (["run_singlehost.sh", "-n", "a"], "-n is no option of this script"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "message"), MISUSE)
def test_misuse_is_one_message(tmp_path: Path, command: List[str], message: str) -> None:
    errors = Bench(tmp_path, poprun="", python="").run(*command, code=2)
    assert message in errors
    assert errors.count("error:") == 1
    assert len(errors.splitlines()) == 2


@pytest.mark.parametrize("option", ["-s", "-o", "-p", "-c"])
def test_a_pods_options_without_poprun_start_nothing(tmp_path: Path, option: str) -> None:
    bench = Bench(tmp_path, ssh="", torchrun="")
    errors = bench.run("run_multihosts.sh", "-n", "a,b", "-b", "ib0", option, "name", code=2)
    assert "-s, -o, -p, -c are for poprun, which is not on PATH" in errors
    assert not bench.record.exists()


@pytest.mark.parametrize("script", ["run_multihosts.sh", "run_singlehost.sh"])
def test_help(tmp_path: Path, script: str) -> None:
    assert "-p PARTITION" in Bench(tmp_path).run(script, "--help")


@pytest.mark.parametrize("script", ["run_multihosts.sh", "run_singlehost.sh"])
def test_shellcheck_finds_nothing(script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    assert subprocess.run(["shellcheck", str(ROOT / script)], check=False).returncode == 0
