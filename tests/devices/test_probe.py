"""The probe, on folders that look like other machines, and once on this one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgekit.devices import probe
from edgekit.devices.host import host_profile
from edgekit.devices.profile import OPTIONAL_ENGINES

PI_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41

Revision\t: d04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
X86_CPUINFO = """processor\t: 0
model name\t: AMD Ryzen 7 7840HS
flags\t\t: fpu sse2 avx2 f16c fma avx512f avx512_vnni
"""


def write(root, **files):
    for path, text in files.items():
        target = root / path.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


def write_group(root, line, **files):
    write(root, proc__self__cgroup=line)
    for path, text in files.items():
        target = root / "sys/fs/cgroup" / path.replace("__", "/").replace("-", ".")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


def test_cpu_name_and_features_of_a_pi(tmp_path):
    root = write(tmp_path, proc__cpuinfo=PI_CPUINFO)
    assert probe.read_cpu_name(root) == "Raspberry Pi 5 Model B Rev 1.0"
    assert probe.read_cpu_features(root) == ("dotprod", "fp16")


def test_cpu_name_and_features_of_a_laptop(tmp_path):
    root = write(tmp_path, proc__cpuinfo=X86_CPUINFO)
    assert probe.read_cpu_name(root) == "AMD Ryzen 7 7840HS"
    assert probe.read_cpu_features(root) == ("avx2", "avx512_vnni", "avx512f", "f16c", "fma")


def test_a_machine_without_proc_has_no_facts_and_no_error(tmp_path):
    assert probe.read_cpu_name(tmp_path) == ""
    assert probe.read_cpu_features(tmp_path) == ()
    assert probe.read_cpu_quota(tmp_path) is None
    assert probe.read_memory_limit(tmp_path) is None


def test_cgroup_v2_takes_the_tightest_limit_of_all_parents(tmp_path):
    root = write_group(
        tmp_path,
        "0::/user.slice/app.scope\n",
        **{
            "user.slice__app.scope__memory.max": "max\n",
            "user.slice__memory.max": "4294967296\n",
            "memory.max": "8589934592\n",
            "user.slice__app.scope__cpu.max": "250000 100000\n",
            "user.slice__cpu.max": "max 100000\n",
        },
    )
    assert probe.read_memory_limit(root) == 4 << 30
    assert probe.read_cpu_quota(root) == 2.5


def test_cgroup_v2_in_a_container_reads_the_mount_point(tmp_path):
    root = write_group(
        tmp_path, "0::/docker/abc\n", **{"memory.max": "1073741824\n", "cpu.max": "50000 100000\n"}
    )
    assert probe.read_memory_limit(root) == 1 << 30
    assert probe.read_cpu_quota(root) == 0.5


def test_cgroup_v1_counts_and_its_no_limit_number_does_not(tmp_path):
    root = write_group(
        tmp_path,
        "9:name=systemd:/\n4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n",
        **{
            "memory__job__memory.limit_in_bytes": "2147483648\n",
            "memory__memory.limit_in_bytes": "9223372036854771712\n",
            "cpu__job__cpu.cfs_quota_us": "300000\n",
            "cpu__job__cpu.cfs_period_us": "100000\n",
            "cpu__cpu.cfs_quota_us": "-1\n",
            "cpu__cpu.cfs_period_us": "100000\n",
        },
    )
    assert probe.read_memory_limit(root) == 2 << 30
    assert probe.read_cpu_quota(root) == 3.0


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::\n", "\n0::/\nx:y:z\n"])
def test_odd_cgroup_files_are_survived(tmp_path, text):
    root = write_group(tmp_path, text, **{"memory.max": "what\n", "cpu.max": "1 0\n"})
    assert probe.read_memory_limit(root) is None
    assert probe.read_cpu_quota(root) is None


@pytest.mark.parametrize(
    ("n_affinity", "quota", "n_cores"),
    [(8, None, 8), (8, 2.5, 3), (8, 0.5, 1), (2, 16.0, 2), (1, 1.0, 1)],
)
def test_usable_cores(n_affinity, quota, n_cores):
    assert probe.usable_cores(n_affinity, quota) == n_cores


def test_core_ml_predicts_on_a_mac_only():
    assert "coreml" not in probe.installed_engines("linux")
    assert set(probe.installed_engines("macos")) - set(probe.installed_engines("linux")) == {
        "coreml"
    }
    assert {"onnxruntime", "mlx", "mil"} <= set(probe.installed_engines("linux"))


def test_this_machine_has_facts_and_a_profile():
    facts = probe.probe_host()
    assert facts.python == ".".join(str(n) for n in sys.version_info[:3])
    assert 1 <= facts.n_cores <= (os.cpu_count() or 1)
    assert facts.n_physical_cores is None or 1 <= facts.n_physical_cores <= facts.n_cores
    assert facts.memory_bytes > 1 << 28
    assert facts.memory_limit_bytes is None or facts.memory_limit_bytes < facts.memory_bytes
    assert facts.cpu
    profile = host_profile(facts)
    assert profile.id == "host"
    assert {e.id for e in profile.engines} == {*facts.engines, *OPTIONAL_ENGINES}


def test_probing_imports_no_engine():
    code = (
        "import sys; from edgekit.devices.probe import probe_host; probe_host();"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'mlx', 'mlx_lm', 'coremltools'};"
        "sys.exit(sorted(heavy & set(sys.modules)).__repr__() if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
