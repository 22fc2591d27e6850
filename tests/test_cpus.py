"How many CPUs a process may use: quotas of cgroups, affinity, batch systems"

import os

import pytest

from fungi_fastai.core.cpus import _job_variables, cgroup_quota, compute_threads, cpu_limit


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    "A machine of 64 cores, without a batch system"
    for name in [name for names in _job_variables for name in names] + ['OMP_NUM_THREADS']:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)), raising=False)


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


cgroups = {
    'version 2, in a container': (
        {'proc/self/cgroup': '0::/\n', 'sys/fs/cgroup/cpu.max': '250000 100000\n'},
        2.5,
    ),
    'version 2, a service in a slice with a smaller quota': (
        {
            'proc/self/cgroup': '0::/lab.slice/run.service\n',
            'sys/fs/cgroup/lab.slice/cpu.max': '300000 100000\n',
            'sys/fs/cgroup/lab.slice/run.service/cpu.max': '800000 100000\n',
        },
        3,
    ),
    'version 2, without a quota': (
        {'proc/self/cgroup': '0::/\n', 'sys/fs/cgroup/cpu.max': 'max 100000\n'},
        None,
    ),
    'version 1, where the path of the host does not exist in the container': (
        {
            'proc/self/cgroup': '5:memory:/a\n4:cpu,cpuacct:/docker/f00d\n',
            'sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us': '50000\n',
            'sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us': '100000\n',
        },
        0.5,
    ),
    'version 1, without a quota': (
        {
            'proc/self/cgroup': '4:cpuacct,cpu:/\n',
            'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
            'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
        },
        None,
    ),
    'both versions': (
        {
            'proc/self/cgroup': '1:cpu:/job\n0::/job\n',
            'sys/fs/cgroup/cpu/job/cpu.cfs_quota_us': '700000\n',
            'sys/fs/cgroup/cpu/job/cpu.cfs_period_us': '100000\n',
        },
        7,
    ),
    'a file that holds something else': ({'proc/self/cgroup': '0::/\n', 'sys/fs/cgroup/cpu.max': 'many\n'}, None),
    'another system': ({}, None),
}


@pytest.mark.parametrize('name', cgroups)
def test_quotas(tmp_path, name):
    files, expected = cgroups[name]
    assert cgroup_quota(write(tmp_path, files)) == expected
    limit = cpu_limit(tmp_path)
    assert limit.cpus == {None: 64, 0.5: 1, 2.5: 3}.get(expected, expected)
    assert ('quota' in limit.reason) == (expected is not None)


@pytest.mark.parametrize(
    'variables, cpus, reason',
    [
        (dict(SLURM_CPUS_PER_TASK='6', SLURM_CPUS_ON_NODE='24'), 6, 'SLURM_CPUS_PER_TASK'),
        (dict(SLURM_CPUS_ON_NODE='24'), 24, 'SLURM_CPUS_ON_NODE'),
        (dict(NCPUS='5'), 5, 'NCPUS'),
        (dict(NSLOTS='9'), 9, 'NSLOTS'),
        (dict(LSB_DJOB_NUMPROC='3'), 3, 'LSB_DJOB_NUMPROC'),
        (dict(SLURM_CPUS_PER_TASK='128'), 64, 'the machine'),
        (dict(SLURM_CPUS_PER_TASK='0', NSLOTS='none'), 64, 'the machine'),
    ],
)
def test_batch_systems(tmp_path, monkeypatch, variables, cpus, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    limit = cpu_limit(tmp_path)
    assert (limit.cpus, limit.reason) == (cpus, reason)


def test_affinity_and_omp_num_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {3, 7, 11, 12}, raising=False)
    assert cpu_limit(tmp_path).cpus == 4 and 'affinity' in cpu_limit(tmp_path).reason
    for text, threads in (('2', 2), ('3,1', 3), ('32', 4), ('', 4), ('all', 4)):
        monkeypatch.setenv('OMP_NUM_THREADS', text)
        assert compute_threads() == min(threads, cpu_limit().cpus)


def test_everything_follows_it(monkeypatch):
    from fungi_fastai.core.settings import Settings
    from fungi_fastai.deploy.batching import Batcher
    from fungi_fastai.training.launch import _rank_variables

    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1, 2, 3, 4, 5}, raising=False)
    cpus = cpu_limit().cpus  # 6, or fewer where the tests themselves run under a quota
    assert Settings().workers == cpus
    assert Batcher(None, None).n_readers == cpus
    assert {one['OMP_NUM_THREADS'] for one in _rank_variables(3)} == {str(max(1, cpus // 3))}
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert Settings().workers == max(1, cpus // 2)
